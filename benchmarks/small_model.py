"""How good the small network is, 4-bit beside full precision, on held-out flights and elsewhere.

Every window is also answered by the trivial predictor: no rotation, the mean direction, one
constant depth. "Further flights" of the studio are as many again, which no training run looks at;
"training flights" are the first ones that it was trained on.
Sample flights are those of `make run` with other seeds, from recording to trajectory. Pools and
recordings are rendered once and kept.

    python benchmarks/small_model.py --full-precision training/model.safetensors
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from held_out import (
    CONFIG,
    evaluation_pool,
    networks_parser,
    other_worlds,
    rendered,
    sample_flight_errors,
)
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import load_model, shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.network import TorchNetwork
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import Pool
from qvggt_core.training.validation import evaluate_windows, trivial_metrics
from qvggt_core.training.windows import evaluation_windows

OTHER_WORLDS = ("room", "corridor", "arena")
FURTHER = "studio, further flights"
TRAINING = "studio, training flights"
TRAINING_CLIPS = 48
COLUMNS = ("auc_30", "auc_15", "auc_5", "rotation", "translation", "abs_rel", "delta")


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    parser = networks_parser(__doc__)
    parser.add_argument("--pools", type=Path, default=Path("out/pools"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/small_model.json"))
    args = parser.parse_args()
    console = Console()

    family = evaluation_pool()
    pools = {
        "studio": family,
        FURTHER: replace(family, clips=2 * family.clips),
        TRAINING: replace(TrainConfig.read(CONFIG).pool, clips=TRAINING_CLIPS),
        **other_worlds(*OTHER_WORLDS),
    }
    checkpoints = [args.int4 or shipped_checkpoint()]
    networks = {"INT4": load_model(checkpoints[0])}
    if args.full_precision:
        checkpoints.append(args.full_precision)
        networks["float32"] = load_model(args.full_precision, dtype=torch.float32)

    rows = []
    table = Table(title="small network, held-out flights")
    for heading in ("world", "frames", "network", *COLUMNS, "windows"):
        table.add_column(heading, justify="right")
    for world, description in pools.items():
        pool = rendered(description, args.pools / world.replace(", ", "-").replace(" ", "-"))
        if world == FURTHER:
            pool = _without_first(pool, family.clips)
        for frames in (4, 8) if world == "studio" else (4,):
            windows = evaluation_windows(pool, frames)
            found = {name: evaluate_windows(net, windows) for name, net in networks.items()}
            found["trivial"] = trivial_metrics(windows)
            for name, metrics in found.items():
                values = metrics.to_dict()
                rows.append({"world": world, "frames": frames, "network": name, **values})
                numbers = [f"{values[column]:.3g}" for column in COLUMNS]
                table.add_row(world, str(frames), name, *numbers, str(metrics.windows))
    console.print(table)
    flights = {
        name: sample_flight_errors(TorchNetwork(net), args.pools, Parameters())
        for name, net in networks.items()
    }
    for name, errors in flights.items():
        per_seed = ", ".join(f"{seed}: {error:.2f}" for seed, error in errors.items())
        mean = sum(errors.values()) / len(errors)
        console.print(f"{name}: trajectory error {mean:.2f} % of the path, per seed {per_seed}")
    results = {"rows": rows, "sample_flights_ate_percent": flights}
    write_results(args.output, results, *checkpoints)
    console.print(f"wrote {args.output}")


def _without_first(pool: Pool, clips: int) -> Pool:
    return Pool(
        pool.config,
        pool.images[clips:],
        pool.depth[clips:],
        pool.world_from_camera[clips:],
        pool.intrinsics[clips:],
    )


if __name__ == "__main__":
    main()
