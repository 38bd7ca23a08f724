"""Parameter, plan, study, training and truth files that are wrong: read, or an error of ours."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.figures import Figures, main
from support.hostile_texts import BASES, mutated, read


def round_of_cases(figures: Figures, seed: int) -> None:
    """Run one case of every kind, in the working directory."""
    Path("times.txt").write_text("".join(f"{0.1 * index}\n" for index in range(6)))
    for kind, base in BASES.items():
        path = Path(f"{kind}.yaml")
        path.write_bytes(mutated(base(), random.Random(f"{kind} {seed}")))
        figures.run(f"{kind} {seed}", partial(read, kind, path))
        if Path("executed").exists():
            figures.lose(f"{kind} {seed}", "the file's command was executed")
            Path("executed").unlink()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            main(__doc__, round_of_cases)
        finally:
            os.chdir(before)
