"""The shape of the code: imports point down, and ROS stays where it belongs."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
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

ROS_FILES = {
    "node.py",
    "node_parameters.py",
    "node_services.py",
    "node_transforms.py",
    "ros_graph.py",
}
"""The files that need an installed ROS."""


PACKAGES = {
    "qvggt_kernels": ROOT / "kernels" / "qvggt_kernels",
    "qvggt_core": ROOT / "qvggt_core",
    "qvggt_ros": ROOT / "qvggt_ros",
}

LAYERS = {
    "qvggt_kernels": (
        ("cpu_features", "fp8", "packing", "selfcheck"),
        ("gemm_configs", "hadamard", "integer", "registry"),
        ("weight",),
        ("reference",),
        ("native", "triton"),
        ("cpu",),
        ("backends",),
        ("linear_operator",),
        ("operators", "convolution", "dense_linear", "layer_norm"),
        ("dense_output",),
        ("linear",),
        ("tuning",),
        ("offline",),
    ),
    "qvggt_core": (
        ("errors",),
        ("optional", "util"),
        ("parameters",),
        ("geometry",),
        ("model",),
        ("stream",),
        ("evaluate", "occupancy"),
        ("datasets", "doctor"),
        ("protocols", "synthetic"),
        ("training",),
        ("measure",),
        ("quantize",),
        ("results",),
        ("export", "report", "sequence"),
    ),
    "qvggt_ros": (
        ("io",),
        ("calibrations", "counters", "masks", "odometry", "steps", "viewer_access"),
        ("metric_sensors", "publishing"),
        ("session", "evaluation", "viewer"),
        ("drivers",),
        ("cli",),
    ),
}
"""From bottom to top: folders and files of each package, those of one layer side by side. A package
imports those before it; a layer imports those below it, and a folder itself."""


def module_of(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {
    module_of(package, path): path
    for package, directory in PACKAGES.items()
    for path in sorted(directory.rglob("*.py"))
}


def imported(path: Path, module: str = "") -> Iterator[str]:
    """Names of the modules that a file imports, but for those that only type checkers see.

    Relative imports are left out without the name of the file's own module.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (module or not node.level):
            name = resolve_name("." * node.level + (node.module or ""), package)
            inner = [f"{name}.{alias.name}" for alias in node.names]
            yield from (each if each in MODULES else name for each in inner)


IMPORTS = {
    module: {name for name in imported(path, module) if name in MODULES} - {module}
    for module, path in MODULES.items()
}
"""By module, the modules of these packages that it imports, wherever in its file."""


def rank(module: str) -> tuple[int, int]:
    """How high a module stands: its package, and its layer there."""
    package, *inner = module.split(".")
    height = list(LAYERS).index(package)
    if not inner:
        return height, len(LAYERS[package])
    layers = [i for i, names in enumerate(LAYERS[package]) if inner[0] in names]
    assert layers, f"{module}: add {inner[0]} to LAYERS"
    return height, layers[0]


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
def test_packages_import_what_lies_below_and_no_ros(package: str, forbidden: set[str]) -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(package)
        for name in imported(path)
        if name.split(".")[0] in forbidden and path.name not in ROS_FILES
    ]
    assert not broken


def test_imports_point_down_between_packages_and_folders() -> None:
    up = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if module.split(".")[:2] != other.split(".")[:2]
        and rank(other) >= rank(module)
        and "." in other
    }
    assert not up


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # names the circle, if there is one


def test_no_test_imports_a_test() -> None:
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "test").rglob("*.py"))
        for name in imported(path)
        if name.rpartition(".")[2].startswith("test_")
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "test/ros/node").glob("test_*.py")), ids=str)
def test_tests_of_the_node_are_skipped_without_ros(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    skip = text.find('pytest.importorskip("rclpy"')
    assert 0 < skip < min(text.find(f"\n{word} rclpy") % len(text) for word in ("from", "import"))


def test_only_conversions_fill_message_headers() -> None:
    for path in files("qvggt_ros"):
        if path.name in {"conversions.py", "messages.py", "synthesize.py"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert "frame_id=" not in text, f"{path.name} fills message headers itself"


@pytest.mark.parametrize("package", ["kernels/qvggt_kernels", "qvggt_core", "qvggt_ros"])
def test_every_file_opens_with_a_sentence_that_says_what_it_is(package: str) -> None:
    for path in files(package):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path
        assert docstring.splitlines()[0].endswith((".", ":")), path
