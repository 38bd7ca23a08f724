"""Recordings as they come from the field: broken in one place, and whole in all others."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image as PilImage
from support.recordings import (
    HEIGHT,
    PERIOD_NS,
    START_NS,
    WIDTH,
    M,
    RoomNetwork,
    camera_info_message,
    image_message,
    pose_message,
    read_recording,
    room_entries,
    stamp_of,
    write_recording,
)
from support.replays import replay

from qvggt_core.errors import RecordingError
from qvggt_core.parameters import Parameters
from qvggt_ros.io.recording import open_recording

FRAMES = 12
BROKEN = 5


def reconstruct(bag, tmp_path):
    parameters = Parameters(
        confirm=False, refine=False, keyframe_min_motion=0.0, window_size=4, window_stride=2
    )
    summary = replay(bag, tmp_path / "out", RoomNetwork(), parameters, report=False)
    return summary, read_recording(summary.output / "bag")


def stamps(found, topic="/qvggt/pose"):
    return [time for time, _, _ in found[topic]]


def all_but(*missing):
    return [stamp_of(index) for index in range(FRAMES) if index not in missing]


def replaced(index, **changes):
    """The room's entries with one image changed."""
    return room_entries(FRAMES, lambda i: image_message(i, **(changes if i == index else {})))


# No recording


def test_there_is_nothing_at_the_path(tmp_path):
    with pytest.raises(RecordingError, match="there is no recording at"):
        reconstruct(tmp_path / "nothing", tmp_path)


def test_a_directory_without_a_recording(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(RecordingError, match=r"holds no \.mcap, no \.db3"):
        reconstruct(tmp_path / "in", tmp_path)


def test_a_ros_1_recording_is_named_as_such(tmp_path):
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(RecordingError, match="rosbags-convert"):
        reconstruct(tmp_path / "old.bag", tmp_path)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_an_empty_recording(storage, tmp_path):
    bag = write_recording(tmp_path / "in", [], storage)
    with pytest.raises(RecordingError, match="empty"):
        reconstruct(bag, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no recording at all", b"\x89MCAP0\r\n"])
@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_a_file_that_only_has_the_name(content, suffix, tmp_path):
    (tmp_path / f"in{suffix}").write_bytes(content)
    with pytest.raises(RecordingError, match=rf"in{suffix}"):
        reconstruct(tmp_path / f"in{suffix}", tmp_path)


def test_no_image_topic_lists_what_there_is(tmp_path):
    entries = [("/robot/pose", "PoseStamped", START_NS, pose_message(0))]
    with pytest.raises(RecordingError, match="no camera image") as caught:
        reconstruct(write_recording(tmp_path / "in", entries), tmp_path)
    assert "/robot/pose  [geometry_msgs/msg/PoseStamped]" in str(caught.value)


# A recording that was cut off


def cut(bag, share):
    """Cut a recording's file, and drop the metadata that a killed recorder does not write."""
    (bag / "metadata.yaml").unlink()
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    return file


@pytest.mark.parametrize("bare", [True, False])
def test_a_truncated_mcap_is_reconstructed_as_far_as_it_goes(bare, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES))
    file = cut(bag, 0.6)
    summary, found = reconstruct(file if bare else bag, tmp_path)
    published = stamps(found)
    assert 4 <= len(published) < FRAMES
    assert published == [stamp_of(index) for index in range(len(published))]
    assert any("damaged" in warning for warning in summary.warnings)


def test_a_truncated_mcap_with_its_metadata_is_read_too(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES))
    metadata = (bag / "metadata.yaml").read_text()
    cut(bag, 0.6)
    (bag / "metadata.yaml").write_text(metadata)
    assert len(stamps(reconstruct(bag, tmp_path)[1])) >= 4


def log_time(index):
    """Receive time of a frame's messages, as it stands in an MCAP file."""
    return (stamp_of(index) + 1_000_000).to_bytes(8, "little")


# An image that fills a chunk of the file, so that the next message begins another one.
LARGE = {"height": 600, "width": 800, "step": 2400, "data": np.zeros(600 * 2400, np.uint8)}


def test_of_a_truncated_mcap_every_whole_message_is_read(tmp_path):
    data = (write_recording(tmp_path / "in", replaced(3, **LARGE)) / "in.mcap").read_bytes()
    cut_off = tmp_path / "cut.mcap"
    cut_off.write_bytes(data[: data.index(log_time(8))])
    with open_recording(cut_off) as recording:
        times = [time for _, _, time, _ in recording.messages(["/camera/image_raw"])]
    assert times == [stamp_of(index) + 1_000_000 for index in range(8)]


def test_a_recording_with_a_hole_keeps_what_is_whole(tmp_path):
    bag = write_recording(tmp_path / "in", replaced(6, **LARGE))
    file = bag / "in.mcap"
    data = bytearray(file.read_bytes())
    record = data.index(log_time(7)) - 15
    data[record + 1 : record + 9] = bytes([255]) * 8
    file.write_bytes(bytes(data))
    summary, found = reconstruct(bag, tmp_path)
    assert stamps(found)[:7] == all_but()[:7]
    assert any("is damaged" in warning for warning in summary.warnings)


# One bad message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 0, "height": 0, "step": 0, "data": np.zeros(0, np.uint8)}, "empty: 0x0"),
        ({"step": 7}, "step of 7 bytes"),
        ({"data": np.zeros(100, np.uint8)}, "100 bytes"),
        ({"encoding": "holographic8"}, "'holographic8'"),
        ({"width": 2**31, "height": 2**31, "step": 2**32 - 1}, "larger than the limit"),
    ],
)
def test_a_bad_image_in_the_middle_costs_itself(changes, reason, tmp_path):
    bag = write_recording(tmp_path / "in", replaced(BROKEN, **changes))
    summary, found = reconstruct(bag, tmp_path)
    assert stamps(found) == all_but(BROKEN)
    ((rejection, count),) = summary.metrics["result"]["rejected"].items()
    assert count == 1
    assert reason in rejection
    assert rejection in summary.metrics["events"]


@pytest.mark.parametrize("damage", ["cut off", "no jpeg", "empty"])
def test_a_broken_jpeg_in_the_middle_costs_itself(damage, tmp_path):
    def jpeg(index):
        raw = image_message(index)
        stream = io.BytesIO()
        PilImage.fromarray(raw.data.reshape(HEIGHT, WIDTH, 3)).save(stream, format="JPEG")
        data = stream.getvalue()
        if index == BROKEN:
            data = {"cut off": data[:-400], "no jpeg": b"\0" * 99, "empty": b""}[damage]
        octets = np.frombuffer(data, np.uint8)
        return M.CompressedImage(header=raw.header, format="jpeg", data=octets)

    bag = write_recording(tmp_path / "in", room_entries(FRAMES, jpeg, "CompressedImage"))
    summary, found = reconstruct(bag, tmp_path)
    assert stamps(found) == all_but(BROKEN)
    assert sum(summary.metrics["result"]["rejected"].values()) == 1


def test_bytes_that_are_no_message_cost_themselves(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES), "sqlite3")
    import sqlite3

    with sqlite3.connect(bag / "in.db3") as database:
        (topic,) = database.execute("SELECT id FROM topics WHERE name LIKE '%image_raw'").fetchone()
        rows = database.execute("SELECT id FROM messages WHERE topic_id = ?", (topic,)).fetchall()
        database.execute(
            "UPDATE messages SET data = substr(data, 1, 30) WHERE id = ?", rows[BROKEN]
        )
    database.close()
    summary, found = reconstruct(bag, tmp_path)
    assert stamps(found) == all_but(BROKEN)
    assert summary.metrics["result"]["received"] == FRAMES


@pytest.mark.parametrize(
    "changes", [{"k": np.full(9, np.nan)}, {"d": np.full(5, np.inf)}, {"width": 7, "height": 3}]
)
def test_a_calibration_with_nan_in_the_middle_costs_no_image(changes, tmp_path):
    entries = room_entries(FRAMES)
    position = [i for i, entry in enumerate(entries) if entry[1] == "CameraInfo"][BROKEN]
    topic, name, received, _ = entries[position]
    # The calibration is recorded before its image, so that it is the one that is taken.
    bad = camera_info_message(BROKEN, **changes)
    entries[position] = (topic, name, received - PERIOD_NS // 2, bad)
    summary, found = reconstruct(write_recording(tmp_path / "in", entries), tmp_path)
    assert stamps(found) == all_but()
    assert summary.metrics["result"]["uncalibrated"] == 0
    assert "last good calibration" in next(iter(summary.metrics["result"]["rejected"]))


def test_a_reference_pose_that_is_no_pose_costs_only_itself(tmp_path):
    entries = room_entries(FRAMES)
    entries[3 * BROKEN][3].pose.orientation.w = float("nan")
    summary, found = reconstruct(write_recording(tmp_path / "in", entries), tmp_path)
    assert stamps(found) == all_but()
    assert stamps(found, "/ground_truth/pose") == all_but(BROKEN)
    assert summary.metrics["result"]["received"] == FRAMES


def test_nothing_but_bad_images_is_an_error_that_says_why(tmp_path):
    entries = room_entries(3, lambda index: image_message(index, step=1))
    with pytest.raises(RecordingError, match=r"none of the 3 images .* step of 1 bytes"):
        reconstruct(write_recording(tmp_path / "in", entries), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# Time


def test_stamps_that_go_backward_begin_a_new_segment_and_lose_nothing(tmp_path):
    order = [*range(6), *range(3, 9)]
    entries = [
        ("/camera/image_raw", "Image", START_NS + i * PERIOD_NS, image_message(index))
        for i, index in enumerate(order)
    ]
    summary, found = reconstruct(write_recording(tmp_path / "in", entries), tmp_path)
    assert summary.metrics["result"]["published"] == len(order)
    assert summary.metrics["result"]["segment_frames"] == [6, 6]
    assert sorted(stamps(found)) == sorted(stamp_of(index) for index in order)


def test_one_frame_is_enough_for_a_result(tmp_path):
    summary, found = reconstruct(write_recording(tmp_path / "in", room_entries(1)), tmp_path)
    assert stamps(found) == [START_NS]
    assert summary.metrics["result"]["path_lengths"] == [0.0]
    shutil.rmtree(summary.output)
    parameters = Parameters(confirm=False, refine=False, keyframe_min_motion=0.0)
    with_report = replay(tmp_path / "in", tmp_path / "out", RoomNetwork(), parameters)
    assert (with_report.output / "report.html").exists()
