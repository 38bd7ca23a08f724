"""How long fused steps of a block take beside the eager steps that they replace.

On a CPU: one thread, process CPU time, interleaved rounds, medians of per-round ratios. On a GPU
(`--device cuda`): Triton's `do_bench` medians, and 8-bit attention beside PyTorch's.

    python benchmarks/fused.py
    python benchmarks/fused.py --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from qvggt_kernels import HeadNorm, Rotation, int8_attention, layer_norm_add_, qk_norm_rope_
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from qvggt_core.measure.provenance import write_results
from qvggt_core.model.rope import RotaryTables, rotate

GRID = (28, 37)
"""Patches of an image of 392x518; with five special tokens, 1,041 tokens."""

HEADS, HEAD_DIM = 16, 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ATTENTION_FRAMES = (1, 2, 8, 30)
Step = Callable[[], object]


def main() -> None:
    """Measure, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    output = args.output or Path(f"benchmarks/results/fused_{device.type}.json")
    rows = []
    with torch.inference_mode():
        for name, dtype in DTYPES.items():
            for step, pair in _steps(device, dtype, args.frames).items():
                rows.append({"step": step, "dtype": name, **_measure(pair, device, args.rounds)})
    console = Console()
    table = Table(title=f"{args.frames} frames of {GRID[0] * GRID[1] + 5} tokens, {device.type}")
    for heading in ("step", "dtype", "eager ms", "fused ms", "ratio", "quartiles"):
        table.add_column(heading, justify="right")
    for row in rows:
        low, high = row["quartiles"]
        milliseconds = [f"{row[key]:.3f}" for key in ("eager_ms", "fused_ms", "ratio")]
        table.add_row(row["step"], row["dtype"], *milliseconds, f"{low:.2f}-{high:.2f}")
    console.print(table)
    about = {"device": device.type, "frames": args.frames, "threads": 1}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    write_results(output, about | {"rows": rows})
    console.print(f"wrote {output}")


def _steps(device: torch.device, dtype: torch.dtype, frames: int) -> dict[str, tuple[Step, Step]]:
    """Return the eager and the fused form of every step."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    cos, sin = RotaryTables(HEAD_DIM, 5)(*GRID, device)
    width = HEADS * HEAD_DIM
    x, branch = normal(1, frames, len(cos), width), 1e-3 * normal(1, frames, len(cos), width)
    gamma, weight, bias = normal(width), normal(width), normal(width)
    qkv = normal(1, frames, len(cos), 3, HEADS, HEAD_DIM)
    gains = [normal(HEAD_DIM) for _ in range(4)]

    def add_then_normalise() -> Tensor:
        return F.layer_norm(x.addcmul_(branch, gamma), (width,), weight, bias)

    def norm_and_rotate_by_frame() -> None:
        for index in range(2):
            for frame in qkv[:, :, :, index].unbind(1):
                y = F.layer_norm(frame, (HEAD_DIM,), *gains[2 * index : 2 * index + 2])
                frame.copy_(rotate(y, cos, sin))

    steps: dict[str, tuple[Step, Step]] = {
        "layer_norm_add_": (
            add_then_normalise,
            lambda: layer_norm_add_(x, branch, gamma, weight, bias, 1e-5),
        ),
        "qk_norm_rope_": (
            norm_and_rotate_by_frame,
            lambda: qk_norm_rope_(qkv, HeadNorm(*gains, 1e-5), Rotation(cos, sin)),
        ),
    }
    # On a CPU, 8-bit attention is a reference of accuracy, not of time.
    if device.type == "cuda" and dtype != torch.float32:
        for count in ATTENTION_FRAMES:
            window = normal(1, count * len(cos), 3, HEADS, HEAD_DIM).transpose(1, 3)
            steps[f"int8_attention, {count} frames"] = (
                partial(F.scaled_dot_product_attention, *window.unbind(2)),
                partial(int8_attention, *window.unbind(2)),
            )
    return steps


def _measure(pair: tuple[Step, Step], device: torch.device, rounds: int) -> dict:
    if device.type == "cuda":
        from triton.testing import do_bench

        times = [[do_bench(step, return_mode="median") / 1e3 for _ in range(3)] for step in pair]
    else:
        times = [[], []]
        for step in pair:
            step()
        for index in range(rounds):
            # Either goes first in turn: what one leaves in the cache helps the other.
            for which in (0, 1) if index % 2 else (1, 0):
                start = time.process_time()
                pair[which]()
                times[which].append(time.process_time() - start)
    ratios = [fused / eager for eager, fused in zip(*times, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "eager_ms": 1e3 * statistics.median(times[0]),
        "fused_ms": 1e3 * statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "quartiles": [quarters[0], quarters[2]],
    }


if __name__ == "__main__":
    main()
