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
import yaml
from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from rclpy.qos import QoSProfile
from robot import ros_class
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Writer

from qvggt_core.synthetic.lens import LensChoice
from qvggt_ros.drivers.synthesize import BagOptions, write_bag

try:
    get_package_share_directory("qvggt_ros")
except PackageNotFoundError:
    pytest.skip(
        "qvggt_ros is not built: colcon build, source install/setup.bash", allow_module_level=True
    )


@pytest.fixture(scope="module")
def flight(tmp_path_factory) -> Path:
    options = BagOptions(
        world="studio", flight="survey", seed=1, frames=40, step=0.1, lens=LensChoice(128, 96)
    )
    return write_bag(tmp_path_factory.mktemp("flight") / "bag", options).path


class Launch:
    """`ros2 launch` in a process group of its own, as a terminal starts it."""

    def __init__(
        self, log: Path, *arguments: str, file_name: str = "reconstruct.launch.py"
    ) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["ros2", "launch", "qvggt_ros", file_name, *arguments],
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

    def survivors(self) -> list[str]:
        """Commands of the launch's session that live on without it."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.pid != self.process.pid:
                    found.append(" ".join(process.cmdline()))
            except (OSError, psutil.Error):
                continue
        return found

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

    def start(*arguments: str, **options: str) -> Launch:
        started.append(Launch(tmp_path / f"launch_{len(started)}.log", *arguments, **options))
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


def test_a_missing_checkpoint_is_named_and_ends_the_node(launch, tmp_path):
    it = launch(f"checkpoint:={tmp_path}/none.safetensors")
    assert it.process.wait(60.0) in (0, 1)
    output = it.log.read_text()
    assert f"{tmp_path}/none.safetensors" in output
    assert "Traceback" not in output, output


def await_unconfigured(it, node):
    get = ["ros2", "lifecycle", "get", node]
    end = time.monotonic() + 60
    while "unconfigured" not in subprocess.run(get, capture_output=True, text=True).stdout:
        assert time.monotonic() < end, it.log.read_text()


def parameter_value(node, name):
    get = ["ros2", "param", "get", node, name]
    return subprocess.run(get, capture_output=True, text=True, timeout=60).stdout


def test_without_autostart_the_life_cycle_is_in_other_hands(launch):
    it = launch("autostart:=false", "preset:=low_memory", "namespace:=other")
    await_unconfigured(it, "/other/reconstruct")
    for transition in ("configure", "activate"):
        lifecycle("/other/reconstruct", transition)
    assert "4" in parameter_value("/other/reconstruct", "window_size")
    it.interrupt()


def rviz_is_installed() -> bool:
    try:
        return bool(get_package_prefix("rviz2"))
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    ("file_name", "argument", "message"),
    [
        ("reconstruct.launch.py", "bag:=/nothing/here", "bag:=/nothing/here: there is no such"),
        ("reconstruct.launch.py", "params_file:=/nothing.yaml", "params_file:=/nothing.yaml"),
        ("reconstruct.launch.py", "log_level:=loud", "loud"),
        ("reconstruct.launch.py", "image_topic:=a b", "image_topic:=a b is no name of a topic"),
        ("reconstruct.launch.py", "mask_topic:=//a//b/", "mask_topic:=//a//b/ is no name"),
        ("reconstruct.launch.py", "odom_topic:=/x;rm", "odom_topic:=/x;rm is no name"),
        ("reconstruct.launch.py", "cameras:=fr ont,left", "cameras:=fr ont,left is no name"),
        ("reconstruct.launch.py", "cameras:=,,", "cameras:=,, names no camera"),
        ("reconstruct.launch.py", "bag_rate:=-1", "bag_rate:=-1 is no number above 0"),
        ("reconstruct.launch.py", "bag_rate:=nan", "bag_rate:=nan is no number above 0"),
        pytest.param(
            *("reconstruct.launch.py", "rviz:=true", "rviz2 is not installed"),
            marks=pytest.mark.skipif(rviz_is_installed(), reason="rviz2 is installed"),
        ),
        ("replay_evaluate.launch.py", "bag:=/nothing/here", "bag:=/nothing/here: there is no such"),
    ],
)
def test_a_launch_that_fails_leaves_no_process(launch, file_name, argument, message):
    it = launch(argument, file_name=file_name)
    assert it.process.wait(60.0) != 0
    assert message in it.log.read_text()
    assert not it.survivors()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("reconstruct:\n  ros__parameters:\n    window_size: 4\n", "none for /qvggt/reconstruct"),
        ("/**:\n  ros__parameters: [1]\n", "none for /qvggt/reconstruct"),
        ("window_size: 4\n", "parameters for no node"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_a_parameter_file_that_would_have_no_effect_is_refused(launch, tmp_path, content, message):
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    it = launch(f"params_file:={path}", "namespace:=qvggt")
    assert it.process.wait(60.0) != 0
    assert message in it.log.read_text()


@pytest.mark.parametrize(
    ("key", "namespace"),
    [("/held/reconstruct", "held"), ("held", "held"), ("/*/reconstruct", "held"), ("/**", "a/b")],
)
def test_a_parameter_file_names_the_node_in_any_way_that_ros_has(launch, tmp_path, key, namespace):
    values = {"ros__parameters": {"autostart": False, "use_sim_time": True}}
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({key: {"reconstruct": values} if key == "held" else values}))
    it = launch(f"params_file:={path}", f"namespace:={namespace}")
    await_unconfigured(it, f"/{namespace}/reconstruct")
    assert "True" in parameter_value(f"/{namespace}/reconstruct", "use_sim_time")
    it.interrupt()


def test_a_parameter_file_holds_against_arguments_that_were_not_given(launch, tmp_path):
    file = tmp_path / "parameters.yaml"
    file.write_text("/**:\n  ros__parameters:\n    autostart: false\n    use_sim_time: true\n")
    it = launch(f"params_file:={file}", "namespace:=held")
    await_unconfigured(it, "/held/reconstruct")
    assert "True" in parameter_value("/held/reconstruct", "use_sim_time")
    it.interrupt()


def test_what_a_former_run_published_is_not_played(flight, launch, tmp_path):
    old = tmp_path / "old"
    with AnyReader([flight]) as reader, Writer(old, version=9) as writer:
        connections = {
            each.topic: writer.add_connection(each.topic, each.msgtype, typestore=reader.typestore)
            for each in reader.connections
        }
        pose = writer.add_connection(
            "/qvggt/pose", "geometry_msgs/msg/PoseStamped", typestore=reader.typestore
        )
        for connection, stamp, data in reader.messages():
            writer.write(connections[connection.topic], stamp, data)
            if connection.msgtype == pose.msgtype:
                writer.write(pose, stamp, data)
    it = launch(f"bag:={old}", "bag_loop:=true")
    it.wait_for("waiting for images")
    info = ["ros2", "topic", "info", "/qvggt/pose"]
    end = time.monotonic() + 60
    while "Publisher count: 1" not in (
        output := subprocess.run(info, capture_output=True, text=True).stdout
    ):
        assert time.monotonic() < end, output
    it.interrupt()
