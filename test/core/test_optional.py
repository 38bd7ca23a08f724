"""Packages that only some features need: without them, one sentence and nothing else lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.packages import needs
from support.recordings import room_entries, write_recording

from qvggt_core.errors import MissingPackageError
from qvggt_core.optional import OPTIONAL_PACKAGES, import_optional, missing_package

ROOT = Path(__file__).parents[2]


def test_a_package_that_is_there_is_imported():
    assert import_optional("matplotlib.figure").Figure


@pytest.mark.parametrize("package", OPTIONAL_PACKAGES.values(), ids=lambda each: each.module)
def test_an_absent_package_gives_one_sentence(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package.module, None)
    with pytest.raises(MissingPackageError) as caught:
        import_optional(package.module)
    message = str(caught.value)
    assert package.purpose in message
    assert package.install in message
    assert "\n" not in message


def test_a_package_that_is_broken_shows_why():
    error = ImportError("libcuda.so.1: cannot open shared object file", name="triton")
    assert "libcuda.so.1" in str(missing_package(error))


def test_what_no_optional_package_is_to_blame_for_stays_an_import_error():
    assert missing_package(ModuleNotFoundError("No module named 'x'", name="x")) is None
    with pytest.raises(ModuleNotFoundError):
        import_optional("no_such_module_of_ours")


# Runs a command where some packages cannot be imported; further arguments are the command's.
WITHOUT = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in sys.argv[1].split(",")
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from qvggt_ros.cli import app
app.main(sys.argv[2:])
"""
ALL_BUT_TORCH = ",".join(OPTIONAL_PACKAGES.keys() - {"torch", "matplotlib"})
ALL = ",".join(OPTIONAL_PACKAGES)


def without(packages: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, packages, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("bags") / "room", room_entries(12))


@pytest.fixture(scope="module")
def result(recording, tmp_path_factory):
    needs("torch")
    directory = tmp_path_factory.mktemp("results") / "room"
    plain = ("--set", "confirm=false", "--set", "refine=false")
    done = without(ALL_BUT_TORCH, "replay", recording, "-o", directory, "--no-evaluate", *plain)
    assert done.returncode == 0, done.stderr
    assert (directory / "report.html").is_file()
    return directory


def test_a_recording_is_reconstructed_without_any_optional_package(result):
    assert (result / "points.ply").is_file()


def test_a_recording_is_looked_at_without_pytorch(recording):
    done = without(ALL, "topics", "--json", recording)
    assert done.returncode == 0, done.stderr
    assert "/camera/image_raw" in done.stdout


def test_a_result_is_evaluated_without_pytorch(result):
    done = without(ALL_BUT_TORCH + ",torch", "evaluate", result)
    assert done.returncode == 0, done.stderr
    assert (result / "errors.csv").is_file()


def test_the_doctor_works_without_pytorch_and_names_it(recording):
    done = without(ALL, "doctor", "--bag", recording)
    assert done.returncode == 3, done.stderr
    assert "pip install 'torch>=2.5,<2.14'" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("absent", "arguments", "install"),
    [
        ("torch", ["replay", "BAG", "-o", "OUT"], "pip install 'torch>=2.5,<2.14'"),
        ("viser", ["view", "RESULT"], "pip install 'qvggt_ros[viz]'"),
        ("cyclonedds", ["live"], "pip install 'qvggt_ros[dds]'"),
        ("cyclonedds", ["play", "BAG"], "pip install 'qvggt_ros[dds]'"),
    ],
)
def test_a_command_that_lacks_its_package_ends_with_one_line(
    absent, arguments, install, recording, result, tmp_path
):
    paths = {"BAG": recording, "OUT": tmp_path / "out", "RESULT": result}
    done = without(absent, *(paths.get(each, each) for each in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert install in done.stderr
    assert len(done.stderr.splitlines()) == 1
