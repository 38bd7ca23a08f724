"""Held-out flights of the synthetic worlds, rendered once and kept, that benchmarks share."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_core.stream.network import TorchNetwork
from qvggt_core.synthetic.lens import LensChoice
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import Pool, build_pool, open_pool
from qvggt_ros.drivers.options import ReplayOptions
from qvggt_ros.drivers.replay import replay
from qvggt_ros.drivers.synthesize import BagOptions, write_bag

CONFIG = Path(__file__).parents[1] / "qvggt_core/training/configs/small-continued.yaml"
"""Configuration with which the small network was trained."""

OTHER_CLIPS = 16
SAMPLE_SEEDS = (1, 3, 5, 7, 9, 11, 13, 15)


def networks_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the 4-bit network and, optionally, the full-precision one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full-precision", type=Path)
    parser.add_argument("--int4", type=Path, default=None, help="default: the one that ships")
    return parser


def evaluation_pool() -> PoolConfig:
    """Return the description of the held-out flights of the world of the training."""
    return TrainConfig.read(CONFIG).evaluation_pool


def other_worlds(*worlds: str) -> dict[str, PoolConfig]:
    """Return descriptions of held-out flights in other worlds."""
    family = evaluation_pool()
    return {
        world: replace(family, worlds=(world,), flights=("wander",), clips=OTHER_CLIPS)
        for world in worlds
    }


def rendered(description: PoolConfig, directory: Path) -> Pool:
    """Return the clips of a description, rendered if they are not in the directory."""
    build_pool(description, directory)
    return open_pool(directory)


def sample_flight_errors(
    network: TorchNetwork, recordings: Path, parameters: Parameters
) -> dict[int, float]:
    """Return the error of the trajectory by seed of the flight, in per cent of the path."""
    errors = {}
    for seed in SAMPLE_SEEDS:
        bag = recordings / f"sample-{seed}"
        if not bag.exists():
            flight = {"world": "studio", "flight": "survey", "seed": seed, "step": 0.1}
            write_bag(bag, BagOptions(**flight, frames=80, lens=LensChoice(256, 192)))
        with tempfile.TemporaryDirectory() as directory:
            loaded = LoadedNetwork(network, parameters, {})
            options = ReplayOptions(report=False)
            summary = replay(bag, Path(directory) / "out", loaded, options)
        segments = summary.metrics["accuracy"]["segments"]
        error = sum(s["alignments"]["sim3"]["translation"]["rmse"] for s in segments)
        errors[seed] = 100.0 * error / sum(s["truth_length"] for s in segments)
    return errors
