"""Checkpoints that are wrong in every way: a network, or an error of ours; nothing executed."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from support.figures import Figures, run_for
from support.hostile_checkpoints import KINDS, load_and_run, torch_file


def round_of_cases(folder: Path, figures: Figures, seed: int) -> None:
    """Run one case of every kind."""
    marker = folder / "executed"
    for kind, make in KINDS.items():
        path = folder / "network.safetensors"
        path.write_bytes(make(random.Random(seed)))
        figures.run(f"{kind} {seed}", partial(load_and_run, path))
    path = folder / "network.pt"
    path.write_bytes(torch_file(random.Random(seed), marker))
    figures.run(f"torch {seed}", partial(load_and_run, path))
    if marker.exists():
        figures.lose(f"torch {seed}", "the file's code was executed")
        marker.unlink()


def main() -> None:
    """Run for some time and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        figures = run_for(seconds, partial(round_of_cases, Path(folder)))
    for fault in figures.faults:
        print(fault, file=sys.stderr)
    print(figures.line())


if __name__ == "__main__":
    main()
