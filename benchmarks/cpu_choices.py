"""Times both sides of each choice between two ways to compute on a CPU (`cpu_features.py`).

The rules there follow the results of this script; `test/kernels/test_cpu.py` holds them to all that
are committed. On a machine of a new kind, run it, keep its result, and change a rule that loses.

    python benchmarks/cpu_choices.py NAME [--clock wall] [--threads 2] [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import (
    Backend,
    PackedWeight,
    backends,
    convolution3x3,
    cpu_features,
    native,
    pack,
)
from qvggt_kernels.cpu import attention as tiles
from qvggt_kernels.cpu import linear as dense
from qvggt_kernels.native import heads as native_heads
from qvggt_kernels.native import norms as native_norms
from qvggt_kernels.reference import attention as pytorch
from torch.nn import functional as F

from qvggt_core.measure.machine import describe_machine
from qvggt_core.measure.provenance import write_results
from qvggt_core.measure.timing import CLOCKS, Run, measure

ROWS, COLUMNS, OUTPUTS = 1041, 1024, 1024
HEADS, HEAD_DIM = 4, 64
MAPS = (1, 64, 72, 96)
"""Frames, channels and pixels of a dense head."""


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the kind of machine, such as zen3")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = {
        **describe_machine(),
        "clock": arguments.clock,
        "load_average": os.getloadavg()[0],
    }
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for choice, runs in choices().items():
            times = measure(runs, arguments.rounds, arguments.clock)
            found[choice] = {
                name: {"median_ms": 1e3 * statistics.median(taken), "best_ms": 1e3 * min(taken)}
                for name, taken in times.items()
            }
    path = Path(__file__).parent / "results" / f"cpu_choices_{arguments.name}.json"
    write_results(path, {"machine": machine, "rounds": arguments.rounds, "choices": found})
    print(f"wrote {path}")


def choices() -> dict[str, dict[str, Run]]:
    """Return the ways to compute that a rule chooses among, by the rule."""
    torch.manual_seed(0)
    x, weight = torch.randn(ROWS, COLUMNS), torch.randn(OUTPUTS, COLUMNS)
    q, q_weight = (torch.randint(-127, 128, part.shape, dtype=torch.int8) for part in (x, weight))
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    found: dict[str, dict[str, Run]] = {
        "dtype of products": {
            "float32": lambda: F.linear(x, weight),
            "bfloat16": lambda: F.linear(x16, weight16),
        },
        "library for float32": {
            "PyTorch's": lambda: F.linear(x, weight),
            "oneDNN": lambda: cpu_features.onednn_linear(x, weight),
        },
        "product of integers": {
            "through float32": lambda: F.linear(x, weight),
            "in integers": lambda: torch._int_mm(q, q_weight.t()),
        },
    }
    scales = torch.rand(OUTPUTS, COLUMNS // 128).bfloat16()
    packed = PackedWeight(pack(q_weight >> 4, 128), scales)
    found["4-bit linear in float32"] = {"dense product": lambda: dense.int4_linear(x, packed)}
    if native.supports_int4_linear(x, packed):
        found["4-bit linear in float32"]["C++"] = lambda: native.int4_linear(x, packed)
    for name, parts in (("float32", (x, weight)), ("bfloat16", (x16, weight16))):
        found[f"plain linear in {name}"] = _linears(*parts)
    found["layer norm"] = _norms(x)
    found["convolution of 3x3 pixels"] = _convolutions()
    for dtype in (torch.float32, torch.bfloat16):
        parts = [torch.randn(1, HEADS, ROWS, HEAD_DIM).to(dtype) for _ in range(3)]
        name = f"attention in {str(dtype).removeprefix('torch.')}"
        found[name] = _attentions(parts)
    return found


def _linears(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Run]:
    runs: dict[str, Run] = {"PyTorch's": lambda: F.linear(x, weight)}
    if x.dtype == torch.float32:
        runs["oneDNN"] = lambda: cpu_features.onednn_linear(x, weight)
    if native.supports_dense_linear(x, weight):
        runs["C++"] = lambda: native.dense_linear(x, weight)
    return runs


def _norms(x: torch.Tensor) -> dict[str, Run]:
    gain, bias = torch.randn(2, COLUMNS).unbind(0)
    runs: dict[str, Run] = {"PyTorch's": lambda: F.layer_norm(x, (COLUMNS,), gain, bias)}
    if native_norms.supports_layer_norm(x, gain, bias):
        runs["C++"] = lambda: native_norms.layer_norm(x, gain, bias, 1e-5)
    return runs


def _convolutions() -> dict[str, Run]:
    x = torch.randn(MAPS).to(memory_format=torch.channels_last)
    weight = torch.randn(MAPS[1], MAPS[1], 3, 3)
    runs: dict[str, Run] = {"PyTorch's": lambda: F.conv2d(x, weight, padding=1)}
    if backends.choose("convolution3x3", x, weight) == Backend.NATIVE:
        runs["C++"] = lambda: convolution3x3(x, weight, backend=Backend.NATIVE)
    return runs


def _attentions(parts: list[torch.Tensor]) -> dict[str, Run]:
    runs: dict[str, Run] = {
        "PyTorch's": lambda: pytorch.attention(*parts),
        "tiles": lambda: tiles.attention(*parts),
    }
    if native_heads.supports_attention(*parts):
        runs["C++"] = lambda: native_heads.attention(*parts)
    return runs


if __name__ == "__main__":
    main()
