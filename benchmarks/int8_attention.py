"""What 8-bit attention costs in accuracy, on the room network and on held-out windows.

The parameter `attention` is once "auto" and once "int8", in float32 and in bfloat16: errors
against the ground truth, and how far predictions move from those of float32 with "auto". The
rounding of bfloat16 is the baseline for such moves. Pools are rendered once and kept.

    python benchmarks/int8_attention.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from held_out import evaluation_pool, other_worlds, rendered
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.measure.provenance import write_results
from qvggt_core.model import VGGT, ComputeSettings, decode_pose, load_model
from qvggt_core.training.validation import evaluate_windows
from qvggt_core.training.windows import Windows, evaluation_windows

CHECKPOINT = Path(__file__).parent / "checkpoints/qvggt-small-int4.safetensors"
BATCH = 8
METRICS = ("auc_30", "auc_5", "abs_rel")
MOVES = ("depth_move", "rotation_move")


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, default=Path("out/pools"))
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/int8_attention.json")
    )
    args = parser.parse_args()
    console = Console()

    pools = {"studio": evaluation_pool(), **other_worlds("room", "corridor")}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    networks = {name: load_model(CHECKPOINT, dtype=dtype) for name, dtype in dtypes.items()}
    rows = []
    table = Table(title="8-bit attention, the room network, held-out windows")
    for heading in ("world", "frames", "dtype", "attention", *METRICS, *MOVES):
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for world, description in pools.items():
        pool = rendered(description, args.pools / world)
        for frames in (4, 8) if world == "studio" else (4,):
            windows = evaluation_windows(pool, frames)
            networks["float32"].configure(ComputeSettings())
            exact = _predictions(networks["float32"], windows)
            for dtype, network in networks.items():
                for kind in ("auto", "int8"):
                    network.configure(ComputeSettings(attention=kind))
                    values = evaluate_windows(network, windows).to_dict()
                    values |= _moves(exact, _predictions(network, windows))
                    about = {"world": world, "frames": frames, "dtype": dtype, "attention": kind}
                    rows.append(about | values)
                    numbers = [f"{values[column]:.3g}" for column in (*METRICS, *MOVES)]
                    table.add_row(*map(str, about.values()), *numbers)
    console.print(table)
    write_results(args.output, {"rows": rows}, CHECKPOINT)
    console.print(f"wrote {args.output}")


@torch.no_grad()
def _predictions(network: VGGT, windows: Windows) -> tuple[NDArray, NDArray]:
    """Return poses camera_from_world (B, S, 4, 4) and depth (B, S, H, W)."""
    poses, depths = [], []
    height, width = windows.images.shape[-2:]
    for images in windows.images.split(BATCH):
        prediction = network(images.float() / 255.0, heads=("camera", "depth"))
        camera_from_world, _ = decode_pose(prediction.pose_encodings[-1].float(), height, width)
        assert isinstance(prediction.depth, Tensor)
        poses.append(camera_from_world.double().numpy())
        depths.append(prediction.depth.float().numpy())
    pose = np.concatenate(poses)
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*pose.shape[:2], 1, 4))
    return np.concatenate([pose, bottom], axis=2), np.concatenate(depths)


def _moves(before: tuple[NDArray, NDArray], after: tuple[NDArray, NDArray]) -> dict[str, float]:
    """Return how far predictions moved.

    Returns:
        `depth_move`, the median over pixels of |d' - d| / d; `depth_move_95`, the 95th
        percentile; `rotation_move`, the mean angle between rotations of frames, degrees.
    """
    depth = np.abs(after[1] / before[1] - 1)
    turn = (after[0] @ inverse(before[0]))[..., :3, :3]
    return {
        "depth_move": float(np.median(depth)),
        "depth_move_95": float(np.percentile(depth, 95)),
        "rotation_move": float(np.degrees(rotation_angle(turn)).mean()),
    }


if __name__ == "__main__":
    main()
