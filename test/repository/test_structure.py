"""The shape of the code: imports point down, and ROS stays where it belongs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROS_PACKAGES = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "message_filters",
    "nav_msgs",
    "rcl_interfaces",
    "rclpy",
    "rosbags",
    "sensor_msgs",
    "sensor_msgs_py",
    "std_msgs",
    "std_srvs",
    "tf2_msgs",
    "tf2_ros",
}

ROS_FILES = {"node.py", "ros_graph.py"}
"""The files that need an installed ROS."""


def imported(path: Path) -> Iterator[str]:
    """Names of the top-level packages and of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no files in {package}"
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("kernels/qvggt_kernels", {"qvggt_core", "qvggt_ros"} | ROS_PACKAGES),
        ("qvggt_core", {"qvggt_ros"} | ROS_PACKAGES),
        (
            "qvggt_ros",
            {"launch", "launch_ros", "lifecycle_msgs", "message_filters", "rclpy", "tf2_ros"},
        ),
    ],
)
def test_imports_point_down(package: str, forbidden: set[str]) -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(package)
        for name in imported(path)
        if name.split(".")[0] in forbidden and path.name not in ROS_FILES
    ]
    assert not broken


def test_only_conversions_knows_message_fields() -> None:
    for path in files("qvggt_ros"):
        if path.name in {"conversions.py", "messages.py", "synthetic_bag.py"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert "frame_id=" not in text, f"{path.name} fills message headers itself"


@pytest.mark.parametrize("package", ["kernels/qvggt_kernels", "qvggt_core", "qvggt_ros"])
def test_every_file_opens_with_a_sentence_that_says_what_it_is(package: str) -> None:
    for path in files(package):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path
        assert docstring.splitlines()[0].endswith((".", ":")), path
