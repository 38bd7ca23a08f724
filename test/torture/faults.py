"""Commands that are killed, whose disk is full or read-only, that get little memory: then again.

Whatever is at the place of an output afterwards is whole, what was there before is as it was, and
the same command, run again, ends as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import torch
from safetensors.torch import load_file
from support.figures import Figures, main
from support.forked_commands import Ended, run
from support.hub import Hub, running
from support.recordings import image_message, load_room_network, room_entries, write_recording
from support.small_network import TINY, open_state

from qvggt_core.model import checkpoint
from qvggt_core.stream import load_network as network

FRAMES = 12
MB = 1 << 20


@dataclass
class Command:
    """A command whose result can be compared.

    Attributes:
        arguments: without the output.
        output: name of what it makes.
        result: returns what must be equal however the output came about.
        seconds: how long it takes undisturbed, once it was measured.
        expected: the undisturbed result.
        size: bytes of the largest file of the output.
    """

    arguments: list[object]
    output: str
    result: Callable[[Path], object]
    seconds: float = 0.0
    expected: object = None
    size: int = field(default=0)

    def at(self, place: Path) -> list[object]:
        """Return all arguments, for an output in a directory."""
        return [*self.arguments, "-o", place / self.output]


def metrics_of(output: Path) -> object:
    """Return what a replay made: its metrics, and the names of its files."""
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    return json.loads((output / "metrics.json").read_text()), names


def tensors_of(output: Path) -> object:
    """Return the weights of a file, as hashes."""
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(-1).numpy().tobytes()).hexdigest()
        for name, tensor in load_file(output).items()
        if tensor.dtype is not None and str(tensor.dtype) != "torch.bfloat16"
    }


def weights_of(output: Path) -> object:
    """Return the hash of a downloaded network."""
    (weights,) = output.rglob("model.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def files_of(output: Path) -> object:
    """Return the names and sizes of a folder's files."""
    return sorted((str(p.relative_to(output)), p.stat().st_size) for p in output.rglob("*"))


def commands(folder: Path, hub: Hub) -> dict[str, Command]:
    """Return the commands, and make what they read."""
    bag = write_recording(folder / "bag", room_entries(FRAMES))
    images = folder / "images"
    images.mkdir()
    for index in range(6):
        pixels = image_message(index).data.reshape(42, 56, 3)
        cv2.imwrite(str(images / f"{index}.png"), pixels)
    source = folder / "tiny.safetensors"
    checkpoint.save_checkpoint(source, open_state(), TINY)
    quantize = ["quantize", source, "--recipe", "awq", "--calibration", images]
    synth = ["synth", "--world", "studio", "--frames", 4, "--width", 64, "--height", 48]
    return {
        "replay": Command(["replay", bag, "--no-report"], "result", metrics_of),
        "quantize": Command([*quantize, "--images", 4, "--frames", 2], "q.safetensors", tensors_of),
        "synth": Command([*synth, "--seed", 1, "--step", 0.1], "flight", files_of),
        "download": Command(["download", hub.repository, "--yes"], "models", weights_of),
    }


class Faults:
    """All faults of all commands, one after the other."""

    def __init__(self, folder: Path, known: dict[str, Command]) -> None:
        self.folder = folder
        self.place = folder / "place"
        self.log = folder / "log"
        self.commands = known
        self.can_mount = os.geteuid() == 0 and self._try_mount()
        for name, command in known.items():
            self._clean()
            ended = run(command.at(self.place), self.log)
            if ended.status:
                raise SystemExit(f"{name} ends with {ended.status}: {ended.text[-2000:]}")
            made = self.place / command.output
            command.seconds, command.expected = ended.seconds, command.result(made)
            paths = [made, *made.rglob("*")] if made.is_dir() else [made]
            command.size = max(path.stat().st_size for path in paths if path.is_file())

    def round_of_cases(self, figures: Figures, seed: int) -> None:
        """Run every fault on every command."""
        for name, command in self.commands.items():
            for fault in (self.killed, self.full, self.read_only, self.starved):
                rng = random.Random(f"{name} {fault.__name__} {seed}")
                case = f"{name}, {fault.__name__}, {seed}"
                figures.run(case, partial(fault, command, rng))

    # The faults

    def killed(self, command: Command, rng: random.Random) -> None:
        """Killed at a random moment, sometimes twice, then run again."""
        self._clean()
        for _ in range(rng.choice((1, 1, 2))):
            after = rng.uniform(0.0, 1.1 * command.seconds)
            run(command.at(self.place), self.log, kill_after_s=after)
            self._must_be_whole(command)
        self._again(command)

    def full(self, command: Command, rng: random.Random) -> None:
        """The disk is full at a random moment."""
        self._clean()
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
        self._clean()
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
        self._clean()
        room = rng.choice((1, 4, 16, 64, 128, 256, 512, 1024)) * MB

        def prepare() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + room
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        self._must_be_explained(run(command.at(self.place), self.log, prepare))
        self._must_be_whole(command)
        self._again(command)

    # What must hold

    def _must_be_explained(self, ended: Ended) -> None:
        assert ended.is_explained, f"status {ended.status}: {ended.text[-1500:]}"

    def _must_be_whole(self, command: Command, place: Path | None = None) -> None:
        made = (place or self.place) / command.output
        if command.output == "models":  # downloads are resumed inside of the folder
            made = next(made.rglob("model.safetensors"), made / "none")
            whole = not made.exists() or made.stat().st_size == command.size
            assert whole, "half a download has the name of a whole one"
        elif made.exists():
            assert command.result(made) == command.expected, "half an output looks like a whole one"

    def _again(self, command: Command, place: Path | None = None) -> None:
        place = place or self.place
        if (place / command.output).exists() and command.output != "models":
            return
        ended = run(command.at(place), self.log)
        assert ended.status == 0, f"run again, status {ended.status}: {ended.text[-1500:]}"
        assert command.result(place / command.output) == command.expected, "another result"
        left = {path.name for path in place.iterdir()} - {command.output}
        assert not left, f"files are left: {left}"

    def _clean(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

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
    network.load_network = load_room_network
    with TemporaryDirectory() as work, running(served_network(Path(work))) as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        faults = Faults(Path(work), commands(Path(work), hub))
        main(__doc__, faults.round_of_cases)
