r"""What keeping encoder tokens with their frames gains in a sliding window; it changes nothing.

Two streams see the same frames through the same network, one after the other on every frame:
one keeps a frame's tokens while the frame stays in the window, the other encodes the whole
window again in every run. Weights are random, of VGGT's proportions. Times are process CPU time;
the gain is the median over the frames of the ratio of the two.

    python benchmarks/encoder_cache.py
    python benchmarks/encoder_cache.py --checkpoint out/vggt-1b-int4.safetensors --width 266 \
        --height 196 --runs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.measure.stream_timing import StreamTimes, time_streams
from qvggt_core.model import VGGT, EncoderConfig, ModelConfig, load_model
from qvggt_core.parameters import Parameters

_WIDTH = {"embed_dim": 384, "num_heads": 6}
_HEADS = {"camera_num_heads": 6, "dpt_features": 96, "dpt_out_channels": (96, 192, 384, 384)}
MIDDLE = ModelConfig(
    img_size=224, encoder=EncoderConfig(depth=24, **_WIDTH), point_head=False, **_WIDTH, **_HEADS
)
"""VGGT-1B with three eighths of its width."""


def middle_network() -> VGGT:
    """Return a network of random weights."""
    torch.manual_seed(0)
    return VGGT(MIDDLE).initialise().to_compute(torch.float32).requires_grad_(False)


def main() -> None:
    """Run both streams, print a table, and add the result to the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: a random network of middle size")
    parser.add_argument("--height", type=int, default=168)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--runs", type=int, default=8, help="of full windows that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/encoder_cache.json")
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.checkpoint) if args.checkpoint else middle_network()
    times = time_streams(
        model, (args.height, args.width), args.window, args.stride, args.runs, clock="cpu"
    )
    row = as_row(args, model, times)
    show(row)
    write_results(args.output, {"rows": [*other_rows(args.output, row), row]})


def as_row(args: argparse.Namespace, model: VGGT, times: StreamTimes) -> dict[str, Any]:
    """Return settings and figures as plain data."""
    gains = [slow / fast for slow, fast in zip(times.encoding, times.cached, strict=True)]
    return {
        "network": "VGGT-1B" if args.checkpoint else "middle",
        "dtype": str(next(model.aggregator.parameters()).dtype).removeprefix("torch."),
        "height": args.height,
        "width": args.width,
        "window": args.window,
        "stride": args.stride,
        "scale_views": Parameters().scale_views,
        "threads": args.threads,
        "windows": len(gains),
        "seconds": {
            "cache": statistics.median(times.cached),
            "no cache": statistics.median(times.encoding),
        },
        "gain": statistics.median(gains),
        "gains": gains,
        "bit_equal": times.bit_equal,
    }


def show(row: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title="encoder tokens kept with their frames")
    for heading in ("network", "image", "s per window", "without cache", "gain", "bit-equal"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{row['network']}, {row['dtype']}",
        f"{row['height']}x{row['width']}",
        f"{row['seconds']['cache']:.3f}",
        f"{row['seconds']['no cache']:.3f}",
        f"{row['gain']:.2f}",
        str(row["bit_equal"]),
    )
    Console().print(table)


def other_rows(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a file that were measured with other settings."""
    if not path.exists():
        return []
    settings = ("network", "dtype", "height", "width", "window", "stride", "threads")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [old for old in rows if any(old[name] != row[name] for name in settings)]


if __name__ == "__main__":
    main()
