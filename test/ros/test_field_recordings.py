"""Recordings as recorders, drivers and people leave them: read as far as they go, or explained."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from support.mcap_files import record, text, write_mcap
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    WIDTH,
    M,
    RoomNetwork,
    camera_info_message,
    header,
    image_message,
    room_entries,
    stamp_of,
    write_recording,
)
from support.replays import replay

from qvggt_core.errors import ImageError, RecordingError
from qvggt_ros.drivers.bag_writer import STORAGES
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import read_pose
from qvggt_ros.io.images import PictureDecoder, decode_image
from qvggt_ros.io.messages import LATCHED, TYPES, rosbags_typestore
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.storage import MAX_UNPACKED
from qvggt_ros.io.topics import choose_topics, odometry_topic

FRAMES = 10
IMAGES = "/camera/image_raw"


def received(path, topic=IMAGES):
    """Receive times of a topic's messages, and the warnings of the recording."""
    with open_recording(path) as recording:
        times = [time for _, _, time, _ in recording.messages([topic])]
        return times, recording.warnings


def received_or_error(path):
    try:
        return *received(path), ""
    except RecordingError as error:
        return [], [], str(error)


def times_of(*frames):
    return [stamp_of(index) + 1_000_000 for index in frames]


def disordered():
    """Poses whose receive times are older than that of the image before them."""
    entries = room_entries(FRAMES)
    return [
        (topic, name, time - 3_000_000 if name == "CameraInfo" else time, message)
        for topic, name, time, message in entries
    ]


def run(bag, tmp_path, network=None, **options):
    network = network or RoomNetwork()
    options = {"report": False, **options}
    return replay(bag, tmp_path / "out", network, PLAIN, **options)


# MCAP


@pytest.mark.parametrize("per_chunk", [0, 4])
def test_order_is_not_required_of_an_mcap(per_chunk, tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", disordered(), per_chunk=per_chunk)
    assert received(bag) == (times_of(*range(FRAMES)), [])


@pytest.mark.parametrize("per_chunk", [0, 6])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 0.95])
def test_of_a_cut_mcap_in_no_order_every_whole_message_is_read(share, per_chunk, tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", disordered(), per_chunk=per_chunk)
    data = bag.read_bytes()
    bag.write_bytes(data[: int(share * len(data))])
    times, (warning,) = received(bag)
    assert times == times_of(*range(len(times)))
    # A message needs its image, of 7 kB; nothing else is of any size.
    assert len(times) >= int((share * len(data) - 20_000) / (WIDTH * HEIGHT * 3 + 700))
    assert "ends in the middle" in warning


@pytest.mark.parametrize("share", [0.4, 0.7, 0.99])
def test_a_tail_of_zeros_costs_what_lies_there(share, tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), per_chunk=5)
    data = bag.read_bytes()
    whole = int(share * len(data))
    bag.write_bytes(data[:whole] + bytes(len(data) - whole))
    times, warnings = received(bag)
    assert times == times_of(*range(len(times)))
    assert len(times) >= int(share * FRAMES) - 3
    assert any("damaged" in warning or "left out" in warning for warning in warnings)


def test_a_zeroed_middle_costs_that_part(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES)) / "in.mcap"
    data = bytearray(bag.read_bytes())
    middle = data.index(struct.pack("<Q", stamp_of(4) + 1_000_000)) - 15
    data[middle : middle + 400] = bytes(400)
    bag.write_bytes(bytes(data))
    times, warnings = received(bag)
    assert times[:4] == times_of(*range(4))
    assert any("damaged" in w or "left out" in w for w in warnings)


def test_channels_of_other_encodings_are_left_alone(tmp_path):
    extra = record(3, struct.pack("<H", 77) + text("tool.Note") + text("jsonschema") + text("{}"))
    extra += record(4, struct.pack("<HH", 77, 77) + text("/notes") + text("json") + text(""))
    extra += record(5, struct.pack("<HIQQ", 77, 0, 1, 1) + b'{"note": "start"}')
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), extra=extra)
    assert received(bag)[0] == times_of(*range(FRAMES))
    with open_recording(bag) as recording:
        assert "/notes" not in recording.types


@pytest.mark.parametrize(
    ("head", "warning"),
    [
        (struct.pack("<HIQQ", 999, 0, stamp_of(1), 1), "no channel with their number"),
        (struct.pack("<HIQQ", 1, 0, (1 << 64) - 1, 1), "time is none that there is"),
    ],
)
def test_messages_without_a_channel_or_a_time_are_left_out_with_a_warning(head, warning, tmp_path):
    extra = record(5, head + bytes(20))
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), per_chunk=0, extra=extra)
    times, warnings = received(bag)
    assert times == times_of(*range(FRAMES))
    assert any("1 messages are left out" in text and warning in text for text in warnings)


def test_a_header_without_a_profile_is_read_and_ros_1_is_explained(tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), profile="")
    assert received(bag)[0] == times_of(*range(FRAMES))
    bag = write_mcap(tmp_path / "1.mcap", room_entries(2), profile="ros1", encoding="ros1")
    with pytest.raises(RecordingError, match=r"ROS 1: .*rosbags-convert"):
        received(bag)


@pytest.mark.parametrize("size", [MAX_UNPACKED + 1, 1 << 40, 1000])
def test_a_chunk_that_lies_about_its_size_takes_no_memory(size, tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", room_entries(3), per_chunk=50, chunk_size=size)
    with pytest.raises(RecordingError):
        received(bag)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_bomb_is_refused_before_it_is_unpacked(compression, tmp_path):
    import lz4.frame

    from qvggt_ros.io.storage import zstd

    zeros = bytes(1 << 24)
    packed = zstd.compress(zeros) if compression == "zstd" else lz4.frame.compress(zeros)
    head = struct.pack("<QQQI", 1, 1, 1 << 20, 0) + text(compression)
    chunk = record(6, head + struct.pack("<Q", len(packed)) + packed)
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), extra=chunk)
    times, (warning,) = received(bag)
    assert times == times_of(*range(FRAMES))
    assert f"unpack to more than {1 << 20}" in warning


def test_a_definition_that_is_a_bomb_costs_its_topic(tmp_path):
    schema = text("pkg/msg/Bomb") + text("ros2msg") + text("string[300000000] x")
    extra = record(3, struct.pack("<H", 78) + schema)
    extra += record(4, struct.pack("<HH", 78, 78) + text("/bomb") + text("cdr") + text(""))
    bag = write_mcap(tmp_path / "in.mcap", room_entries(FRAMES), extra=extra)
    times, (warning,) = received(bag)
    assert times == times_of(*range(FRAMES))
    assert "/bomb" in warning


@pytest.mark.parametrize(
    "change", [(b"encoding", b"encodinX"), (b"uint32 height", b"uint32 heighX")]
)
def test_a_definition_without_its_fields_is_not_used(change, tmp_path):
    bag = write_mcap(tmp_path / "in.mcap", room_entries(4))
    data = bag.read_bytes()
    assert change[0] in data
    bag.write_bytes(data.replace(*change, 1))
    summary = run(bag, tmp_path)
    assert summary.metrics["result"]["published"] == 4


# SQLite


def logged(path: Path) -> Path:
    """A recording whose recorder was killed: most messages are in the write-ahead log."""
    whole = next(write_recording(path / "whole", room_entries(FRAMES), "sqlite3").glob("*.db3"))
    source = sqlite3.connect(whole)
    work = sqlite3.connect(path / "work.db3", isolation_level=None)
    work.execute("PRAGMA journal_mode=WAL")
    work.execute("PRAGMA wal_autocheckpoint=0")
    for (statement,) in source.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
        work.execute(statement)
    for table in ("schema", "metadata", "topics", "message_definitions", "messages"):
        for number, row in enumerate(source.execute(f"SELECT * FROM {table}")):
            work.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
            if table == "messages" and number == 9:
                work.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (path / "in").mkdir()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(path / f"work.db3{suffix}", path / "in" / f"x_0.db3{suffix}")
    work.close()
    source.close()
    return path / "in"


def test_a_write_ahead_log_is_read_with_its_file_and_left_as_it_is(tmp_path):
    bag = logged(tmp_path)
    before = {file.name: file.read_bytes() for file in bag.iterdir()}
    times, warnings = received(bag)
    assert times == times_of(*range(FRAMES))
    assert any("write-ahead log" in warning for warning in warnings)
    assert {file.name: file.read_bytes() for file in bag.iterdir()} == before


@pytest.mark.parametrize("name", ["flight#2", "run?1", "50%20speed", "a b&c=d", "ünï"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_names_that_mean_something_in_addresses_are_names(name, storage, tmp_path):
    bag = write_recording(tmp_path / "plain", room_entries(3), storage)
    bag = bag.rename(tmp_path / name)
    assert received(bag)[0] == times_of(*range(3))
    output = tmp_path / "out" / name
    replay(bag, output, RoomNetwork(), PLAIN, report=False, storage=storage)
    assert len(received(output / "bag", "/qvggt/pose")[0]) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ("UPDATE messages SET data = 'no bytes' WHERE id % 3 = 0", "content is no bytes"),
        ("UPDATE messages SET timestamp = 'noon' WHERE id % 3 = 0", "10 messages are left out"),
        ("UPDATE messages SET topic_id = 99 WHERE id % 3 = 0", "10 messages are left out"),
    ],
)
def test_rows_that_are_no_messages_are_left_out_with_a_warning(change, warning, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES), "sqlite3")
    with sqlite3.connect(next(bag.glob("*.db3"))) as database:
        query = "SELECT count(*) FROM messages WHERE id % 3 != 0"
        (kept,) = database.execute(query).fetchone()
        database.execute(change)
    with open_recording(bag) as recording:
        read = list(recording.messages(list(recording.types)))
        warnings = recording.warnings
    assert len(read) == kept == 2 * FRAMES
    assert any(warning in text for text in warnings)


def assert_read_as_far_as_it_goes(bag, in_error):
    times, warnings, error = received_or_error(bag)
    if error:
        assert in_error in error
    else:
        assert times == times_of(*range(len(times)))
        assert any("damaged" in warning for warning in warnings)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_cut_database_is_read_as_far_as_it_goes_or_says_how_to_recover_it(share, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(FRAMES), "sqlite3")
    (bag / "metadata.yaml").unlink()
    file = next(bag.glob("*.db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data)) // 4096 * 4096])
    assert_read_as_far_as_it_goes(bag, ".recover")


# Compression, metadata, splits


def compressed(path, mode, storage="sqlite3"):
    store = rosbags_typestore()
    writer = Writer(path, version=9, storage_plugin=STORAGES[storage])
    writer.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, name, time, message in room_entries(FRAMES):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, TYPES[name], typestore=store)
            data = store.serialize_cdr(message, TYPES[name])
            writer.write(connections[topic], time, data)
    return path


@pytest.mark.parametrize("bare", ["directory", "without metadata", "file"])
@pytest.mark.parametrize("mode", ["message", "file"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_compressed_recordings_are_read(storage, mode, bare, tmp_path):
    bag = compressed(tmp_path / "in", mode, storage)
    if bare != "directory":
        (bag / "metadata.yaml").unlink()
    if bare == "file":
        (bag,) = bag.iterdir()
    assert received(bag)[0] == times_of(*range(FRAMES))


def test_a_compressed_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path):
    bag = compressed(tmp_path / "in", "file", "mcap")
    (file,) = bag.glob("*.zstd")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    assert_read_as_far_as_it_goes(bag, "in.mcap")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_metadata_is_only_a_summary(storage, tmp_path):
    store = rosbags_typestore()
    with Writer(tmp_path / "in", version=9, storage_plugin=STORAGES[storage]) as writer:
        connection = writer.add_connection(
            IMAGES, TYPES["Image"], typestore=store, offered_qos_profiles=LATCHED
        )
        for index in range(3):
            data = store.serialize_cdr(image_message(index), TYPES["Image"])
            writer.write(connection, stamp_of(index) + 1_000_000, data)
    file = tmp_path / "in" / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    information = content["rosbag2_bagfile_information"]
    for topic in information["topics_with_message_count"]:
        topic["topic_metadata"]["offered_qos_profiles"] = ""
    information["version"] = 99
    file.write_text(yaml.safe_dump(content))
    assert received(tmp_path / "in")[0] == times_of(*range(3))


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "7",
        "rosbag2_bagfile_information: 5",
        "rosbag2_bagfile_information: {relative_file_paths: [1, {}, null]}",
        "rosbag2_bagfile_information: {relative_file_paths: ['../../../etc/passwd', 'in.mcap']}",
        "!!python/object/apply:os.system ['touch pwned']",
        "[" * 5000,
        "\0",
    ],
)
def test_metadata_that_is_none_costs_nothing_and_does_nothing(metadata, tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(3))
    (bag / "metadata.yaml").write_text(metadata)
    assert received(bag)[0] == times_of(*range(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_files_of_a_split_come_in_the_order_of_their_numbers_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    entries = room_entries(12)
    names = [f"in_{index}.mcap" for index in range(12)]
    for index, name in enumerate(names):
        if index != 7:
            write_mcap(tmp_path / "in" / name, entries[3 * index : 3 * index + 3])
    information = {"relative_file_paths": names}
    (tmp_path / "in" / "metadata.yaml").write_text(
        yaml.safe_dump({"rosbag2_bagfile_information": information})
    )
    times, warnings = received(tmp_path / "in")
    assert times == times_of(*(index for index in range(12) if index != 7))
    assert any("in_7.mcap" in warning for warning in warnings)


def test_one_file_of_a_split_that_is_no_use_costs_itself(tmp_path):
    (tmp_path / "in").mkdir()
    write_mcap(tmp_path / "in" / "in_0.mcap", room_entries(3))
    (tmp_path / "in" / "in_1.mcap").write_bytes(b"no recording")
    times, warnings = received(tmp_path / "in")
    assert times == times_of(*range(3))
    assert any("in_1.mcap is left out" in warning for warning in warnings)


def test_what_is_no_regular_file_is_no_part_of_a_recording(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(3))
    os.mkfifo(bag / "a.mcap")
    (bag / "b.mcap").mkdir()
    (bag / "c.mcap").symlink_to("c.mcap")
    (bag / "d.db3").symlink_to("nowhere")
    (bag / "metadata.yaml").unlink()
    assert received(bag)[0] == times_of(*range(3))


@pytest.mark.parametrize("name", ["flight", "flight.bin", "flight.mcap", "flight.db3", "f.MCAP"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "packed"])
def test_a_file_is_what_it_holds_whatever_its_name(storage, name, tmp_path):
    if storage == "packed":
        bag = compressed(tmp_path / "in", "file", "mcap")
    else:
        bag = write_recording(tmp_path / "in", room_entries(FRAMES), storage)
    (bag / "metadata.yaml").unlink()
    (file,) = bag.iterdir()
    assert received(file.rename(tmp_path / name))[0] == times_of(*range(FRAMES))


@pytest.mark.parametrize("name", ["x.bag", "x", "in/x.bag", "x.mcap"])
def test_a_ros_1_recording_is_called_one(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"#ROSBAG V2.0\n" + bytes(4096))
    with pytest.raises(RecordingError, match=r"ROS 1 recording: .*rosbags-convert"):
        received(path.parent if "/" in name else path)


def test_a_file_beside_those_that_metadata_names_is_left_out_and_named(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(3))
    write_mcap(bag / "copy.mcap", room_entries(6))
    times, warnings = received(bag)
    assert times == times_of(*range(3))
    assert any("does not name are left out: ['copy.mcap']" in warning for warning in warnings)


@pytest.mark.parametrize("name", ["a" * 5000, "in\0put", "/dev/null", "/dev/zero"])
def test_odd_paths_are_explained(name, tmp_path):
    with pytest.raises(RecordingError):
        received(Path(name) if name.startswith("/") else tmp_path / name)


# Stamps and order of images


def test_an_image_without_a_stamp_has_the_time_of_its_receipt(tmp_path):
    entries = room_entries(
        FRAMES,
        lambda i: image_message(i, header=header(i, stamp_ns=0)) if i == 4 else image_message(i),
    )
    summary = run(write_recording(tmp_path / "in", entries), tmp_path)
    assert summary.metrics["result"]["segment_frames"] == [FRAMES]


def test_a_camera_without_stamps_gives_a_map_by_receive_times(tmp_path):
    entries = room_entries(FRAMES, lambda i: image_message(i, header=header(i, stamp_ns=0)))
    summary = run(write_recording(tmp_path / "in", entries), tmp_path)
    assert summary.metrics["result"]["segment_frames"] == [FRAMES]
    assert summary.metrics["accuracy"]["segments"][0]["compared"] == FRAMES


def test_neighbours_that_were_swapped_are_put_in_order(tmp_path):
    entries = room_entries(FRAMES)
    for first in (2, 6):
        a, b = (3 * index + 1 for index in (first, first + 1))
        (topic, name, time, one), (_, _, later, other) = entries[a], entries[b]
        entries[a], entries[b] = (topic, name, time, other), (topic, name, later, one)
    summary = run(write_recording(tmp_path / "in", entries), tmp_path)
    assert summary.metrics["result"]["segment_frames"] == [FRAMES]
    found = summary.metrics["accuracy"]["segments"][0]["alignments"]["sim3"]
    assert found["translation"]["rmse"] < 1e-5


@pytest.mark.parametrize(("sec", "nanosec"), [(2**31 - 1, 2**32 - 1), (-(2**31), 0)])
def test_a_stamp_that_is_no_time_costs_its_image(sec, nanosec, tmp_path):
    def image(index):
        message = image_message(index)
        if index == 4:
            message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        return message

    summary = run(write_recording(tmp_path / "in", room_entries(FRAMES, image)), tmp_path)
    assert summary.metrics["result"]["published"] == FRAMES - 1
    ((reason, count),) = summary.metrics["result"]["rejected"].items()
    assert (count, "is no time" in reason) == (1, True)


# Poses and transforms


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1e-200, 0, 0, 0],
        [0, 0, 0, 1e300, 1e300, 0, 0],
        [1e308, 0, 0, 0, 0, 0, 1],
        [np.nan, 0, 0, 0, 0, 0, 1],
        [0, np.inf, 0, 0, 0, 0, 1],
    ],
)
def test_a_pose_that_is_none_is_refused_with_its_numbers(numbers):
    message = M.PoseStamped(
        header=header(0),
        pose=M.Pose(
            position=M.Point(**dict(zip("xyz", map(float, numbers[:3]), strict=True))),
            orientation=M.Quaternion(**dict(zip("xyzw", map(float, numbers[3:]), strict=True))),
        ),
    )
    with pytest.raises(RecordingError, match="is no pose"):
        read_pose(message)


# Pictures


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "i420", "yuv420", "yv12"])
def test_pictures_in_planes_are_decoded(encoding):
    rgb = np.zeros((16, 24, 3), np.uint8)
    rgb[:8, :, 0], rgb[8:, :, 2] = 200, 180
    i420 = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    size = 16 * 24
    y, u, v = i420[:size], i420[size : size * 5 // 4], i420[size * 5 // 4 :]
    planes = {
        "nv12": [y, np.stack([u, v], 1).ravel()],
        "nv21": [y, np.stack([v, u], 1).ravel()],
        "yv12": [y, v, u],
    }.get(encoding, [y, u, v])
    data = np.concatenate(planes)
    message = M.Image(
        header=header(0), height=16, width=24, encoding=encoding, is_bigendian=0, step=24, data=data
    )
    assert np.abs(decode_image(message).astype(int) - rgb).max() < 12
    message.data = data[:-1]
    with pytest.raises(ImageError, match="both sides must be even"):
        decode_image(message)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encoding", ["mono16", "rgb16"])
def test_what_a_camera_delivers_in_16_bits_becomes_a_picture(encoding, bits):
    channels = 3 if encoding == "rgb16" else 1
    ramp = np.linspace(0, (1 << bits) - 1, 40 * channels).astype("<u2").reshape(4, -1)
    message = M.Image(
        header=header(0),
        height=4,
        width=10,
        encoding=encoding,
        is_bigendian=0,
        step=20 * channels,
        data=ramp.view(np.uint8).reshape(-1),
    )
    warnings: list[str] = []
    decoder = PictureDecoder(warnings.append)
    picture = decoder.decode(message)
    assert picture.max() == 255
    assert (len(warnings) == 1) == (bits < 16)
    # A darker image after it is shown as dark as it is.
    message.data = (ramp // 4).astype("<u2").view(np.uint8).reshape(-1)
    assert decoder.decode(message).max() == 63


# Calibration


def test_zeros_at_the_end_of_the_coefficients_add_nothing():
    d = np.array([-0.2, 0.05, 0.001, 0.0, 0.01])
    five = camera_from_info(camera_info_message(0, d=d), WIDTH, HEIGHT)
    eight = camera_from_info(camera_info_message(0, d=np.append(d, np.zeros(3))), WIDTH, HEIGHT)
    assert eight is not None
    assert five is not None
    assert eight.distortion == five.distortion


def test_an_empty_projection_leaves_the_matrix():
    info = camera_info_message(0, p=np.zeros(12))
    camera = camera_from_info(info, WIDTH, HEIGHT, rectified=True)
    assert camera is not None
    assert camera.intrinsics[0, 0] == info.k[0]


@pytest.mark.parametrize(
    ("k", "says"),
    [
        ([1e-300, 0, 28, 0, 44, 21, 0, 0, 1], "focal lengths"),
        ([44, 0, 28, 0, 1e9, 21, 0, 0, 1], "focal lengths"),
        ([44, 0, 700, 0, 44, 21, 0, 0, 1], "principal point"),
        ([44, 0, 28, 0, 44, -5, 0, 0, 1], "principal point"),
    ],
)
def test_a_calibration_that_no_lens_has_is_refused(k, says):
    with pytest.raises(ImageError, match=says):
        camera_from_info(camera_info_message(0, k=np.array(k, float)), WIDTH, HEIGHT)


# Which topics


def choose(entries, tmp_path, **named):
    with open_recording(write_recording(tmp_path / "in", entries)) as recording:
        return choose_topics(recording, **named), odometry_topic(recording)


@pytest.mark.parametrize("change", ["frame", "aspect"])
def test_another_cameras_calibration_is_not_taken(change, tmp_path):
    changes = {"frame": {"header": header(0, "depth_optical")}, "aspect": {"width": 10}}[change]
    entries = [e for e in room_entries(3) if e[1] == "Image"]
    entries = [("/webcam/image_raw", *e[1:]) for e in entries]
    info = camera_info_message(0, **changes)
    entries.append(("/other/camera_info", "CameraInfo", stamp_of(0), info))
    topics, _ = choose(entries, tmp_path)
    assert topics.camera_info is None
    assert "/other/camera_info is not taken" in topics.notes[0]
    summary = run(tmp_path / "in", tmp_path)
    assert topics.notes[0] in summary.warnings


@pytest.mark.parametrize("topic", ["/ground_robot/odom", "/background/odom", "/agt/odom"])
def test_names_that_only_look_like_truth_are_odometry(topic, tmp_path):
    entries = [*room_entries(2)[1:3], odometry_entry(topic)]
    assert choose(entries, tmp_path)[1] == topic
    assert run(tmp_path / "in", tmp_path).metrics["accuracy"] is None


@pytest.mark.parametrize(
    "topic", ["/odom_ground_truth", "/gt/odom", "/groundtruth", "/Ground_Truth"]
)
def test_what_is_called_truth_is_no_odometry(topic, tmp_path):
    assert choose([*room_entries(2)[1:3], odometry_entry(topic)], tmp_path)[1] is None


def odometry_entry(topic, index=0):
    types = rosbags_typestore().types
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    pose = M.Pose(
        position=M.Point(x=0.1 * index, y=0.0, z=0.0),
        orientation=M.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
    )
    message = M.Odometry(
        header=header(index, "odom"),
        child_frame_id="base_link",
        pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.zeros(36)),
        twist=types["geometry_msgs/msg/TwistWithCovariance"](
            twist=types["geometry_msgs/msg/Twist"](linear=zero, angular=zero),
            covariance=np.zeros(36),
        ),
    )
    return (topic, "Odometry", stamp_of(index), message)


def test_two_pictures_of_one_camera_without_usual_names_are_listed(tmp_path):
    entries = [e for e in room_entries(3) if e[1] == "Image"]
    both = [(f"/camera/{name}", *e[1:]) for e in entries for name in ("stream", "annotated")]
    with pytest.raises(RecordingError, match="several images of one camera") as caught:
        choose(both, tmp_path)
    assert "/camera/annotated" in str(caught.value)
    topics, _ = choose(both, tmp_path / "2", image_topic="/camera/stream")
    assert topics.image == "/camera/stream"


def test_a_raw_topic_that_was_recorded_thinly_gives_way_to_its_twin(tmp_path):
    entries = []
    for topic, name, time, message in room_entries(FRAMES):
        if name != "Image":
            entries.append((topic, name, time, message))
            continue
        stream = io.BytesIO()
        Image.fromarray(message.data.reshape(HEIGHT, WIDTH, 3)).save(stream, format="PNG")
        data = np.frombuffer(stream.getvalue(), np.uint8)
        twin = M.CompressedImage(header=message.header, format="png", data=data)
        entries.append((f"{topic}/compressed", "CompressedImage", time, twin))
        if message.header.stamp.nanosec == 0:
            entries.append((topic, name, time, message))
    topics, _ = choose(entries, tmp_path)
    assert topics.image == f"{IMAGES}/compressed"
    assert "1 messages" in topics.notes[0]


def test_why_there_is_no_image_is_reported_per_topic(tmp_path):
    store = rosbags_typestore()
    with Writer(tmp_path / "in", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/front/image_raw", TYPES["Image"], typestore=store)
        info = writer.add_connection("/camera_info", TYPES["CameraInfo"], typestore=store)
        data = store.serialize_cdr(camera_info_message(0), TYPES["CameraInfo"])
        writer.write(info, stamp_of(0), data)
    for named in ({}, {"image_topic": "/front/image_raw"}):
        with (
            open_recording(tmp_path / "in") as recording,
            pytest.raises(RecordingError, match=r"/front/image_raw.* holds no message"),
        ):
            choose_topics(recording, **named)


def test_odometry_of_another_clock_is_explained(tmp_path):
    entries = room_entries(FRAMES)
    for index in range(FRAMES):
        topic, name, time, message = odometry_entry("/odom", index)
        message.header.stamp.sec -= 9 * 3600
        entries.append((topic, name, time, message))
    summary = run(write_recording(tmp_path / "in", entries), tmp_path, odometry=True)
    assert any("no time in common, 32399" in warning for warning in summary.warnings)
    assert summary.metrics["recording"]["odometry_topic"] == "/odom"
