"""Checkpoints that are wrong in every way: a network, or an error of ours; nothing executed."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.figures import Figures, main
from support.hostile_checkpoints import KINDS, load_and_run, torch_file
from support.hostile_published import KINDS as PUBLISHED
from support.hostile_published import use
from support.hostile_released import import_and_load, wrong


def round_of_cases(folder: Path, figures: Figures, seed: int) -> None:
    """Run one case of every kind."""
    marker = folder / "executed"
    for kind, make in KINDS.items():
        path = folder / "network.safetensors"
        path.write_bytes(make(random.Random(seed)))
        figures.run(f"{kind} {seed}", partial(load_and_run, path))
    for kind, make in PUBLISHED.items():
        network = folder / "published"
        shutil.rmtree(network, ignore_errors=True)
        path = make(random.Random(seed), network)
        figures.run(f"published {kind} {seed}", partial(use, path))
    entries = wrong(random.Random(seed))
    figures.run(f"released {seed}", partial(import_and_load, entries, folder))
    path = folder / "network.pt"
    path.write_bytes(torch_file(random.Random(seed), marker))
    figures.run(f"torch {seed}", partial(load_and_run, path))
    if marker.exists():
        figures.lose(f"torch {seed}", "the file's code was executed")
        marker.unlink()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(__doc__, partial(round_of_cases, Path(folder)))
