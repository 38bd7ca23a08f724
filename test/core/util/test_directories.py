"""Output directories: whole or not at all, and nothing of the user's is ever deleted."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvggt_core.errors import OutputError
from qvggt_core.results import layout
from qvggt_core.util.directories import new_output

METRICS = json.dumps({"format": "qvggt-metrics"})
RUN = json.dumps({"format": 1, "recording": "flight"})


def make(
    output: Path,
    text: str = "new",
    *,
    fail: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """Fill an output as a replay does."""
    with new_output(output, layout.RESULT, **options) as partial:
        if fail:
            (partial / "trajectory.tum").write_text("half a")
            raise RuntimeError
        fill(partial, text)
        meanwhile()


def fill(directory: Path, text: str) -> None:
    (directory / "bag").mkdir(parents=True)
    (directory / "bag" / "bag.mcap").write_text(text)
    (directory / "bag" / "metadata.yaml").write_text("{}")
    (directory / "pictures").mkdir()
    (directory / "pictures" / "path.png").write_text(text)
    (directory / "trajectory.tum").write_text(text)
    (directory / "points_3.ply").write_text(text)
    (directory / "metrics.json").write_text(METRICS)
    (directory / "run.json").write_text(RUN)


def content(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_an_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with new_output(output, layout.RESULT) as partial:
        fill(partial, "new")
        assert not output.exists()
    assert content(output)["trajectory.tum"] == "new"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_what_fails_stays_beside_and_is_replaced_by_the_next_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        make(tmp_path / "out", fail=True)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "trajectory.tum").read_text() == "half a"
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_former_output_is_replaced_on_request_alone(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="--overwrite"):
        make(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)
    assert set(content(tmp_path / "out").values()) == {"new", "{}", METRICS, RUN}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# What is the user's

USERS = [
    {"bag_01/metadata.yaml": "", "bag_02/bag_0.mcap": "", "points_of_interest.txt": "mine"},
    {"bag/metadata.yaml": "mine", "bag/bag_0.mcap": "", "trajectory.tum": "mine"},
    {"thesis.tex": "years of work"},
    {"metrics.json": '{"accuracy": 1}', "trajectory.tum": "mine"},
    {"run.json": '{"format": 1}', "points.ply": "mine"},
    {"metrics.json": METRICS, "run.json": RUN, "notes.txt": "mine"},
    {"metrics.json": METRICS, "bag/metadata.yaml": "{}", "bag/flight_0.mcap": "mine"},
    {"metrics.json": METRICS, "bag/older/bag.mcap": "mine"},
    {"metrics.json": METRICS, "pictures/holiday.png": "mine"},
    {"metrics.json": METRICS, "metrics.json.orig": "mine"},
    {"metrics.json": METRICS, "trajectory_by_hand.tum": "mine"},
    {"metrics.json": METRICS, "report.html/mine.txt": "mine"},
    {"metrics.json": METRICS, ".git/config": "mine"},
]


@pytest.mark.parametrize("suffix", ["", ".partial", ".former"])
@pytest.mark.parametrize("files", USERS, ids=lambda files: next(reversed(files)))
def test_a_directory_of_the_user_is_left_alone(
    files: dict[str, str], suffix: str, tmp_path: Path
) -> None:
    directory = tmp_path / f"out{suffix}"
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    with pytest.raises(OutputError, match="left alone"):
        make(tmp_path / "out", overwrite=True)
    assert content(directory) == files


def test_a_link_of_the_user_in_a_result_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flights").mkdir()
    (tmp_path / "flights" / "metadata.yaml").write_text("mine")
    make(tmp_path / "out", "old")
    for path in sorted((tmp_path / "out" / "bag").iterdir()):
        path.unlink()
    (tmp_path / "out" / "bag").rmdir()
    (tmp_path / "out" / "bag").symlink_to(tmp_path / "flights")
    with pytest.raises(OutputError, match="left alone"):
        make(tmp_path / "out", overwrite=True)
    assert content(tmp_path / "flights") == {"metadata.yaml": "mine"}


def test_a_file_is_no_output(tmp_path: Path) -> None:
    for suffix in ("", ".partial"):
        path = tmp_path / f"out{suffix}"
        path.write_text("mine")
        with pytest.raises(OutputError, match="left alone"):
            make(tmp_path / "out", overwrite=True)
        assert path.read_text() == "mine"
        path.unlink()


def test_what_comes_into_the_output_meanwhile_is_kept(tmp_path: Path) -> None:
    def somebody_works() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match=r"has changed meanwhile: what was made is in .*partial"):
        make(tmp_path / "out", meanwhile=somebody_works)
    assert content(tmp_path / "out") == {"thesis.tex": "years of work"}
    assert content(tmp_path / "out.partial")["trajectory.tum"] == "new"


def test_an_input_in_the_output_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="lies in the output"):
        make(tmp_path / "out", overwrite=True, inputs=[tmp_path / "out" / "bag"])
    assert content(tmp_path / "out")["bag/bag.mcap"] == "old"


# Places that cannot be renamed


@pytest.mark.parametrize("name", [".", "./", ""])
def test_the_working_directory_can_be_the_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name), "old")
    assert content(tmp_path)["trajectory.tum"] == "old"
    with pytest.raises(OutputError, match="--overwrite"):
        make(Path(name))
    make(Path(name), overwrite=True)
    assert content(tmp_path)["trajectory.tum"] == "new"
    assert not list(tmp_path.glob(".*"))


def test_a_working_directory_with_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="left alone"):
        make(Path(), overwrite=True)
    assert content(tmp_path) == {"thesis.tex": "years of work"}


def test_a_link_stays_a_link_and_what_it_points_to_becomes_the_output(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    for text in ("first", "second", "third"):
        make(link, text, overwrite=True)
        assert link.is_symlink()
        assert content(target)["trajectory.tum"] == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["target"]


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    # From Python 3.13 on a path is resolved as far as it goes, and something is in the way there.
    with pytest.raises(OutputError, match=r"usable path|cannot|left alone"):
        make(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


MOUNTED = """
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
import test_directories as t
output = Path({output!r})
assert output.is_mount()
t.make(output, "old")
t.make(output, "new", overwrite=True)
assert t.content(output)["trajectory.tum"] == "new"
assert not list(output.glob(".*")), list(output.glob(".*"))
"""


def test_a_mount_point_is_filled_from_inside(tmp_path: Path) -> None:
    """As `docker run -v $PWD/out:/out`: the directory itself cannot be moved."""
    output = tmp_path / "volume"
    output.mkdir()
    script = MOUNTED.format(tests=str(Path(__file__).parent), output=str(output))
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    command += [f'mount -t tmpfs none "{output}" && exec "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("volume.*"))


def test_a_place_that_cannot_be_renamed_is_filled_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "volume"
    output.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == output)
    for text in ("old", "new"):
        make(output, text, overwrite=True)
        assert content(output)["trajectory.tum"] == text
        assert not list(output.glob(".*"))
    assert not list(tmp_path.glob("volume.*"))


# Places that cannot be written


@pytest.mark.parametrize("name", ["a" * 300, "file/out", "/proc/nothing/out", "/dev/null/out"])
def test_a_place_that_cannot_be_is_explained_before_anything_is_made(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        make(tmp_path / name)
    assert content(tmp_path) == {"file": "mine"}


def test_a_zero_byte_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="zero byte"):
        make(tmp_path / "a\0b")


def test_a_full_disk_when_it_begins_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    # Not `os.replace`: Python 3.10's paths keep it from their import.
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        make(tmp_path / "out")


# Runs that were killed


@pytest.mark.parametrize("suffix", [".former", ".partial"])
def test_a_result_that_a_user_put_aside_is_left_alone(suffix: str, tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / f"out{suffix}")
    with pytest.raises(OutputError, match="left alone"):
        make(tmp_path / "out", overwrite=True)
    assert content(tmp_path / f"out{suffix}")["trajectory.tum"] == "old"


@pytest.mark.parametrize("names", [(), ("..unfinished.123.tmp",)])
def test_a_run_that_did_not_come_as_far_as_its_mark_is_replaced(names, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    for name in names:
        (tmp_path / "out.partial" / name).write_text("resu")
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any("unfinished" in name for name in content(tmp_path / "out"))


def test_a_disk_without_room_for_the_mark_is_no_obstacle_later(tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, data: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qvggt_core.util.directories.write_atomically", full)
        with pytest.raises(OutputError, match="No space left"):
            make(tmp_path / "out")
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_into_one_output_do_not_mix(tmp_path: Path) -> None:
    with new_output(tmp_path / "out", layout.RESULT) as partial:
        (partial / "trajectory.tum").write_text("first")
        with pytest.raises(OutputError, match="another process"):
            make(tmp_path / "out", "second")
        assert (partial / "trajectory.tum").read_text() == "first"
        (partial / "trajectory.tum").unlink()
        fill(partial, "first")
    assert content(tmp_path / "out")["trajectory.tum"] == "first"
