"""Commands whose results can be compared, to be killed and starved: what they read and make."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from qvggt_core.model import checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork
from support import mapped_room
from support.hub import Hub
from support.recordings import (
    image_message,
    load_room_network,
    room_entries,
    write_recording,
)
from support.small_network import TINY, open_state
from support.small_result import write_result
from support.tiny_run import TINY as TINY_RUN

FRAMES = 12
LAST_STEP, CHECKPOINT_EVERY = 6, 2

BOX_POSES = mapped_room.TRUTH[:6]
KNOWS_THE_BOX = "box.safetensors"

Result = Mapping[str, object]
"""What looks whole at the place of an output, by name: equal however it came about."""


@dataclass
class Command:
    """A command whose result can be compared.

    Attributes:
        arguments: without the output.
        output: name of what it makes.
        result: returns what looks whole at its place; nothing where nothing is there.
        again: arguments by which unfinished work is taken up; None where the output must not be
            there, as it is whole or not there at all.
        on_the_way: more arguments for runs that end early; what they make may be there too.
        kept: names of what is laid into the output before it runs, as it takes long to make.
        seconds: how long it takes undisturbed, once it was measured.
        expected: the undisturbed result.
        known: all that may be there on the way to it.
        size: bytes of the largest file of the output.
        parts: options that each take a part of the output, and the names of these parts; `-o`
            takes all of it where there are none.
    """

    arguments: list[object]
    output: str
    result: Callable[[Path], Result]
    again: list[object] | None = None
    on_the_way: list[list[object]] = field(default_factory=list)
    kept: tuple[str, ...] = ()
    seconds: float = 0.0
    expected: Result = field(default_factory=dict)
    known: Result = field(default_factory=dict)
    size: int = 0
    parts: Mapping[str, str] = field(default_factory=lambda: {"-o": ""})

    def at(self, place: Path) -> list[object]:
        """Return all arguments, for an output in a directory."""
        outputs = [
            each
            for option, name in self.parts.items()
            for each in (option, place / self.output / name)
        ]
        return [*self.arguments, *outputs]


def metrics_of(output: Path) -> Result:
    """Return what a replay made: its metrics, and the names of its files."""
    if not output.exists():
        return {}
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    metrics = json.loads((output / "metrics.json").read_text())
    return {output.name: (metrics, names)}


def fleet_of(output: Path) -> Result:
    """Return what `replay-many` made of each recording; a summary or a page alone is nothing."""
    found: dict[str, object] = {}
    for path in sorted(output.glob("*")):
        if path.is_dir() and path.suffix != ".partial":
            found |= metrics_of(path)
    return found


def tensors_of(output: Path) -> Result:
    """Return the weights of a file, as hashes."""
    if not output.exists():
        return {}
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(-1).numpy().tobytes()).hexdigest()
        for name, tensor in load_file(output).items()
        if str(tensor.dtype) != "torch.bfloat16"
    }


def training_of(output: Path) -> Result:
    """Return the weights of a trained network under the step that it says it is of."""
    path = output / "model.safetensors"
    if not path.exists():
        return {}
    with safe_open(path, "numpy") as file:
        step = file.metadata()["training_step"]
    return {f"step {step}": tensors_of(path)}


def weights_of(output: Path) -> Result:
    """Return the hash of a downloaded network."""
    found = list(output.rglob("model.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def files_of(output: Path) -> Result:
    """Return the names and sizes of a folder's files."""
    return {str(p.relative_to(output)): p.stat().st_size for p in output.rglob("*")}


def bytes_of(output: Path) -> Result:
    """Return the hashes of a file, or of all files of a folder under its name."""
    if not output.exists():
        return {}
    paths = sorted(output.rglob("*")) if output.is_dir() else [output]
    hashes = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }
    return {output.name: hashes}


def result_and_map_of(output: Path) -> Result:
    """Return what a replay made of a recording, and how large the files of its map are."""
    made_map = files_of(output / "map")
    return {**metrics_of(output / "result"), **({"map": made_map} if made_map else {})}


def load_known_network(parameters: Parameters) -> LoadedNetwork:
    """Stand in for `load_network`: what the images of a command's recording show is known."""
    if Path(parameters.checkpoint).name != KNOWS_THE_BOX:
        return load_room_network(parameters)
    parameters = parameters.with_values(confirm=False, window_size=4, window_stride=2)
    return LoadedNetwork(mapped_room.BoxNetwork(BOX_POSES), parameters, {})


def commands(folder: Path, hub: Hub) -> dict[str, Command]:
    """Return the commands, and make what they read."""
    bag = write_recording(folder / "bag", room_entries(FRAMES))
    fleet = [write_recording(folder / name, room_entries(6)) for name in ("one", "two")]
    images = folder / "images"
    images.mkdir()
    for index in range(6):
        pixels = image_message(index).data.reshape(42, 56, 3)
        cv2.imwrite(str(images / f"{index}.png"), pixels)
    source = folder / "tiny.safetensors"
    checkpoint.save_checkpoint(source, open_state(), TINY)
    box = mapped_room.recording(folder / "box", BOX_POSES)
    known = folder / KNOWS_THE_BOX
    shutil.copy(source, known)
    training = folder / "training.yaml"
    training.write_text(yaml.safe_dump({**TINY_RUN, "checkpoint_every": CHECKPOINT_EVERY}))
    quantize = ["quantize", source, "--recipe", "awq", "--calibration", images]
    result = write_result(folder / "result")
    synth = ["synth", "--world", "studio", "--frames", 4, "--width", 64, "--height", 48]
    steps = range(CHECKPOINT_EVERY, LAST_STEP, CHECKPOINT_EVERY)
    return {
        "replay": Command(["replay", bag, "--no-report"], "result", metrics_of),
        "quantize": Command([*quantize, "--images", 4, "--frames", 2], "q.safetensors", tensors_of),
        "synth": Command([*synth, "--seed", 1, "--step", 0.1], "flight", files_of),
        "download": Command(["download", hub.repository, "--yes"], "models", weights_of, []),
        "train": Command(
            ["train", training, "--device", "cpu", "--steps", LAST_STEP],
            "run",
            training_of,
            [],
            [["--steps", step] for step in steps],
            ("pool_train", "pool_eval"),
        ),
        "save a map": Command(
            ["replay", box, "--no-report", "--checkpoint", known],
            "both",
            result_and_map_of,
            ["--overwrite"],
            parts={"-o": "result", "--save-map": "map"},
        ),
        "export images": Command(
            ["export", result, "--format", "nerfstudio"], "nerfstudio", bytes_of
        ),
        "export points": Command(["export", result], "points.glb", bytes_of),
        "compare-runs": Command(["compare-runs", result, result], "page.html", bytes_of),
        "replay-many": Command(
            ["replay-many", *fleet, "--no-report"], "fleet", fleet_of, ["--resume"]
        ),
    }
