"""A recording in, a recording out: what is in it, and that it is the same every time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    START_NS,
    WIDTH,
    M,
    RoomNetwork,
    header,
    image_message,
    pose_message,
    read_recording,
    room_entries,
    stamp_of,
    world_from_camera,
    write_recording,
)
from support.replays import replay

from qvggt_core.errors import OutputError, ParameterError, RecordingError
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.parameters import Parameters
from qvggt_ros.drivers.replay import Watcher
from qvggt_ros.io.conversions import read_pose
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.topics import choose_topics

FRAMES = 10


def run(bag, output, parameters=PLAIN, report=False, **options):
    return replay(bag, output, RoomNetwork(), parameters, report=report, **options)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("in") / "room", room_entries(FRAMES))


@pytest.fixture(scope="module")
def result(room, tmp_path_factory):
    return run(room, tmp_path_factory.mktemp("out") / "room", report=True)


@pytest.fixture(scope="module")
def messages(result):
    return read_recording(result.output / "bag")


def test_every_image_gets_its_pose_depth_and_cloud_at_its_own_stamp(messages):
    stamps = [stamp_of(index) for index in range(FRAMES)]
    for topic in (
        "/qvggt/pose",
        "/qvggt/depth/image",
        "/qvggt/depth/camera_info",
        "/qvggt/points",
        "/tf",
        "/ground_truth/pose",
    ):
        assert [time for time, _, _ in messages[topic]] == stamps, topic
    for _, _, message in messages["/qvggt/depth/image"]:
        assert (message.width, message.height, message.encoding) == (WIDTH, HEIGHT, "32FC1")


def test_messages_are_written_in_the_order_of_their_stamps(result):
    """In the file itself: a reader with an index sorts, so the records are read by hand."""
    data = next((result.output / "bag").glob("*.mcap")).read_bytes()
    times, position = [], data.index(b"\x06", 8)  # the first chunk
    end = position + 9 + int.from_bytes(data[position + 1 : position + 9], "little")
    position += 9 + 40
    while position < end:
        length = int.from_bytes(data[position + 1 : position + 9], "little")
        if data[position] == 0x05:
            times.append(int.from_bytes(data[position + 15 : position + 23], "little"))
        position += 9 + length
    assert len(times) >= FRAMES
    assert times == sorted(times)


def test_the_path_is_that_of_the_camera_in_units_of_the_first_window(messages):
    poses = np.stack([read_pose(message) for _, _, message in messages["/qvggt/pose"]])
    truth = np.stack([world_from_camera(index) for index in range(FRAMES)])
    level = truth[0] @ inverse(FLU_FROM_OPTICAL)
    expected = inverse(level) @ truth
    expected[:, :3, 3] *= 0.5  # the unit of the window that begins with frame 0
    assert np.allclose(poses, expected, atol=1e-6)


def test_poses_of_windows_in_other_units_join_the_map(result):
    assert result.metrics["result"]["segments"] == 1
    assert result.metrics["result"]["windows"] > 1
    assert result.metrics["result"]["published"] == FRAMES


def test_files_beside_the_recording(result):
    names = {file.relative_to(result.output).as_posix() for file in result.files}
    assert {
        "bag",
        "trajectory.tum",
        "points.ply",
        "effective_params.yaml",
        "metrics.json",
        "run.json",
        "errors.csv",
        "frames.npz",
        "report.html",
        "pictures/frames.png",
        "pictures/path.png",
    } <= names
    assert all(file.exists() for file in result.files)
    tum = (result.output / "trajectory.tum").read_text().splitlines()
    assert len(tum) == FRAMES
    assert tum[3].split()[0] == "1700000000.300000000"
    assert json.loads((result.output / "metrics.json").read_text()) == result.metrics


def test_effective_parameters_can_be_read_back(result):
    assert Parameters.read(result.output / "effective_params.yaml") == PLAIN


def test_the_report_needs_no_other_file_and_no_network(result):
    page = (result.output / "report.html").read_text()
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"' ]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "src=" not in page.replace('src="data:', "")
    assert "<link" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_names_in_a_report_are_text_not_markup(tmp_path):
    name = "/<script>alert(1)</script>"
    entries = [
        (f"{name}/image_raw" if topic == "/camera/image_raw" else topic, *rest)
        for topic, *rest in room_entries(2)
    ]
    bag = write_recording(tmp_path / "a<b>&c", entries)
    page = (run(bag, tmp_path / "out", report=True).output / "report.html").read_text()
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_the_same_recording_twice_gives_the_same_bytes(room, messages, tmp_path):
    again = read_recording(run(room, tmp_path / "again").output / "bag")
    assert again.keys() == messages.keys()
    for topic, entries in messages.items():
        assert [entry[:2] for entry in entries] == [entry[:2] for entry in again[topic]]


def test_evo_reads_the_result_beside_its_ground_truth(result):
    evo = Path(sys.executable).with_name("evo_ape")
    command = [evo, "bag2", result.output / "bag", "/ground_truth/pose", "/qvggt/pose", "-as"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rmse = next(line for line in done.stdout.splitlines() if "rmse" in line)
    assert float(rmse.split()[-1]) < 1e-5


def test_the_metrics_compare_with_the_ground_truth(result):
    accuracy = result.metrics["accuracy"]
    (segment,) = accuracy["segments"]
    truth = np.stack([world_from_camera(index)[:3, 3] for index in range(FRAMES)])
    length = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    assert accuracy["truth"]["source"] == "/ground_truth/pose"
    assert accuracy["alignment"] == "sim3"
    assert segment["compared"] == FRAMES
    assert segment["alignments"]["sim3"]["translation"]["rmse"] < 1e-5
    assert segment["alignments"]["sim3"]["scale"] == pytest.approx(2.0, abs=1e-5)
    assert np.isclose(segment["truth_length"], length)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_both_storages_in_and_out(storage, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(3), storage)
    output = run(bag, tmp_path / "out", storage=storage).output
    suffix = ".mcap" if storage == "mcap" else ".db3"
    assert [path.suffix for path in (output / "bag").glob("bag*")] == [suffix]
    assert len(read_recording(output / "bag")["/qvggt/pose"]) == 3


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bare_file_is_a_recording(storage, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(2), storage)
    file = next(path for path in bag.iterdir() if path.suffix != ".yaml")
    assert run(file, tmp_path / "out").metrics["result"]["published"] == 2


def test_compressed_images(tmp_path):
    import cv2

    def jpeg(index):
        raw = image_message(index)
        pixels = raw.data.reshape(HEIGHT, WIDTH, 3)[..., ::-1]
        data = cv2.imencode(".jpg", pixels)[1].reshape(-1)
        return M.CompressedImage(header=raw.header, format="bgr8; jpeg compressed bgr8", data=data)

    bag = write_recording(tmp_path / "in", room_entries(3, jpeg, "CompressedImage"))
    summary = run(bag, tmp_path / "out")
    assert summary.metrics["recording"]["image_topic"] == "/camera/image_raw/compressed"
    assert summary.metrics["recording"]["camera_info_topic"] == "/camera/camera_info"
    assert summary.metrics["result"]["uncalibrated"] == 0
    assert summary.metrics["result"]["published"] == 3


def test_a_limit_ends_after_so_many_images(room, tmp_path):
    assert run(room, tmp_path / "out", limit=4).metrics["result"]["received"] == 4


def test_a_stop_on_request_keeps_what_there_is(room, tmp_path):
    done = []
    summary = run(
        room,
        tmp_path / "out",
        watcher=Watcher(
            progress=lambda index, total: done.append((index, total)),
            stop=lambda: len(done) >= 5,
        ),
    )
    assert done == [(index, FRAMES) for index in range(1, 6)]
    assert summary.interrupted
    assert len(read_recording(summary.output / "bag")["/qvggt/pose"]) == 5
    assert any("stopped on request" in event for event in summary.metrics["events"])


def test_metric_units_are_named_when_a_parameter_says_so(room, tmp_path):
    parameters = PLAIN.with_values(metres_per_unit=2.0)
    summary = run(room, tmp_path / "out", parameters=parameters)
    found = read_recording(summary.output / "bag")
    assert found["/qvggt/pose"][0][2].header.frame_id == "map"
    assert summary.metrics["result"]["unit"] == "m"
    assert summary.warnings == ()
    # The unit of the first window is half of the room's, so this is the room in metres.
    last = read_pose(found["/qvggt/pose"][-1][2])[:3, 3]
    truth = world_from_camera(FRAMES - 1)[:3, 3] - world_from_camera(0)[:3, 3]
    assert np.isclose(np.linalg.norm(last), np.linalg.norm(truth))


def test_segments_have_their_own_files_and_worlds(tmp_path):
    entries = room_entries(4)
    late = [
        ("/camera/image_raw", "Image", stamp_of(500 + i), image_message(i, header=header(500 + i)))
        for i in range(3)
    ]
    summary = run(write_recording(tmp_path / "in", entries + late), tmp_path / "out")
    assert summary.metrics["result"]["segment_frames"] == [4, 3]
    for name in ("trajectory.tum", "trajectory_1.tum", "points.ply", "points_1.ply"):
        assert (summary.output / name).exists()
    poses = read_recording(summary.output / "bag")["/qvggt/pose"]
    worlds = [message.header.frame_id for _, _, message in poses]
    assert worlds == ["qvggt_unscaled"] * 4 + ["qvggt_unscaled_1"] * 3


# The output directory


def test_an_output_is_replaced_only_on_request(room, tmp_path):
    run(room, tmp_path / "out", limit=2)
    with pytest.raises(OutputError, match="--overwrite"):
        run(room, tmp_path / "out", limit=3)
    assert run(room, tmp_path / "out", limit=3, overwrite=True).metrics["result"]["received"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_directory_that_holds_something_else_is_never_replaced(room, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="left alone"):
        run(room, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_an_output_does_not_swallow_its_input(room, tmp_path):
    inside = tmp_path / "out" / "bag"
    shutil.copytree(room, inside)
    with pytest.raises(OutputError, match="lies in the output"):
        run(inside, tmp_path / "out", overwrite=True)
    assert inside.exists()


def test_a_failing_network_leaves_what_was_done_until_then(room, tmp_path):
    class Failing(RoomNetwork):
        def predict(self, tokens, height, width, newest=None):
            if tokens[0] > 0:
                raise RuntimeError("out of memory")
            return super().predict(tokens, height, width)

    parameters = PLAIN.with_values(window_size=4, window_stride=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        replay(room, tmp_path / "out", Failing(), parameters)
    assert not (tmp_path / "out").exists()
    assert len(read_recording(tmp_path / "out.partial" / "bag")["/qvggt/pose"]) == 4


def test_options_are_checked_before_anything_is_made(room, tmp_path):
    with pytest.raises(ParameterError, match="storage 'hdf5'"):
        run(room, tmp_path / "out", storage="hdf5")
    with pytest.raises(ParameterError, match="limit of 0"):
        run(room, tmp_path / "out", limit=0)
    assert not list(tmp_path.iterdir())


# Which topics


def topics_of(tmp_path, entries, **named):
    with open_recording(write_recording(tmp_path / "in", entries)) as recording:
        return choose_topics(recording, **named)


def depth_entry(topic="/camera/depth/image_raw"):
    values = np.ones((4, 4), np.float32)
    message = M.Image(
        header=header(0),
        height=4,
        width=4,
        encoding="32FC1",
        is_bigendian=0,
        step=16,
        data=values.view(np.uint8).reshape(-1),
    )
    return (topic, "Image", START_NS, message)


def test_depth_images_and_former_results_are_no_camera(tmp_path):
    entries = [depth_entry(), depth_entry("/qvggt/depth/image"), *room_entries(1)]
    entries.append(("/qvggt/pose", "PoseStamped", START_NS, pose_message(0)))
    topics = topics_of(tmp_path, entries)
    assert topics.image == "/camera/image_raw"
    assert topics.camera_info == "/camera/camera_info"
    assert topics.reference == ("/ground_truth/pose",)


def test_a_raw_image_is_preferred_to_its_compressed_twin(tmp_path):
    twin = M.CompressedImage(header=header(0), format="jpeg", data=np.zeros(4, np.uint8))
    entries = [
        ("/camera/image_raw/compressed", "CompressedImage", START_NS, twin),
        *room_entries(1),
    ]
    assert topics_of(tmp_path, entries).image == "/camera/image_raw"


def test_a_camera_with_calibration_is_preferred(tmp_path):
    entries = [("/a/image_raw", "Image", START_NS, image_message(0)), *room_entries(1)]
    assert topics_of(tmp_path, entries).image == "/camera/image_raw"


def test_rectified_images_are_known_by_their_name(tmp_path):
    entries = [("/camera/image_rect", "Image", START_NS, image_message(0)), *room_entries(1)]
    assert not topics_of(tmp_path / "1", entries).rectified
    assert topics_of(tmp_path / "2", entries, image_topic="/camera/image_rect").rectified


def test_several_cameras_are_listed(tmp_path):
    entries = [
        (f"/{side}/image_raw", "Image", START_NS, image_message(0)) for side in ("left", "right")
    ]
    with pytest.raises(RecordingError, match="several cameras") as caught:
        topics_of(tmp_path / "1", entries)
    assert "/left/image_raw" in str(caught.value)
    assert "/right/image_raw" in str(caught.value)
    assert topics_of(tmp_path / "2", entries, image_topic="/right/image_raw").camera_info is None


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"image_topic": "/nothing"}, "no topic /nothing"),
        ({"image_topic": "/camera/camera_info"}, "not an image"),
        ({"camera_info_topic": "/camera/image_raw"}, "not a camera_info"),
    ],
)
def test_a_wrong_name_is_answered_with_the_list(named, reason, tmp_path):
    with pytest.raises(RecordingError, match=reason) as caught:
        topics_of(tmp_path, room_entries(1), **named)
    assert "/ground_truth/pose  [geometry_msgs/msg/PoseStamped]" in str(caught.value)
