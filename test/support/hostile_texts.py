"""Parameter, plan, study, training and truth files that are wrong, made from a seed."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.datasets.euroc import read_sensor
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.model import ModelConfig
from qvggt_core.parameters import Parameters
from qvggt_core.quantize import PRESETS, Plan, load_plan
from qvggt_core.quantize.study import load_study
from qvggt_core.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
FRAGMENTS = (
    *(".inf", "-.inf", ".nan", "1e308", "-1e308", "1e-320", "-1", "0", "1", "2", "9" * 5000),
    *("0x", "0o9", "1_000", "190:20:30", "1e", "--1", "1.2.3", "NaN", "inf", "Infinity", "1e400"),
    *("2024-13-45", "2001-01-01 99:99:99", "!!bool maybe", "!!int .nan", "!!binary x", "!!set {a}"),
    *("!!python/object/apply:os.system [touch executed]", "!!python/name:os.system", "!!float x"),
    *(
        "null",
        "~",
        "yes",
        "no",
        "on",
        "true",
        "''",
        '"',
        "'",
        "[",
        "[]",
        "[1, 2]",
        "{",
        "{}",
        "{a: 1}",
    ),
    *("&a [*a]", "*a", "<<: {a: 1}", "? a", "- a", "|", ">", "%YAML 9.9", "---", "...", "#", ": :"),
    *("[" * 500, "{a: " * 200, "x" * 20_000, "[" + "1, " * 3000 + "1]", "\u202e", "\x1b[31m", "é"),
    *("uniform", "qvggt+", "w4a16", "channel", "auto", "../../etc/passwd", "/dev/zero", "~/x", "*"),
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
SENSOR = """sensor_type: camera
T_BS:
  cols: 4
  rows: 4
  data: [1.0, 0.0, 0.0, 0.1, 0.0, 1.0, 0.0, 0.2, 0.0, 0.0, 1.0, 0.3, 0.0, 0.0, 0.0, 1.0]
rate_hz: 20
resolution: [752, 480]
camera_model: pinhole
intrinsics: [458.654, 457.296, 367.215, 248.375]
distortion_model: radial-tangential
distortion_coefficients: [-0.28, 0.07, 0.0002, 1.7e-05]
"""


def _trajectory(kind: str) -> str:
    rows = []
    for index in range(6):
        numbers = [0.1 * index, 0.2, -0.3 * index, 0.0, 0.0, 0.1 * index, 1.0]
        if kind == "tum":
            rows.append(" ".join([f"{1.7e9 + index:.3f}", *map(str, numbers)]))
        elif kind == "euroc":
            rows.append(
                ",".join([str(1_700_000_000_000_000_000 + index * 10**8), *map(str, numbers)])
            )
        else:
            pose = np.eye(4)[:3].copy()
            pose[:, 3] = numbers[:3]
            rows.append(" ".join(f"{value:.6f}" for value in pose.ravel()))
    return "\n".join(rows) + "\n"


def _training() -> str:
    return (ROOT / "qvggt_core/training/configs/small.yaml").read_text(encoding="utf-8")


BASES: dict[str, Callable[[], str]] = {
    "parameters": lambda: Parameters().to_yaml(),
    "plan": PRESETS["qvggt-paper"].to_yaml,
    "study": lambda: (ROOT / "qvggt_core/quantize/studies/components.yaml").read_text("utf-8"),
    "training": _training,
    "tum": lambda: _trajectory("tum"),
    "euroc": lambda: _trajectory("euroc"),
    "kitti": lambda: _trajectory("kitti"),
    "sensor": lambda: SENSOR,
}


def mutated(text: str, rng: random.Random) -> bytes:
    """Return a text with one to four wrong places."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        index = rng.randrange(len(lines))
        kind = rng.randrange(10)
        if kind < 4:
            words = list(re.finditer(r"[^\s,\[\]{}:]+", text))
            if words:
                word = rng.choice(words)
                text = text[: word.start()] + rng.choice(FRAGMENTS) + text[word.end() :]
            continue
        if kind == 4:
            lines.insert(index, rng.choice(FRAGMENTS))
        elif kind == 5:
            lines.insert(index, lines[rng.randrange(len(lines))])
        elif kind == 6:
            del lines[index]
        elif kind == 7:
            lines[index] = lines[index].partition(":")[0] + ": " + rng.choice(FRAGMENTS)
        elif kind == 8:
            lines[index] = "  " * rng.randrange(4) + lines[index].strip()
        else:
            lines = [BOMB, *lines] if rng.random() < 0.2 else lines[:index]
        text = "\n".join(lines)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.15 and data:
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def read(kind: str, path: Path) -> None:
    """Read a file as what it is, and use what only its values show.

    Raises:
        AssertionError: a number is taken that is none.
    """
    if kind == "parameters":
        parameters = Parameters.read(path)
        _check_finite(parameters.model_dump())
        Parameters.build(parameters.model_dump())
    elif kind == "plan":
        plan = load_plan(path)
        assert Plan.from_yaml(plan.to_yaml()) == plan
        plan.precision("aggregator.frame_blocks.0.attn.qkv.weight", (192, 64))
    elif kind == "study":
        for row in load_study(path).rows:
            row.changed_recipe()
    elif kind == "training":
        config = TrainConfig.read(path)
        _check_finite(config.model_dump())
        ModelConfig.from_dict(config.model)
    elif kind == "sensor":
        _, pose = read_sensor(path)
        assert np.isfinite(pose).all()
    else:
        track = read_trajectory(path)
        assert np.isfinite(track.matrices).all()
        assert track.stamps_ns == sorted(set(track.stamps_ns))


def _check_finite(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            _check_finite(each)
    elif isinstance(value, float):
        assert math.isfinite(value)
