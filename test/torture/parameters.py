"""Parameter, plan, study, training and truth files that are wrong: read, or an error of ours."""

from __future__ import annotations

import argparse
import os
import random
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.figures import Figures, run_for
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


def main() -> None:
    """Run for some time and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            figures = run_for(seconds, round_of_cases)
        finally:
            os.chdir(before)
    for fault in figures.faults:
        print(fault, file=sys.stderr)
    print(figures.line())


if __name__ == "__main__":
    main()
