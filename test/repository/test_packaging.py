"""Both installs find the package: pip's and colcon's."""

import ast
import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import entry_points, requires
from itertools import chain
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from qvggt_kernels import native

from qvggt_core.optional import OPTIONAL_PACKAGES

ROOT = Path(__file__).parents[2]
ROS_PACKAGES = {
    element.text
    for element in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")
    if element.text and not element.text.startswith("python3-")
}

COMPILED = (".cpp", ".h", ".so")
"""Sources are compiled, not installed, and the library is named after the interpreter."""


def test_package_xml_is_valid_and_named_like_everything_else() -> None:
    warnings: list[str] = []
    package = parse_package(str(ROOT / "package.xml"), warnings=warnings)
    assert not warnings
    assert package.name == "qvggt_ros"
    assert package.package_format == 3
    assert package.get_build_type() == "ament_python"
    assert (ROOT / "resource" / package.name).is_file()
    setup = (ROOT / "setup.py").read_text()
    assert f'NAME = "{package.name}"' in setup
    assert f'version="{package.version}"' in setup


def test_colcon_sees_an_ament_python_package(tmp_path: Path) -> None:
    """An invalid package.xml would make it a plain Python package that ROS cannot find."""
    workspace = tmp_path / "src" / "qvggt"
    shutil.copytree(
        ROOT,
        workspace,
        ignore=shutil.ignore_patterns(".git", ".venv", "out", "test", "build", "*.egg-info"),
    )
    colcon = Path(sys.executable).with_name("colcon")
    listed = subprocess.run(
        [colcon, "--log-base", "/dev/null", "list", "--base-paths", tmp_path / "src"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.split("\t")[0] == "qvggt_ros"
    assert listed.stdout.strip().endswith("(ros.ament_python)")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param([], id="copy"),
        pytest.param(["--symlink-install"], id="symlink", marks=pytest.mark.slow),
    ],
)
def test_colcon_builds_it_with_all_that_it_needs(tmp_path: Path, option: list[str]) -> None:
    workspace = tmp_path / "src" / "qvggt"
    shutil.copytree(
        ROOT,
        workspace,
        ignore=shutil.ignore_patterns(".git", ".venv", "out", "test", "build", "*.egg-info"),
    )
    built = subprocess.run(
        [sys.executable, "-m", "colcon", "--log-base", "/dev/null", "build", *option],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    prefix = tmp_path / "install" / "qvggt_ros"
    share = prefix / "share" / "qvggt_ros"
    for name in (
        "package.xml",
        "launch/reconstruct.launch.py",
        "launch/replay_evaluate.launch.py",
        "config/reconstruct.yaml",
        "config/presets/indoor.yaml",
        "config/qvggt.rviz",
    ):
        assert (share / name).is_file(), name
    assert (prefix / "share/ament_index/resource_index/packages/qvggt_ros").is_file()
    for script in ("qvggt", "reconstruct"):
        first = (prefix / "lib/qvggt_ros" / script).read_text().splitlines()[0]
        assert os.path.normpath(sys.executable) in first
    (network,) = (tmp_path / ("src/qvggt" if option else "install")).rglob(
        "qvggt-places-int4.safetensors"
    )
    assert network.stat().st_size > 1_000_000
    if native.status().startswith("in use"):
        (kernels,) = network.parents[2].rglob("native/_library*.so")
        assert kernels.stat().st_size > 10_000


def test_an_install_without_a_compiler_does_without_its_kernels(tmp_path: Path) -> None:
    workspace = tmp_path / "qvggt"
    left_out = (".git", ".venv", "out", "test", "build", "*.egg-info", "*.so")
    shutil.copytree(ROOT, workspace, ignore=shutil.ignore_patterns(*left_out))
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "build"],
        cwd=workspace,
        env={**os.environ, "CC": "no-compiler", "CXX": "no-compiler"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert list((tmp_path / "build").rglob("native/__init__.py"))
    assert not list(tmp_path.rglob("_library*.so"))


RECORDING_COMPILER = """#!/bin/sh
echo "$@" >> "$0.log"
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""


@pytest.mark.parametrize(
    ("machine", "its_own", "not_its_own"),
    [
        ("x86_64", ("gemm.cpp", "-mavx512bf16"), "dotprod.cpp"),
        ("x86_64", ("float_attention.cpp", "-mavx2"), "i8mm.cpp"),
        ("aarch64", ("dotprod.cpp", "-march=armv8.2-a+dotprod"), "gemm.cpp"),
        ("aarch64", ("i8mm.cpp", "-march=armv8.2-a+dotprod+i8mm"), "avx2.cpp"),
        ("aarch64", ("float_attention.cpp", "-fno-schedule-insns"), "attention.cpp"),
        ("riscv64", None, "interface.cpp"),
    ],
)
def test_a_build_compiles_the_kernels_of_its_machine(
    tmp_path: Path, machine: str, its_own: tuple[str, str] | None, not_its_own: str
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(RECORDING_COMPILER)
    compiler.chmod(0o755)
    program = (
        f"import platform, runpy, sys; platform.machine = lambda: {machine!r}; "
        "sys.argv[0] = 'setup.py'; runpy.run_path('setup.py', run_name='__main__')"
    )
    places = ("--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp")
    built = subprocess.run(
        [sys.executable, "-c", program, "-q", "build_ext", *places],
        cwd=ROOT,
        env={**os.environ, "CC": str(compiler), "CXX": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    log = tmp_path / "compiler.log"
    calls = log.read_text().splitlines() if log.exists() else []
    compiled = {Path(word).name: call for call in calls for word in call.split() if ".cpp" in word}
    assert not_its_own not in compiled
    assert (its_own is None) == (not compiled)
    if its_own is not None:
        name, option = its_own
        assert option in compiled[name].split()
        assert option not in compiled["interface.cpp"].split()


def test_scripts_go_where_ros2_run_looks() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["install"]["install_scripts"] == "$base/lib/qvggt_ros"
    assert config["develop"]["script_dir"] == "$base/lib/qvggt_ros"


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="qvggt")
    assert callable(command.load())


def listed(file: str) -> dict[str, SpecifierSet]:
    """Names and versions of a requirements file, without the files that it includes."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.partition("#")[0]) for line in lines if line[:1].isalpha()]
    return {requirement.name.lower(): requirement.specifier for requirement in found}


def test_there_is_one_list_of_requirements_and_it_is_installed() -> None:
    assert 'install_requires=requirements("requirements.in")' in (ROOT / "setup.py").read_text()
    assert listed("requirements-ros.txt") == {
        **{name: wanted for name, wanted in listed("requirements.in").items() if name != "torch"},
        "setuptools": SpecifierSet("<80"),
    }


def test_rosdep_keys_are_those_of_the_list() -> None:
    listed_keys = re.findall(r"# rosdep: (\S+)$", (ROOT / "requirements.in").read_text(), re.M)
    tree = ElementTree.parse(ROOT / "package.xml")
    declared = {element.text or "" for element in tree.iter("exec_depend")}
    assert {key for key in declared if key.startswith("python3-")} == set(listed_keys)


def test_imports_of_what_is_no_option_are_in_the_list() -> None:
    """A package that code imports at its top, and that only comes with another, may go with it."""
    modules = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "PIL": "pillow"}
    ours = {"qvggt_ros", "qvggt_core", "qvggt_kernels", *sys.stdlib_module_names}
    # Of rosbags, and of viser.
    with_others = {"lz4", "backports", "compression", "websockets"}
    needed = {
        name
        for package in ("qvggt_ros", "qvggt_core", "kernels/qvggt_kernels")
        for path in (ROOT / package).rglob("*.py")
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported_packages(statement)
    }
    unlisted = {
        name
        for name in needed - ours - set(OPTIONAL_PACKAGES) - ROS_PACKAGES - with_others
        if name not in {"gemlite", "torchao"}
        and modules.get(name, name).lower() not in listed("requirements.in")
    }
    assert not unlisted


def imported_packages(statement: ast.AST) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name.split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        return [statement.module.split(".")[0]]
    return []


def test_pins_are_releases_that_the_list_allows() -> None:
    pinned, needed = listed("requirements.txt"), listed("requirements.in")
    assert pinned.keys() == needed.keys()
    for name, specifier in pinned.items():
        (pin,) = specifier
        assert pin.operator == "=="
        assert pin.version in needed[name], name


def test_the_pinned_triton_is_the_one_that_pytorch_needs() -> None:
    """Else `make setup` finds no solution where PyTorch's CUDA build is taken."""
    needed = [Requirement(each) for each in requires("torch") or ()]
    wanted = [
        each.specifier for each in needed if each.name == "triton" and "extra" not in str(each)
    ]
    if not wanted:
        pytest.skip("this build of PyTorch needs no Triton: it is the one for the CPU")
    assert [listed("requirements-dev.txt")["triton"]] == wanted


def test_what_the_extras_bring_is_pinned_for_the_tests() -> None:
    pinned = {
        line.split("==")[0].lower()
        for file in ROOT.glob("requirements*.txt")
        for line in file.read_text().splitlines()
        if "==" in line
    }
    extras = re.search(
        r"extras_require=\{(.*?)\n    \}", (ROOT / "setup.py").read_text(), re.DOTALL
    )
    assert extras
    names = set(re.findall(r'"([a-z_\-]+)[^"]*"[,\]]', extras[1]))
    assert {"cyclonedds", "pytest"} <= names
    assert names <= pinned


@pytest.mark.parametrize("key", ["sensor_msgs", "geometry_msgs", "nav_msgs", "tf2_msgs"])
def test_message_packages_are_declared_to_ros(key: str) -> None:
    tree = ElementTree.parse(ROOT / "package.xml")
    assert key in {element.text for element in tree.iter("exec_depend")}


def test_what_is_no_python_is_installed_too(tmp_path: Path) -> None:
    """Templates, scripts, networks: an install without them would fail only when used."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for directory, package in (
        ("qvggt_core", "qvggt_core"),
        ("kernels/qvggt_kernels", "qvggt_kernels"),
    ):
        data = {
            path.relative_to(ROOT / directory)
            for path in (ROOT / directory).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc", *COMPILED)
        }
        assert data
        assert not [path for path in data if not (tmp_path / package / path).is_file()]


@pytest.mark.parametrize("extra", ["viz", "test"])
def test_what_tests_need_of_the_extras_is_pinned(extra: str) -> None:
    pinned = (ROOT / "requirements-dev.txt").read_text().lower()
    listed = re.search(rf'"{extra}": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.DOTALL)
    assert listed
    for name in re.findall(r'"([A-Za-z0-9_\-]+)', listed[1]):
        assert f"\n{name.lower()}==" in pinned


def test_wheels_run_on_every_processor_of_their_architecture() -> None:
    """Each kernel is compiled for its own instructions, nothing for those of the build machine."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    linux = settings["cibuildwheel"]["linux"]
    assert "--exclude libgomp.so.1" in linux["repair-wheel-command"], "one OpenMP, PyTorch's"
    assert {linux[f"manylinux-{each}-image"] for each in ("x86_64", "aarch64")} == {
        "manylinux_2_28"
    }
    directory = ROOT / "kernels/qvggt_kernels/native"
    compilation = runpy.run_path(str(directory / "compilation.py"))
    sources = compilation["SOURCES"]
    options = [*compilation["OPTIONS"], *chain(*chain(*map(dict.values, sources.values())))]
    assert not [option for option in options if re.match(r"-m(arch|tune|cpu)=native", option)]
    compiled = set(chain(*sources.values()))
    assert compiled == {path.name for path in directory.glob("*.cpp")}, "each is compiled somewhere"
    for name, flags in sources["x86_64"].items():
        short = '"short_vectors.h"' in _with_headers(directory / name)
        assert not (short and "-mavx512f" in flags), f"{name} is compiled for AVX-512"
    for name, flags in sources["aarch64"].items():
        wanted = {"i8mm.cpp": ["armv8.2-a+dotprod+i8mm"], "dotprod.cpp": ["armv8.2-a+dotprod"]}
        found = re.findall(r"-march=(\S+)", " ".join(flags))
        assert found == wanted.get(name, []), f"{name} may run on any ARMv8 processor"


def _with_headers(path: Path) -> str:
    """The text of a source and of all of ours that it includes."""
    text = path.read_text(encoding="utf-8")
    headers = re.findall(r'^#include "(\w+\.h)"', text, re.MULTILINE)
    return text + "".join(_with_headers(path.with_name(name)) for name in headers)
