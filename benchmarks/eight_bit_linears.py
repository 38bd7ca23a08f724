"""What 4-bit linears lose in 8-bit products: the small network on held-out flights.

Every window is predicted with the linears of encoder and aggregator in the compute dtype, in 8-bit
integers and in 8-bit floats (weight rows requantized, tokens quantized when they arrive). Beside
the scores stands how far depth and cameras move from the float32 prediction of the same weights.

    python benchmarks/eight_bit_linears.py --pools out/pools
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from held_out import evaluation_pool, rendered
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import VGGT, ComputeSettings, load_model, shipped_checkpoint
from qvggt_core.training.validation import evaluate_windows
from qvggt_core.training.windows import evaluation_windows

COLUMNS = ("auc_30", "auc_15", "auc_5", "rotation", "translation", "abs_rel", "delta")
BATCH = 8


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the one that ships")
    parser.add_argument("--pools", type=Path, default=Path("out/pools"))
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    output = Path("benchmarks/results/eight_bit_linears.json")
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = args.checkpoint or shipped_checkpoint()
    networks = {
        f"{name}, {linears}": load_model(checkpoint, dtype=dtype).configure(
            ComputeSettings(linears=linears)
        )
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        for linears in ("float", "int8", "fp8")
    }
    pool = rendered(evaluation_pool(), args.pools / "studio")

    rows = []
    table = Table(title="4-bit linears in the compute dtype and in 8 bits, held-out flights")
    for heading in ("frames", "arithmetic", *COLUMNS, "depth moves", "cameras move", "windows"):
        table.add_column(heading, justify="right")
    for frames in args.frames:
        windows = evaluation_windows(pool, frames)
        images = windows.images[:BATCH].float() / 255.0
        expected = predicted(networks["float32, float"], images)
        for name, network in networks.items():
            metrics = evaluate_windows(network, windows).to_dict()
            depth, poses = (
                float((a - b).norm() / b.norm())
                for a, b in zip(predicted(network, images), expected, strict=True)
            )
            moved = {"depth_moves": depth, "cameras_move": poses}
            rows.append({"frames": frames, "arithmetic": name, **metrics, **moved})
            numbers = [f"{metrics[column]:.4g}" for column in COLUMNS]
            numbers += [f"{100 * depth:.2f} %", f"{100 * poses:.2f} %", str(metrics["windows"])]
            table.add_row(str(frames), name, *numbers)
    console = Console(width=180)
    console.print(table)
    write_results(args.output, {"rows": rows}, checkpoint)
    console.print(f"wrote {args.output}")


@torch.no_grad()
def predicted(network: VGGT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return depth and pose encodings of windows (B, S, 3, H, W), float32."""
    prediction = network(images, heads=("camera", "depth"))
    assert prediction.depth is not None
    return prediction.depth.float(), prediction.pose_encodings[-1].float()


if __name__ == "__main__":
    main()
