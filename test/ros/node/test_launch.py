"""`ros2 launch qvggt_ros reconstruct.launch.py`, as it is installed, with a recording."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")
ament_index_python = pytest.importorskip("ament_index_python")

import psutil
import rclpy
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rclpy.qos import QoSProfile
from robot import ros_class

from qvggt_ros.drivers.synthesize import write_bag

try:
    get_package_share_directory("qvggt_ros")
except PackageNotFoundError:
    pytest.skip(
        "qvggt_ros is not built: colcon build, source install/setup.bash", allow_module_level=True
    )


@pytest.fixture(scope="module")
def flight(tmp_path_factory) -> Path:
    return write_bag(
        tmp_path_factory.mktemp("flight") / "bag",
        world="studio",
        flight="survey",
        seed=1,
        frames=40,
        width=128,
        height=96,
        step=0.1,
    ).path


class Launch:
    """`ros2 launch` in a process group of its own, as a terminal starts it."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["ros2", "launch", "qvggt_ros", "reconstruct.launch.py", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.log.read_text()}"
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> float:
        """Press Ctrl-C; return the seconds until what was started is gone."""
        children, before = self.children(), time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        _, alive = psutil.wait_procs(children, timeout=20.0)
        seconds = time.monotonic() - before
        assert not alive, "orphans"
        self.process.wait(20.0)
        return seconds


@pytest.fixture
def launch(tmp_path):
    started: list[Launch] = []

    def start(*arguments: str) -> Launch:
        started.append(Launch(tmp_path / f"launch_{len(started)}.log", *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)


@pytest.fixture
def ears():
    rclpy.init()
    node = rclpy.create_node("ears")
    yield node
    node.destroy_node()
    rclpy.try_shutdown()


def listen(node, topic: str, name: str, count: int = 1, timeout_s: float = 60.0) -> list:
    received: list = []
    subscription = node.create_subscription(
        ros_class(name), topic, received.append, QoSProfile(depth=50)
    )
    end = time.monotonic() + timeout_s
    while len(received) < count:
        assert time.monotonic() < end, f"{len(received)} of {count} messages came on {topic}"
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_subscription(subscription)
    return received


def lifecycle(node: str, transition: str) -> None:
    done = subprocess.run(
        ["ros2", "lifecycle", "set", node, transition], capture_output=True, text=True, timeout=60
    )
    assert "successful" in done.stdout, done.stdout + done.stderr


def test_a_recording_gives_points_and_ctrl_c_ends_it(flight, launch, ears):
    it = launch(f"bag:={flight}", "publish_tf:=map_to_odom", "bag_loop:=true", "bag_rate:=0.5")
    points = listen(ears, "/qvggt/points", "PointCloud2", 4)
    assert all(message.width > 100 for message in points)
    assert {message.header.frame_id for message in points} == {"camera_optical_frame"}
    listen(ears, "/qvggt/pose", "PoseStamped")
    for transition in ("deactivate", "activate"):
        lifecycle("/qvggt/reconstruct", transition)
    listen(ears, "/qvggt/pose", "PoseStamped", 4)
    assert any("reconstruct" in " ".join(child.cmdline()) for child in it.children())
    seconds = it.interrupt()
    output = it.log.read_text()
    assert "Traceback" not in output, output
    # Of the node: a player that gets Ctrl-C from the terminal and from the launch may die of it.
    assert "[reconstruct-1]: process has finished cleanly" in output, output
    assert seconds < 2.0


def test_while_it_loads_ctrl_c_ends_it_too(launch):
    it = launch()
    it.wait_for("process started with pid")
    time.sleep(1.0)
    it.interrupt()
    assert "Traceback" not in it.log.read_text(), it.log.read_text()


def test_a_missing_checkpoint_is_said_and_ends_the_node(launch, tmp_path):
    it = launch(f"checkpoint:={tmp_path}/none.safetensors")
    assert it.process.wait(60.0) in (0, 1)
    output = it.log.read_text()
    assert f"{tmp_path}/none.safetensors" in output
    assert "Traceback" not in output, output


def test_without_autostart_the_life_cycle_is_in_other_hands(launch):
    it = launch("autostart:=false", "preset:=low_memory", "namespace:=other")
    get = ["ros2", "lifecycle", "get", "/other/reconstruct"]
    end = time.monotonic() + 60
    while "unconfigured" not in subprocess.run(get, capture_output=True, text=True).stdout:
        assert time.monotonic() < end, it.log.read_text()
    for transition in ("configure", "activate"):
        lifecycle("/other/reconstruct", transition)
    size = subprocess.run(
        ["ros2", "param", "get", "/other/reconstruct", "window_size"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "4" in size.stdout
    it.interrupt()


def test_a_recording_without_images_is_refused_by_name(launch, tmp_path):
    it = launch(f"bag:={tmp_path}/nothing")
    assert it.process.wait(60.0) != 0
    assert f"there is no recording at {tmp_path}/nothing" in it.log.read_text()
