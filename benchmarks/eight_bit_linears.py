"""What 4-bit linears, and attention, lose in 8-bit products: the network that ships, new places.

Every window is solved with the linears of encoder and aggregator in the compute dtype, in 8-bit
integers and in 8-bit floats (weight rows requantized, tokens quantized when they arrive), and with
attention's scores in 8 bits. Windows are of worlds of other kinds than those of training, cameras
calibrated. Drift is against the same weights in float32, medians over windows.

    python benchmarks/eight_bit_linears.py --pools out/new_places
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import ComputeSettings, load_model, shipped_checkpoint
from qvggt_core.quantize.comparison_results import statistic_of
from qvggt_core.quantize.scores import run_windows, score_outputs
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import build_pool
from qvggt_core.training.windows import evaluation_windows

CONFIG = Path(__file__).parents[1] / "qvggt_core/training/configs/varied.yaml"
COLUMNS = (
    "auc_30",
    "auc_5",
    "auc_3",
    "abs_rel",
    "matched",
    "matches_moved",
    "pose_drift",
    "depth_drift",
)
ARITHMETIC = {
    "float32": (torch.float32, ComputeSettings()),
    "float32, linears int8": (torch.float32, ComputeSettings(linears="int8")),
    "float32, linears and attention int8": (
        torch.float32,
        ComputeSettings(linears="int8", attention="int8"),
    ),
    "float32, linears fp8": (torch.float32, ComputeSettings(linears="fp8")),
    "bfloat16": (torch.bfloat16, ComputeSettings()),
    "bfloat16, linears int8": (torch.bfloat16, ComputeSettings(linears="int8")),
}


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the one that ships")
    parser.add_argument("--pools", type=Path, default=Path("out/new_places"))
    parser.add_argument("--clips", type=int, default=64, help="a window of each")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    output = Path("benchmarks/results/eight_bit_linears.json")
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = args.checkpoint or shipped_checkpoint()
    places = replace(TrainConfig.read(CONFIG).evaluation_pool, clips=args.clips)
    pool = build_pool(places, args.pools / "other_kinds_of_worlds", workers=1)
    windows = evaluation_windows(pool, args.frames, gaps=(2,))

    full, rows = None, []
    table = Table(title="4-bit linears in the compute dtype and in 8 bits, new places")
    for heading in ("arithmetic", *COLUMNS):
        table.add_column(heading, justify="right")
    for name, (dtype, settings) in ARITHMETIC.items():
        network = load_model(checkpoint, dtype=dtype).configure(settings)
        outputs = run_windows(network, windows)
        full = full or outputs
        scores = score_outputs(outputs, windows, full).values
        values = {column: float(statistic_of(column)(scores[column])) for column in COLUMNS}
        rows.append({"frames": args.frames, "arithmetic": name, **values})
        table.add_row(name, *(f"{value:.4g}" for value in values.values()))
    console = Console(width=180)
    console.print(table)
    write_results(args.output, {"windows": len(windows.images), "rows": rows}, checkpoint)
    console.print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
