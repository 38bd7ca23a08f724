"""Each check finds its fault, passes what is sound, and names what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qvggt_core.doctor import (
    CameraStream,
    Finding,
    Level,
    check_camera_stream,
    check_ros_environment,
)
from qvggt_core.doctor.computing import cpu_kernels_finding, device_finding, thread_finding
from qvggt_core.doctor.installation import required_packages
from qvggt_core.doctor.machine import disk_finding, memory_finding, shared_memory_finding
from qvggt_core.doctor.ros_environment import (
    domain_finding,
    loopback_findings,
    python_finding,
    receive_buffer_finding,
)
from qvggt_core.geometry.camera import Camera

START = 1_700_000_000_000_000_000
STAMPS = START + 33_000_000 * np.arange(30)


def camera(fx=500.0, fy=500.0, cx=320.0, cy=240.0, model="plumb_bob"):
    return Camera(640, 480, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), model)


SOUND = CameraStream(
    image_topic="/camera/image_raw",
    image_frame="camera_optical_frame",
    width=640,
    height=480,
    stamps_ns=STAMPS,
    received_ns=STAMPS + 5_000_000,
    info_topic="/camera/camera_info",
    info_frame="camera_optical_frame",
    info_size=(640, 480),
    camera=camera(),
    has_odometry=True,
)


def worst(findings: list[Finding]) -> list[tuple[str, Level]]:
    return [(each.name, each.level) for each in findings if each.level is not Level.OK]


def test_a_finding_that_matters_comes_with_advice():
    with pytest.raises(ValueError, match="without advice"):
        Finding("x", Level.WARN, "broken")


def test_a_sound_camera_has_no_finding_that_matters():
    assert worst(check_camera_stream(SOUND)) == []


@pytest.mark.parametrize(
    ("change", "name", "level"),
    [
        ({"info_topic": None, "camera": None}, "calibration", Level.WARN),
        ({"camera": None}, "calibration", Level.WARN),
        ({"calibration_error": "K is not finite", "camera": None}, "calibration", Level.PROBLEM),
        ({"camera": camera(cx=700.0)}, "principal point", Level.PROBLEM),
        ({"camera": camera(cy=30.0)}, "principal point", Level.WARN),
        ({"camera": camera(fx=4.0, fy=4.0)}, "focal length", Level.PROBLEM),
        ({"camera": camera(fx=9000.0, fy=9000.0)}, "focal length", Level.PROBLEM),
        ({"camera": camera(fx=500.0, fy=600.0)}, "focal length", Level.WARN),
        ({"info_size": (1280, 960)}, "image size", Level.WARN),
        ({"info_frame": "other"}, "frame", Level.WARN),
        ({"image_frame": ""}, "frame", Level.WARN),
        ({"image_error": "odd encoding"}, "images", Level.PROBLEM),
        ({"stamps_ns": np.zeros(30, dtype=np.int64)}, "stamps", Level.PROBLEM),
        ({"stamps_ns": np.repeat(STAMPS[::2], 2)}, "stamps", Level.PROBLEM),
        ({"stamps_ns": STAMPS[::-1]}, "stamps", Level.PROBLEM),
        ({"stamps_ns": STAMPS[:1], "received_ns": STAMPS[:1]}, "stamps", Level.WARN),
        ({"received_ns": STAMPS + 90_000_000_000}, "clock", Level.WARN),
        ({"stamps_ns": STAMPS + 2_000_000_000 * (STAMPS[9] < STAMPS)}, "rate", Level.WARN),
        ({"has_odometry": False}, "metres", Level.WARN),
    ],
)
def test_what_is_wrong_with_a_camera_is_found_alone(change, name, level):
    assert worst(check_camera_stream(replace(SOUND, **change))) == [(name, level)]


def test_a_slow_camera_is_named_by_its_rate():
    stamps = START + 1_000_000_000 * np.arange(10)
    (finding,) = (
        each
        for each in check_camera_stream(replace(SOUND, stamps_ns=stamps, received_ns=stamps))
        if each.level is not Level.OK
    )
    assert finding.name == "rate"
    assert "1.0 Hz" in finding.found


def test_a_fisheye_lens_may_see_more_than_a_pinhole():
    fisheye = Camera(
        640,
        480,
        np.array([[80.0, 0, 320], [0, 80, 240], [0, 0, 1.0]]),
        "equidistant",
        (0.0, 0.0, 0.0, 0.0),
    )
    assert worst(check_camera_stream(replace(SOUND, camera=fisheye))) == []


def test_a_gpu_without_cuda_in_pytorch_is_found():
    assert device_finding("2.13.0+cpu", "cpu", driver=True).level is Level.WARN
    assert device_finding("2.13.0+cpu", "cpu", driver=False).level is Level.OK
    assert device_finding("2.13.0+cu128", "cuda", driver=True).level is Level.OK


def test_kernels_that_were_not_built_are_found_with_how_to_build_them():
    finding = cpu_kernels_finding("not built", "not built: no working C++ compiler")
    assert finding.level is Level.WARN
    assert "g++" in finding.advice
    assert cpu_kernels_finding("in use", None).level is Level.OK
    assert cpu_kernels_finding("not for this processor", None).level is Level.OK


def test_more_threads_than_cores_are_found_with_what_set_them():
    finding = thread_finding(8, 2, {"OMP_NUM_THREADS": "8"})
    assert finding.level is Level.WARN
    assert "OMP_NUM_THREADS=8" in finding.found
    assert "OMP_NUM_THREADS=2" in finding.advice
    assert thread_finding(2, 2, {}).level is Level.OK


def test_a_requirement_that_is_missing_or_too_old_is_named():
    findings = required_packages(["numpy>=1", "numpy>=999", "no-such-package>=1", "x; extra=='y'"])
    assert [(each.name, each.level) for each in findings] == [
        ("numpy", Level.PROBLEM),
        ("no-such-package", Level.PROBLEM),
    ]
    assert "pip install 'no-such-package>=1'" in findings[1].advice
    assert [each.level for each in required_packages(["numpy>=1"])] == [Level.OK]


def test_little_memory_disk_and_shared_memory_are_found(tmp_path, monkeypatch):
    assert memory_finding(10**9, 10**9).level is Level.PROBLEM
    assert memory_finding(10**10, 10**9).level is Level.OK
    assert memory_finding(None, 10**9) is None
    assert shared_memory_finding(64 << 20).level is Level.WARN
    assert shared_memory_finding(1 << 30).level is Level.OK
    for free, level in ((10**7, Level.PROBLEM), (10**9, Level.WARN), (10**11, Level.OK)):
        monkeypatch.setattr(
            "shutil.disk_usage", lambda _, free=free: type("usage", (), {"free": free})
        )
        assert disk_finding(tmp_path / "not" / "yet").level is level


def sourced(tmp_path, **changes) -> dict[str, str]:
    """Variables of a shell with a ROS that has one middleware."""
    packages = tmp_path / "share/ament_index/resource_index/rmw_typesupport"
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "rmw_fastrtps_cpp").touch()
    (packages / "rmw_cyclonedds_cpp").touch()
    return {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": str(tmp_path), **changes}


def found(tmp_path, monkeypatch, **changes):
    monkeypatch.setattr("qvggt_core.doctor.ros_environment.find_spec", lambda name: name)
    monkeypatch.setattr("qvggt_core.doctor.ros_environment._number", lambda *_, **__: 1 << 30)
    return worst(check_ros_environment(sourced(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"ROS_DISTRO": "rolling"}, []),
        ({"ROS_DISTRO": "foxy"}, [("ros", Level.WARN)]),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, []),
        ({"RMW_IMPLEMENTATION": "rmw_connextdds"}, [("rmw", Level.PROBLEM)]),
        ({"ROS_DOMAIN_ID": "300"}, [("ros domain", Level.PROBLEM)]),
        ({"ROS_DOMAIN_ID": "home"}, [("ros domain", Level.PROBLEM)]),
        ({"ROS_DOMAIN_ID": "200"}, [("ros domain", Level.WARN)]),
        ({"CYCLONEDDS_URI": "file:///no/such/file.xml"}, []),
        (
            {
                "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp",
                "CYCLONEDDS_URI": "file:///no/such/file.xml",
            },
            [("cyclonedds configuration", Level.PROBLEM)],
        ),
    ],
)
def test_what_is_wrong_with_a_ros_shell_is_found_alone(tmp_path, monkeypatch, changes, expected):
    assert found(tmp_path, monkeypatch, **changes) == expected


def test_without_a_setting_the_only_middleware_there_is_is_taken(tmp_path):
    variables = sourced(tmp_path)
    (tmp_path / "share/ament_index/resource_index/rmw_typesupport/rmw_fastrtps_cpp").unlink()
    (finding,) = (each for each in check_ros_environment(variables) if each.name == "rmw")
    assert finding.level is Level.OK
    assert "rmw_cyclonedds_cpp" in finding.found


def test_no_ros_is_a_problem_only_where_it_is_wanted():
    assert worst(check_ros_environment({})) == []
    assert worst(check_ros_environment({}, required=True)) == [("ros", Level.PROBLEM)]


def test_a_python_that_is_not_ros_s_is_found():
    finding = python_finding(lambda name: None, "/opt/ros/jazzy/lib/python3.12/site-packages")
    assert finding.level is Level.PROBLEM
    assert "3.12" in finding.found
    assert "--system-site-packages" in finding.advice


def test_a_loopback_without_multicast_and_a_small_buffer_are_found():
    assert worst(loopback_findings(0x9)) == [("loopback", Level.WARN)]
    assert worst(loopback_findings(0x1009)) == []
    assert receive_buffer_finding(212_992).level is Level.WARN
    assert receive_buffer_finding(1 << 26).level is Level.OK
    assert domain_finding({}).level is Level.OK
