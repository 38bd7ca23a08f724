"""Commands that are killed, whose disk is full or read-only, that get little memory: then again.

Whatever is at the place of an output afterwards is whole, what was there before is as it was, and
the same command, run again, ends as if nothing had happened.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from support.fault_commands import Command, commands, load_known_network
from support.figures import Figures, main
from support.forked_commands import Ended, run
from support.hub import Hub, running
from support.small_network import TINY, open_state

import qvggt_core.training.curves
import qvggt_core.training.trainer  # noqa: F401
from qvggt_core.model import checkpoint
from qvggt_core.stream import load_network as network

MB = 1 << 20


class Faults:
    """All faults of all commands, one after the other."""

    def __init__(self, folder: Path, known: dict[str, Command]) -> None:
        self.folder = folder
        self.place = folder / "place"
        self.log = folder / "log"
        self.can_mount = os.geteuid() == 0 and self._try_mount()
        for name, command in known.items():
            self._measure(name, command)
        faults = (self.killed, self.full, self.read_only, self.starved, self.vanished)
        # Fault by fault, so that a short run has some of every command.
        self.cases = [(name, command, fault) for fault in faults for name, command in known.items()]

    def _measure(self, name: str, command: Command) -> None:
        """Run a command undisturbed, to its end and as far as it comes on its way there."""
        # The first run makes what is kept, so that the others and their time are without it.
        runs = [[]] if command.kept else []
        for more in [*runs, *command.on_the_way, []]:
            self._clean(command)
            ended = run(command.at(self.place) + more, self.log)
            if ended.status:
                raise SystemExit(f"{name} ends with {ended.status}: {ended.text[-2000:]}")
            made = self.place / command.output
            self._keep(command, made)
            command.seconds, command.expected = ended.seconds, command.result(made)
            command.known = {**command.known, **command.expected}
        paths = [made, *made.rglob("*")] if made.is_dir() else [made]
        command.size = max(path.stat().st_size for path in paths if path.is_file())

    def _keep(self, command: Command, made: Path) -> None:
        for name in command.kept:
            if not self._kept(command, name).exists():
                shutil.copytree(made / name, self._kept(command, name))

    def _kept(self, command: Command, name: str) -> Path:
        return self.folder / "kept" / command.output / name

    def one_case(self, figures: Figures, seed: int) -> None:
        """Run one fault on one command, another one with each seed."""
        name, command, fault = self.cases[seed % len(self.cases)]
        case = f"{name}, {fault.__name__}, {seed}"
        figures.run(case, partial(fault, command, random.Random(case)))

    # The faults

    def killed(self, command: Command, rng: random.Random) -> None:
        """Killed at a random moment, sometimes twice, then run again."""
        self._clean(command)
        for _ in range(rng.choice((1, 1, 2))):
            after = rng.uniform(0.0, 1.1 * command.seconds)
            run(command.at(self.place), self.log, kill_after_s=after)
            self._must_be_whole(command)
        self._again(command)

    def full(self, command: Command, rng: random.Random) -> None:
        """The disk is full at a random moment."""
        self._clean(command)
        limit = rng.randrange(1, max(2, command.size))
        if self.can_mount and rng.random() < 0.5:
            with self._mounted(f"size={max(4096, limit)}") as disk:
                ended = run(command.at(disk), self.log)
                self._must_be_explained(ended)
                self._must_be_whole(command, disk)
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                self._again(command, disk)
            return

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        self._must_be_explained(run(command.at(self.place), self.log, prepare))
        self._must_be_whole(command)
        self._again(command)

    def read_only(self, command: Command, rng: random.Random) -> None:
        """The directory of the output cannot be written to."""
        self._clean(command)
        if self.can_mount:
            with self._mounted("ro") as disk:
                ended = run(command.at(disk), self.log)
                made = list(disk.iterdir())
        else:
            self.place.chmod(0o555)
            ended = run(command.at(self.place), self.log)
            self.place.chmod(0o755)
            made = list(self.place.iterdir())
        self._must_be_explained(ended)
        assert ended.status, "it says that it wrote to a read-only directory"
        assert not made, made

    def starved(self, command: Command, rng: random.Random) -> None:
        """There is little memory: it is done with it, or refused."""
        self._clean(command)
        room = rng.choice((1, 4, 16, 64, 128, 256, 512, 1024)) * MB

        def prepare() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + room
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        self._must_be_explained(run(command.at(self.place), self.log, prepare))
        self._must_be_whole(command)
        self._again(command)

    def vanished(self, command: Command, rng: random.Random) -> None:
        """The directory of the output is taken away at a random moment."""
        self._clean(command)
        away = self.folder / "away"
        shutil.rmtree(away, ignore_errors=True)
        after = rng.uniform(0.0, command.seconds)
        timer = threading.Timer(after, lambda: self.place.rename(away))
        timer.start()
        ended = run(command.at(self.place), self.log)
        timer.join()
        self._must_be_explained(ended)
        if ended.status == 0:
            # It was done before, or it makes its place anew.
            places = [place for place in (self.place, away) if (place / command.output).exists()]
            assert places, "it says that it is done, and there is nothing"
        self._must_be_whole(command, away)
        self._must_be_whole(command)
        self._clean(command)
        self._again(command)

    # What must hold

    def _must_be_explained(self, ended: Ended) -> None:
        assert ended.is_explained, f"status {ended.status}: {ended.text[-1500:]}"

    def _must_be_whole(self, command: Command, place: Path | None = None) -> None:
        found = command.result((place or self.place) / command.output)
        for name, value in found.items():
            assert command.known.get(name) == value, f"{name} looks whole and is not"
        is_all = command.again is not None or not found or found == command.expected
        assert is_all, "half an output looks like a whole one"
        left = multiprocessing.active_children() + psutil.Process().children(recursive=True)
        assert not left, f"processes work on: {left}"

    def _again(self, command: Command, place: Path | None = None) -> None:
        place = place or self.place
        if command.again is None and (place / command.output).exists():
            return
        ended = run([*command.at(place), *(command.again or [])], self.log)
        assert ended.status == 0, f"run again, status {ended.status}: {ended.text[-1500:]}"
        assert command.result(place / command.output) == command.expected, "another result"
        left = {path.name for path in place.iterdir()} - {command.output}
        left |= {str(path) for path in place.rglob("*.partial")}
        assert not left, f"files are left: {left}"

    def _clean(self, command: Command | None = None) -> None:
        """Empty the place; what takes long to make is laid there for its command."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for name in () if command is None else command.kept:
            if self._kept(command, name).exists():
                shutil.copytree(self._kept(command, name), self.place / command.output / name)

    def _try_mount(self) -> bool:
        self.place.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(self.place)]
        if subprocess.run(mount, capture_output=True).returncode:
            return False
        subprocess.run(["umount", str(self.place)], check=True)
        return True

    def _mounted(self, options: str) -> _Disk:
        return _Disk(self.folder / "disk", options)


class _Disk:
    """A small file system in memory."""

    def __init__(self, path: Path, options: str) -> None:
        self.path, self.options = path, options

    def __enter__(self) -> Path:
        self.path.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.path)]
        subprocess.run(mount, check=True)
        return self.path

    def __exit__(self, *failure: object) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


def served_network(folder: Path) -> Hub:
    """Return a hub with one small network, as its publisher has it."""
    path = folder / "published.safetensors"
    checkpoint.save_checkpoint(path, open_state(), TINY)
    content = path.read_bytes()
    path.unlink()
    return Hub("somebody/tiny-vggt", {"README.md": b"---\n---\n", "model.safetensors": content})


if __name__ == "__main__":
    # Threads of the parent are not in a child that is forked, and would be waited for.
    torch.set_num_threads(1)
    network.load_network = load_known_network
    # What is starved is a command's work, no import: all is there before.
    importlib.import_module("qvggt_ros.drivers.batch")
    with TemporaryDirectory() as work, running(served_network(Path(work))) as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        faults = Faults(Path(work), commands(Path(work), hub))
        main(__doc__, faults.one_case)
