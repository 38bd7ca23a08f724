"""A video or a folder of images is a recording: the same results as from a bag of its frames."""

import cv2
import numpy as np
import pytest
from PIL import Image
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    INTRINSICS,
    WIDTH,
    RoomNetwork,
    ray_cast,
    room_entries,
    world_from_camera,
    write_recording,
)
from support.replays import replay

from qvggt_core.errors import RecordingError
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.io.image_sequence import CAMERA_INFO_TOPIC, IMAGE_TOPIC
from qvggt_ros.io.images import decode_image
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.topics import choose_topics

FRAMES = 12
EXIF_IFD, FOCAL_35 = 0x8769, 0xA405


def picture(index: int) -> np.ndarray:
    return ray_cast(world_from_camera(index), INTRINSICS, WIDTH, HEIGHT)[0]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(FRAMES):
        Image.fromarray(picture(index)).save(folder / f"shot {index + 1}.png")
    return folder


def run(path, output):
    return replay(path, output, RoomNetwork(), PLAIN)


def poses(summary) -> np.ndarray:
    return np.loadtxt(summary.output / "trajectory.tum")[:, 1:]


def test_a_folder_gives_what_a_bag_of_its_images_gives(photos, tmp_path) -> None:
    found = run(photos, tmp_path / "photos_out")
    bag = write_recording(tmp_path / "room", room_entries(FRAMES))
    wanted = run(bag, tmp_path / "bag_out")
    np.testing.assert_array_equal(poses(found), poses(wanted))
    assert found.metrics["result"]["published"] == FRAMES
    # The bag has a ground truth to compare with, a folder of images has not.
    assert {file.name for file in wanted.files} - {file.name for file in found.files} == {
        "errors.csv"
    }
    assert (found.output / "report.html").is_file()
    assert any("ten a second are assumed" in warning for warning in found.warnings)


def test_a_video_gives_a_result_too(tmp_path) -> None:
    path = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for index in range(FRAMES):
        writer.write(np.ascontiguousarray(picture(index)[..., ::-1]))
    writer.release()
    found = run(path, tmp_path / "out")
    assert found.metrics["result"]["published"] == FRAMES
    stamps = np.loadtxt(found.output / "trajectory.tum")[:, 0]
    np.testing.assert_allclose(np.diff(stamps), 0.1, atol=1e-3)


def test_names_that_are_times_are_the_stamps(tmp_path) -> None:
    for index in range(3):
        Image.fromarray(picture(index)).save(
            tmp_path / f"{1403636579763555584 + index * 10**8}.png"
        )
    with open_recording(tmp_path) as recording:
        stamps = [stamp for _, _, stamp, _ in recording.messages([IMAGE_TOPIC])]
        assert stamps == [1403636579763555584 + index * 10**8 for index in range(3)]
        assert recording.warnings == []
        message = recording.first(IMAGE_TOPIC)
        assert stamp_ns(message) == stamps[0]
        np.testing.assert_array_equal(decode_image(message), picture(0))


def test_intrinsics_come_from_exif_where_all_images_have_them(tmp_path) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[FOCAL_35] = 30
    for index in range(2):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.jpg", exif=exif)
    with open_recording(tmp_path) as recording:
        topics = choose_topics(recording)
        assert topics.camera_info == CAMERA_INFO_TOPIC
        info = recording.first(CAMERA_INFO_TOPIC)
    camera = camera_from_info(info, WIDTH, HEIGHT)
    assert camera.intrinsics[0, 0] == pytest.approx(30 * np.hypot(WIDTH, HEIGHT) / 43.27)
    assert camera.intrinsics[0, 2] == WIDTH / 2
    Image.fromarray(picture(2)).save(tmp_path / "2.jpg")
    with open_recording(tmp_path) as recording:
        assert choose_topics(recording).camera_info is None


def test_mixed_sizes_are_named_and_begin_segments(photos, tmp_path) -> None:
    Image.fromarray(np.rot90(picture(FRAMES))).save(photos / "shot 20.png")
    with open_recording(photos) as recording:
        (warning,) = [w for w in recording.warnings if "have 2 sizes" in w]
    assert f"{FRAMES} of {WIDTH}x{HEIGHT}, first shot 1.png" in warning
    assert f"1 of {HEIGHT}x{WIDTH}, first shot 20.png" in warning


def test_a_broken_image_is_left_out_and_named(photos, tmp_path) -> None:
    (photos / "shot 3.png").write_bytes(b"no image")
    found = run(photos, tmp_path / "out")
    assert found.metrics["result"]["published"] == FRAMES - 1
    (reason,) = [r for r in found.metrics["result"]["rejected"] if "shot 3.png" in r]
    assert "cannot be read as an image" in reason


def test_a_folder_without_images_or_bags_is_no_recording(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(RecordingError, match="no images"), open_recording(tmp_path):
        pass


def test_images_beside_a_bag_are_not_taken_for_the_recording(tmp_path) -> None:
    bag = write_recording(tmp_path / "room", room_entries(2))
    Image.fromarray(picture(0)).save(bag / "cover.png")
    with open_recording(bag) as recording:
        assert IMAGE_TOPIC in recording.types
        assert recording.message_count > 0
