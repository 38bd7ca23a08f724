"""What is measured on a GPU, in the order of its worth, and for how long at most."""

from __future__ import annotations

import sys
from pathlib import Path

import inputs
from schedule import Part

from qvggt_core.measure.candidates import (
    BFLOAT16,
    FLOAT32,
    GRAPH,
    INT4,
    INT4_FP8,
    INT4_INTEGERS,
    ORIGINAL_BFLOAT16,
    ORIGINAL_FLOAT32,
)

_HERE = Path(__file__).resolve().parent
_TESTS = (
    "test/kernels/test_triton_gemm.py",
    "test/kernels/test_triton_steps.py",
    "test/kernels/test_tuning.py",
    "test/core/stream/test_graphs.py",
    "test/core/measure/test_graphed_forward.py",
)
_NODE = "--rate 30 --seconds 8 --params config/presets/desktop_gpu.yaml"
_SHIPS = "qvggt_core/models/qvggt-places-int4.safetensors"
_OURS = (BFLOAT16 + GRAPH, BFLOAT16, INT4 + GRAPH, INT4_INTEGERS + GRAPH, INT4_FP8 + GRAPH)


def parts_of(output: Path, original: Path | None, recording: Path | None) -> list[Part]:
    """Return the parts; all but the last together leave it half a minute of eight.

    Args:
        output: directory of all files.
        original: clone of github.com/facebookresearch/vggt, whose bfloat16 forward pass as one
            CUDA graph is the baseline; without it, ours in bfloat16 as one graph is.
        recording: of a camera; None takes the synthetic one.
    """
    checkpoint = str(output / inputs.CHECKPOINT)
    tests = _script("device_tests.py", str(output / "tests.json"), *_TESTS)
    return [
        Part("inputs", _script("inputs.py", str(output)), 45, results=(inputs.RECORDING,)),
        Part("tests", tests, 75, results=("tests.json",)),
        Part("tune", _qvggt("tune", checkpoint), 75, results=("tuned/qvggt/kernels",)),
        *_whole_network(output, original),
        _node(output, str(recording or output / inputs.RECORDING)),
        _training(output),
    ]


def environment_of(output: Path) -> dict[str, str]:
    """Return the variables of the parts: what `tune` measures is used by those after it."""
    return {"XDG_CACHE_HOME": str(output / "tuned"), "PYTHONUNBUFFERED": "1"}


def _whole_network(output: Path, original: Path | None) -> list[Part]:
    clone = ("--original", str(original)) if original else ()
    fast = (ORIGINAL_BFLOAT16 + GRAPH, ORIGINAL_BFLOAT16) if original else ()
    cases = (
        ("network", "2,8,30", 110, (*fast, *_OURS)),
        ("memory", "8,30", 60, (ORIGINAL_FLOAT32 if original else FLOAT32, INT4)),
    )
    parts = []
    for case, frames, most_s, names in cases:
        command = [*_qvggt("bench", str(output / inputs.CHECKPOINT)), *clone, "--device", "cuda"]
        command += ["-o", str(output / case), "--cases", case, "--frames", frames]
        command += ["--sizes", "392x518", "--rounds", "3", "--minutes", "0.3"]
        command += [word for name in names for word in ("--contender", name)]
        results = (f"{case}/bench.json", f"{case}/bench.md")
        parts.append(Part(case, tuple(command), most_s, results=results))
    return parts


def _node(output: Path, bag: str) -> Part:
    command = [*_qvggt("bench-node", bag), "-o", str(output / "node.json"), *_NODE.split()]
    for checkpoint in (_SHIPS, str(output / inputs.CHECKPOINT)):
        command += ["--checkpoint", checkpoint]
    return Part("node", tuple(command), 70, results=("node.json",))


def _training(output: Path) -> Part:
    directory = str(output / inputs.TRAINING)
    command = _qvggt("train", str(output / inputs.CONFIG), "-o", directory, "--device", "cuda")
    results = tuple(f"{inputs.TRAINING}/{name}" for name in ("log.jsonl", "curves.png"))
    return Part("training", command, most_s=480, least_s=20, results=results, goes_on=True)


def _qvggt(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "qvggt_ros.cli.app", *arguments)


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(_HERE / name), *arguments)
