"""Times INT4 linears beside 16- and 32-bit ones, interleaved in one run, and keeps the figures.

python benchmarks/linear.py [--threads 2] [--rounds 15] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import Int4Linear, cpu, int4_linear_int8
from rich.console import Console
from rich.table import Table
from timing import CLOCKS, compare, describe_run
from torch.nn import functional as F

# (tokens M, inputs K, outputs N): VGGT-1B's blocks at one and two frames of 518x392, its
# camera head, and the blocks of networks of 1/4 and 1/8 of its width.
SHAPES = [
    *((m, k, n) for m in (1041, 2082) for k, n in ((1024, 1024), (1024, 3072), (1024, 4096))),
    *((m, 4096, 1024) for m in (1041, 2082)),
    *((m, 2048, 2048) for m in (2, 8, 32)),
    (372, 128, 512),
    (372, 256, 1024),
    (1041, 256, 1024),
]
GROUP_SIZE = 128
COLD_BYTES = 2**26
"""Bytes of 16-bit weights that a candidate walks through: more than the last-level caches."""


def main() -> None:
    """Measure every shape, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    machine = describe_run(arguments.clock)
    rows = []
    with torch.inference_mode():
        for shape in SHAPES:
            figures = compare(candidates(*shape), arguments.rounds, CLOCKS[arguments.clock])
            rows.append({"shape": shape, **figures})
            console.print(f"measured M={shape[0]} K={shape[1]} N={shape[2]}", style="dim")
    machine["load_average_after"] = os.getloadavg()[0]
    console.print(as_table(rows, machine))
    arguments.out.mkdir(parents=True, exist_ok=True)
    waiting = machine["omp_wait_policy"].lower()
    path = arguments.out / f"linear_{arguments.threads}_threads_{arguments.clock}_{waiting}.json"
    content = {"machine": machine, "rounds": arguments.rounds, "group_size": GROUP_SIZE}
    path.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


def candidates(tokens: int, inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
    """Return what is compared, the first being the yardstick.

    Every call takes the next of many layers, as in a network, so that no weight of any
    candidate is still in a cache from its last use.
    """
    torch.manual_seed(0)
    q = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8)
    scales = (torch.rand(outputs, inputs // GROUP_SIZE) * 0.01 + 0.001).bfloat16()
    bias = torch.randn(outputs)
    weight = torch.randn(outputs, inputs)
    x = torch.randn(tokens, inputs)
    x16, bias16 = x.bfloat16(), bias.bfloat16()
    copies = range(max(2, COLD_BYTES // (2 * weight.numel())))
    packed = itertools.cycle([Int4Linear.from_quantized(q, scales, bias16) for _ in copies])
    weights = itertools.cycle([weight.clone() for _ in copies])
    weights16 = itertools.cycle([weight.bfloat16() for _ in copies])

    def unpack() -> None:
        layer = next(packed)
        cpu.dequantize(layer.qweight, layer.scales, torch.bfloat16)

    def in_integers() -> None:
        layer = next(packed)
        int4_linear_int8(x16, layer.qweight, layer.scales, layer.bias)

    return {
        "bf16": lambda: F.linear(x16, next(weights16), bias16),
        "int4": lambda: next(packed)(x16),
        "unpack": unpack,
        "fp32": lambda: F.linear(x, next(weights), bias),
        "int4 in fp32": lambda: next(packed)(x),
        "int4 in int8": in_integers,
    }


def as_table(rows: list[dict[str, Any]], machine: dict[str, Any]) -> Table:
    """Return the figures as a table: medians, and ratios to bfloat16 per round and of the bests."""
    title = "{cpu}, {threads} threads, {clock} time, torch {torch}".format(**machine)
    table = Table(title=title, caption="x: ratio to bf16, median of rounds (ratio of best times)")
    names = [name for name in rows[0] if name != "shape"]
    for heading in ("M", "K", "N", *names):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [str(size) for size in row["shape"]]
        for name in names:
            figure = row[name]
            ratio = f"  {figure['ratio']:.2f}x ({figure['best_ratio']:.2f}x)"
            cells.append(f"{figure['median_ms']:.2f} ms{'' if name == names[0] else ratio}")
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    main()
