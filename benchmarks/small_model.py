"""How good the small network is, 4-bit beside full precision, on held-out flights and elsewhere.

Every window is also answered by the trivial predictor: no rotation, the mean direction, one
constant depth. Pools are rendered once and kept.

    python benchmarks/small_model.py --full-precision training/model.safetensors
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe
from rich.console import Console
from rich.table import Table

from qvggt_core.model import load_model, shipped_checkpoint
from qvggt_core.synthetic.assess import evaluate_windows, trivial_metrics
from qvggt_core.synthetic.pool import build_pool, open_pool
from qvggt_core.synthetic.train import TrainConfig
from qvggt_core.synthetic.windows import evaluation_windows

CONFIG = Path(__file__).parents[1] / "qvggt_core/synthetic/configs/small-continued.yaml"
OTHER_WORLDS = ("room", "corridor", "arena")
OTHER_CLIPS = 16
COLUMNS = ("auc_30", "auc_15", "auc_5", "rotation", "translation", "abs_rel", "delta")


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full-precision", type=Path)
    parser.add_argument("--int4", type=Path, default=None, help="default: the one that ships")
    parser.add_argument("--pools", type=Path, default=Path("out/pools"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/small_model.json"))
    args = parser.parse_args()
    console = Console()

    config = TrainConfig.read(CONFIG)
    family = config.evaluation_pool
    pools = {"studio": family} | {
        world: replace(family, worlds=(world,), flights=("wander",), clips=OTHER_CLIPS)
        for world in OTHER_WORLDS
    }
    networks = {"INT4": load_model(args.int4 or shipped_checkpoint())}
    if args.full_precision:
        networks["float32"] = load_model(args.full_precision, dtype=torch.float32)

    rows = []
    table = Table(title="small network, held-out flights")
    for heading in ("world", "frames", "network", *COLUMNS, "windows"):
        table.add_column(heading, justify="right")
    for world, description in pools.items():
        directory = args.pools / world
        build_pool(description, directory)
        for frames in (4, 8) if world == "studio" else (4,):
            windows = evaluation_windows(open_pool(directory), frames)
            answers = {name: evaluate_windows(net, windows) for name, net in networks.items()}
            answers["trivial"] = trivial_metrics(windows)
            for name, metrics in answers.items():
                values = metrics.to_dict()
                rows.append({"world": world, "frames": frames, "network": name, **values})
                numbers = [f"{values[column]:.3g}" for column in COLUMNS]
                table.add_row(world, str(frames), name, *numbers, str(metrics.windows))
    console.print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=2) + "\n")
    console.print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
