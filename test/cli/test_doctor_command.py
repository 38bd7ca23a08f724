"""`qvggt doctor` finds each of these seeded faults, alone, and says what to do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import recordings as room
from support.commands import run

from qvggt_core.model.checkpoint import shipped_checkpoint
from qvggt_ros.io.messages import rosbags_messages

M = rosbags_messages()


def odometry(index: int):
    pose = room.pose_message(index)
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    return M.Odometry(
        header=pose.header,
        child_frame_id="base_link",
        pose=M.PoseWithCovariance(pose=pose.pose, covariance=np.zeros(36)),
        twist=M.TwistWithCovariance(
            twist=M.Twist(linear=zero, angular=zero), covariance=np.zeros(36)
        ),
    )


def recording(path, image=room.image_message, info=room.camera_info_message, frames=6):
    entries = []
    for index in range(frames):
        received = room.stamp_of(index) + 1_000_000
        entries += [
            ("/camera/image_raw", "Image", received, image(index)),
            ("/camera/camera_info", "CameraInfo", received, info(index)),
            ("/odom", "Odometry", received, odometry(index)),
        ]
    return room.write_recording(path / "bag", entries)


def info_with(**changes):
    return lambda index: room.camera_info_message(index, **changes)


def matrix(**changes):
    values = room.INTRINSICS.copy()
    for (row, column), value in changes.pop("at").items():
        values[row, column] = value
    return values.ravel()


def image_at(stamp):
    return lambda index: room.image_message(index, header=room.header(index, stamp_ns=stamp(index)))


def outside_point(path, monkeypatch):
    info = info_with(k=matrix(at={(0, 2): 3.0 * room.WIDTH}))
    return ["--bag", recording(path, info=info)], "principal point", "calibrate"


def focal_in_millimetres(path, monkeypatch):
    info = info_with(k=matrix(at={(0, 0): 4.0, (1, 1): 4.0}))
    return ["--bag", recording(path, info=info)], "focal length", "millimetres"


def info_of_another_aspect(path, monkeypatch):
    info = info_with(width=room.WIDTH, height=room.WIDTH, k=room.INTRINSICS.ravel())
    return ["--bag", recording(path, info=info)], "calibration", "calibrate"


def unknown_lens(path, monkeypatch):
    info = info_with(distortion_model="double_sphere", d=np.ones(2))
    return ["--bag", recording(path, info=info)], "calibration", "calibrate"


def stamps_that_stand_still(path, monkeypatch):
    image = image_at(lambda index: room.stamp_of(index // 2))
    return ["--bag", recording(path, image=image)], "stamps", "stamp of its own"


def stamps_of_zero(path, monkeypatch):
    image = image_at(lambda index: 0)
    return ["--bag", recording(path, image=image)], "stamps", "exposure"


def depth_only(path, monkeypatch):
    def depth(index):
        return room.image_message(
            index,
            encoding="32FC1",
            step=4 * room.WIDTH,
            data=np.zeros(4 * room.WIDTH * room.HEIGHT, np.uint8),
        )

    return ["--bag", recording(path, image=depth)], "recording", "ros2 bag record"


def truncated_recording(path, monkeypatch):
    bag = recording(path)
    (file,) = bag.glob("*.mcap")
    file.write_bytes(b"")
    return ["--bag", bag], "recording", "qvggt topics"


def truncated_checkpoint(path, monkeypatch):
    copy = shutil.copy(shipped_checkpoint(), path / "short.safetensors")
    with open(copy, "r+b") as file:
        file.truncate(1_000_000)
    return ["--checkpoint", copy], "checkpoint", "qvggt download"


def checkpoint_that_is_not_finite(path, monkeypatch):
    from safetensors import safe_open

    source = shipped_checkpoint()
    state = load_file(source)
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    name = next(name for name in sorted(state) if name.endswith(".scales"))
    state[name].view(-1)[0] = float("nan")
    save_file(state, path / "nan.safetensors", metadata)
    return ["--checkpoint", path / "nan.safetensors"], "checkpoint", "quantize again"


def no_such_checkpoint(path, monkeypatch):
    return ["--checkpoint", path / "none.safetensors"], "checkpoint", "qvggt download"


def no_ros(path, monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    return ["--ros"], "ros", "setup.bash"


def rmw_that_is_not_installed(path, monkeypatch):
    prefix = path / "ros"
    (prefix / "share/ament_index/resource_index/rmw_typesupport").mkdir(parents=True)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_zenoh_cpp")
    monkeypatch.setattr("qvggt_core.doctor.ros_environment.find_spec", lambda name: name)
    return [], "rmw", "ros-$ROS_DISTRO-rmw-zenoh-cpp"


def python_that_is_not_ros_s(path, monkeypatch):
    packages = path / "share/ament_index/resource_index/rmw_typesupport"
    packages.mkdir(parents=True)
    (packages / "rmw_fastrtps_cpp").touch()
    monkeypatch.setenv("ROS_DISTRO", "lyrical")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(path))
    monkeypatch.delenv("RMW_IMPLEMENTATION", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/opt/ros/lyrical/lib/python3.14/site-packages")
    monkeypatch.setattr("qvggt_core.doctor.ros_environment.find_spec", lambda name: None)
    return [], "ros python", "--system-site-packages"


def full_disk(path, monkeypatch):
    usage = type("usage", (), {"free": 10**6, "total": 10**12})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    return ["-o", path], "disk", "free some space"


FAULTS = [
    outside_point,
    focal_in_millimetres,
    info_of_another_aspect,
    unknown_lens,
    stamps_that_stand_still,
    stamps_of_zero,
    depth_only,
    truncated_recording,
    truncated_checkpoint,
    checkpoint_that_is_not_finite,
    no_such_checkpoint,
    no_ros,
    rmw_that_is_not_installed,
    python_that_is_not_ros_s,
    full_disk,
]


def problems(capsys, *arguments):
    status, printed, errors = run(capsys, "doctor", "--json", *arguments)
    assert errors == ""
    findings = [each for section in json.loads(printed).values() for each in section]
    return status, [each for each in findings if each["level"] == "problem"]


@pytest.mark.parametrize("seed_fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_seeded_fault_is_found_alone_with_what_to_do(seed_fault, capsys, tmp_path, monkeypatch):
    arguments, name, advice = seed_fault(tmp_path, monkeypatch)
    status, found = problems(capsys, *arguments)
    assert [each["name"] for each in found] == [name]
    assert advice in found[0]["advice"]
    assert status == 3


def test_what_is_sound_has_no_problem(capsys, tmp_path):
    status, found = problems(capsys, "--bag", recording(tmp_path))
    assert found == []
    assert status == 0


def test_the_printed_form_has_the_advice_below_its_finding(capsys, tmp_path):
    status, printed, _ = run(
        capsys, "doctor", "--bag", room.write_recording(tmp_path / "b", room.room_entries(3))
    )
    assert status == 0
    lines = printed.splitlines()
    (row,) = (number for number, line in enumerate(lines) if "no odometry" in line)
    assert "warn" in lines[row]
    assert "->" in "".join(lines[row + 1 : row + 3])
    assert "0 problems" in lines[-1]
