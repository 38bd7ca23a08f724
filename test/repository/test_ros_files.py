"""What a ROS user installs beside the code, checked without ROS: names, values, documents."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from qvggt_core.doctor.ros_environment import SUPPORTED
from qvggt_core.parameters import Parameters
from qvggt_ros.io.messages import TYPES
from qvggt_ros.publishing import OUTPUTS

ROOT = Path(__file__).parents[2]
FUTURE = "from __future__ import annotations\n"
CONFIG = ROOT / "config"
PRESETS = sorted((CONFIG / "presets").glob("*.yaml"))
TOPICS = {f"/qvggt/{topic}" for topic in OUTPUTS} | {"/diagnostics"}
NODE = ast.parse(
    "".join(
        (ROOT / f"qvggt_ros/drivers/{name}.py").read_text(encoding="utf-8").replace(FUTURE, "")
        for name in ("node", "node_parameters", "node_services", "node_transforms")
    )
)
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))


def launch_arguments(path: Path) -> set[str]:
    """The first entries of the tuple ARGUMENTS."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "ARGUMENTS":
            return {entry.elts[0].value for entry in statement.value.elts}
    raise AssertionError(f"{path} has no ARGUMENTS")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_parameters_that_differ_from_the_defaults(preset: Path) -> None:
    values = yaml.safe_load(preset.read_text())["/**"]["ros__parameters"]
    changed = Parameters.read(preset).model_dump()
    default = Parameters().model_dump()
    assert changed != default
    assert set(values) <= set(default)


def test_the_presets_are_those_that_are_documented() -> None:
    page = (ROOT / "docs/ros.md").read_text(encoding="utf-8")
    assert {path.stem for path in PRESETS} == {
        "indoor",
        "uav",
        "low_memory",
        "robot_cpu",
        "jetson",
        "desktop_gpu",
    }
    assert all(f"`{path.stem}`" in page for path in PRESETS)


def test_rviz_shows_topics_that_are_published() -> None:
    text = (CONFIG / "qvggt.rviz").read_text()
    displays = yaml.safe_load(text)["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert shown == {"/qvggt/points", "/qvggt/path", "/qvggt/pose", "/qvggt/depth/image"}
    assert shown <= TOPICS


def test_foxglove_shows_topics_that_are_published() -> None:
    text = (CONFIG / "qvggt_foxglove.json").read_text()
    layout = json.loads(text)
    shown = set(re.findall(r'"(/(?:qvggt|diagnostics)[\w/]*)', text))
    assert shown <= TOPICS
    assert {"/qvggt/points", "/qvggt/path", "/qvggt/depth/image"} <= shown

    def panels(node: object) -> set[str]:
        return {node} if isinstance(node, str) else panels(node["first"]) | panels(node["second"])

    assert panels(layout["layout"]) == set(layout["configById"])


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_launch_argument_is_documented(path: Path) -> None:
    page = (ROOT / "docs/ros.md").read_text(encoding="utf-8")
    assert all(f"`{argument}`" in page for argument in launch_arguments(path))


def test_launch_arguments_that_users_expect_are_there() -> None:
    assert launch_arguments(ROOT / "launch/reconstruct.launch.py") >= {
        "image_topic",
        "camera_info_topic",
        "image_transport",
        "checkpoint",
        "params_file",
        "preset",
        "namespace",
        "use_sim_time",
        "autostart",
        "rviz",
        "bag",
        "log_level",
    }


def test_the_node_uses_parameters_and_messages_that_there_are() -> None:
    parameters = {
        node.attr
        for node in ast.walk(NODE)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name | ast.Attribute)
        and (getattr(node.value, "id", "") or getattr(node.value, "attr", ""))
        in {"parameters", "_parameters_given"}
    } - {"with_values"}
    assert parameters
    assert parameters <= set(Parameters.model_fields)
    named = {
        node.attr
        for node in ast.walk(NODE)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_messages"
    }
    assert named <= set(TYPES)


def test_packages_that_the_node_imports_are_declared() -> None:
    declared = (ROOT / "package.xml").read_text()
    imported = {
        (node.module or "").split(".")[0]
        for node in ast.walk(NODE)
        if isinstance(node, ast.ImportFrom)
    }
    for package in ("rcl_interfaces", "std_srvs", "message_filters", "tf2_ros"):
        assert package in imported
        assert f"<exec_depend>{package}</exec_depend>" in declared
    for name in {full_name.split("/")[0] for full_name in TYPES.values()} | {"rclpy"}:
        assert f"<exec_depend>{name}</exec_depend>" in declared, name


def test_everything_installed_is_there() -> None:
    setup = (ROOT / "setup.py").read_text()
    for name in ("launch", "config", "config/presets"):
        assert f'files("{name}"' in setup
    assert "share/{NAME}/launch" in setup
    assert "reconstruct = qvggt_ros.drivers.node_main:main" in setup


def test_requirements_beside_ros_keep_what_ros_needs() -> None:
    for distribution, numpy in {
        "humble": "numpy<2",
        "jazzy": "numpy<2",
        "lyrical": "numpy>=2",
        "rolling": "numpy>=2",
    }.items():
        lines = (ROOT / f"constraints/{distribution}.txt").read_text().splitlines()
        assert numpy in lines
        assert ("opencv-python-headless<4.12" in lines) == (numpy == "numpy<2")


def test_the_container_is_one_file_for_all_distributions() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert re.search(r"^ARG ROS_DISTRO=\w+$", text, re.MULTILINE)
    assert "FROM ros:${ROS_DISTRO}" in text
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    packages = set(re.findall(r"ros-\$\{ROS_DISTRO\}-([a-z0-9-]+)", text))
    assert {"message-filters", "tf2-ros-py", "rosbag2-storage-mcap"} <= packages
    workflow = yaml.safe_load((ROOT / ".github/workflows/ros.yml").read_text())
    distributions = workflow["jobs"]["ros"]["strategy"]["matrix"]["distro"]
    assert set(distributions) == set(SUPPORTED)
    assert all((ROOT / f"constraints/{name}.txt").is_file() for name in distributions)
    steps = " ".join(step.get("run", "") for step in workflow["jobs"]["ros"]["steps"])
    for middleware in ("rmw_fastrtps_cpp", "rmw_cyclonedds_cpp", "rmw_zenoh_cpp"):
        assert middleware in steps
        assert middleware.replace("_", "-") in packages


def test_workflows_call_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        text = path.read_text()
        assert yaml.safe_load(text)
        for target in re.findall(r"\bmake (?:-C \S+ )?([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
