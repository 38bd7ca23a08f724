"""How many views of the overlap a window's scale needs, and what depth for the others costs.

Sample flights of several seeds are reconstructed with ever more views that get depth again
(`scale_views`, 0 for all). Beside the error of the trajectory stands the process CPU time of a
full window, relative to depth for all of its views: medians of interleaved rounds.

    python benchmarks/scale_views.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from held_out import sample_flight_errors
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import load_model, shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.network import TorchNetwork

WINDOWS = ((8, 4), (8, 2), (8, 1))
SCALE_VIEWS = (0, 1, 2, 3, 4, 6)
ROUNDS = 15


def relative_time(network: TorchNetwork, size: int, newest: int) -> float:
    """Return the time of a window with depth for its last views, relative to depth for all."""
    height, width = 3 * network.image_width // 4, network.image_width
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tokens = [network.encode(image)] * size
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for count in (newest, size):
            started = time.process_time()
            network.predict(tokens, height, width, count)
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def main() -> None:
    """Measure, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, default=Path("out/pools"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scale_views.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = TorchNetwork(load_model(shipped_checkpoint(), dtype=torch.float32))
    table = Table(title="small network, sample flights")
    for heading in ("window", "stride", "scale_views", "error, % of the path", "time"):
        table.add_column(heading, justify="right")
    rows = []
    for size, stride in WINDOWS:
        for views in SCALE_VIEWS:
            if views >= size - stride:
                continue
            parameters = Parameters(window_size=size, window_stride=stride, scale_views=views)
            errors = sample_flight_errors(network, args.recordings, parameters)
            row = {
                "window_size": size,
                "window_stride": stride,
                "scale_views": views,
                "ate_percent": errors,
                "mean_ate_percent": statistics.mean(errors.values()),
                "relative_time": relative_time(network, size, stride + views) if views else 1.0,
            }
            rows.append(row)
            error = f"{row['mean_ate_percent']:.2f}"
            table.add_row(
                str(size), str(stride), str(views or "all"), error, f"{row['relative_time']:.2f}"
            )
    Console().print(table)
    write_results(args.output, {"rows": rows}, shipped_checkpoint())


if __name__ == "__main__":
    main()
