"""Recordings cut, flipped, zeroed, spliced: read as far as they go, with a warning, or refused."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.figures import Figures, main
from support.hostile_recordings import DAMAGES, damaged, make_bases, read_through, reconstruct

REPLAYED = 4
"""Of so many damaged recordings, one is reconstructed too: that takes twenty times as long."""


def round_of_cases(bases: dict[str, Path], folder: Path, figures: Figures, seed: int) -> None:
    """Run one case of every damage of every kind."""
    for kind, base in bases.items():
        for damage in DAMAGES:
            name = f"{kind}, {damage}, {seed}"
            rng = random.Random(name)
            recording = damaged(base, folder / "in", damage, rng)
            wrong: list[str] = []

            def case(recording: Path, rng: random.Random, wrong: list[str]) -> None:
                wrong += reconstruct(recording, folder / "out", rng)

            figures.run(f"{name}, read", partial(read_through, recording))
            if seed % REPLAYED == 0:
                figures.run(name, partial(case, recording, rng, wrong))
            for what in wrong:
                figures.lose(name, what)


if __name__ == "__main__":
    with TemporaryDirectory() as work:
        whole = make_bases(Path(work))
        main(__doc__, partial(round_of_cases, whole, Path(work)))
