"""How good the small network is, 4-bit beside full precision, on held-out flights and elsewhere.

Every window is also answered by the trivial predictor: no rotation, the mean direction, one
constant depth. "Further flights" of the studio are as many again, which no training run looks at;
"training flights" are the first ones that it was trained on.
Sample flights are those of `make run` with other seeds, from recording to trajectory. Pools and
recordings are rendered once and kept.

    python benchmarks/small_model.py --full-precision training/model.safetensors
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe
from rich.console import Console
from rich.table import Table

from qvggt_core.model import VGGT, load_model, shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_core.stream.network import TorchNetwork
from qvggt_core.training.clips import Pool, build_pool, open_pool
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.validation import evaluate_windows, trivial_metrics
from qvggt_core.training.windows import evaluation_windows
from qvggt_ros.drivers.options import ReplayOptions
from qvggt_ros.drivers.replay import replay
from qvggt_ros.drivers.synthesize import BagOptions, write_bag

CONFIG = Path(__file__).parents[1] / "qvggt_core/training/configs/small-continued.yaml"
OTHER_WORLDS = ("room", "corridor", "arena")
OTHER_CLIPS = 16
FURTHER = "studio, further flights"
TRAINING = "studio, training flights"
TRAINING_CLIPS = 48
SAMPLE_SEEDS = (1, 3, 5, 7, 9, 11, 13, 15)
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
    pools = {
        "studio": family,
        FURTHER: replace(family, clips=2 * family.clips),
        TRAINING: replace(config.pool, clips=TRAINING_CLIPS),
    } | {
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
        directory = args.pools / world.replace(", ", "-").replace(" ", "-")
        build_pool(description, directory)
        pool = open_pool(directory)
        if world == FURTHER:
            pool = _without_first(pool, family.clips)
        for frames in (4, 8) if world == "studio" else (4,):
            windows = evaluation_windows(pool, frames)
            answers = {name: evaluate_windows(net, windows) for name, net in networks.items()}
            answers["trivial"] = trivial_metrics(windows)
            for name, metrics in answers.items():
                values = metrics.to_dict()
                rows.append({"world": world, "frames": frames, "network": name, **values})
                numbers = [f"{values[column]:.3g}" for column in COLUMNS]
                table.add_row(world, str(frames), name, *numbers, str(metrics.windows))
    console.print(table)
    flights = {name: _sample_flights(net, args.pools) for name, net in networks.items()}
    for name, errors in flights.items():
        per_seed = ", ".join(f"{seed}: {error:.2f}" for seed, error in errors.items())
        mean = sum(errors.values()) / len(errors)
        console.print(f"{name}: trajectory error {mean:.2f} % of the path, per seed {per_seed}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": describe(), "rows": rows, "sample_flights_ate_percent": flights}
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"wrote {args.output}")


def _without_first(pool: Pool, clips: int) -> Pool:
    return Pool(
        pool.config,
        pool.images[clips:],
        pool.depth[clips:],
        pool.world_from_camera[clips:],
        pool.intrinsics[clips:],
    )


def _sample_flights(network: VGGT, recordings: Path) -> dict[int, float]:
    """Return the trajectory error per seed, in per cent of the path's length."""
    errors = {}
    for seed in SAMPLE_SEEDS:
        bag = recordings / f"sample-{seed}"
        if not bag.exists():
            flight = {"world": "studio", "flight": "survey", "seed": seed, "step": 0.1}
            write_bag(bag, BagOptions(**flight, frames=80, width=256, height=192))
        with tempfile.TemporaryDirectory() as directory:
            loaded = LoadedNetwork(TorchNetwork(network), Parameters(), {})
            options = ReplayOptions(report=False)
            summary = replay(bag, Path(directory) / "out", loaded, options)
        (segment,) = summary.metrics["accuracy"]["segments"]
        error = segment["alignments"]["sim3"]["translation"]["rmse"]
        errors[seed] = 100.0 * error / segment["truth_length"]
    return errors


if __name__ == "__main__":
    main()
