"""Figures of a part of the torture: every case is a result, an explained error, or a fault."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qvggt_core.errors import QvggtError

SHOWN = 10
"""Faults whose tracebacks are kept."""


@dataclass
class Figures:
    """Counts of a part; see `torture.__main__`.

    Attributes:
        cases: run so far.
        explained: of them, those with a result or an error of ours.
        tracebacks: those with any other exception.
        lost: those after which something was wrong without an error.
        slowest_s: the longest single case.
        faults: the case and the traceback of the first faults.
    """

    cases: int = 0
    explained: int = 0
    tracebacks: int = 0
    lost: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def run(self, name: str, case: Callable[[], Any]) -> None:
        """Run a case and count it."""
        started = time.monotonic()
        self.cases += 1
        try:
            case()
        except QvggtError as error:
            self.explained += 1
            if not str(error).strip() or len(str(error)) > 4000:
                self.lose(name, f"an error of {len(str(error))} characters")
        except Exception:
            self.tracebacks += 1
            if len(self.faults) < SHOWN:
                self.faults.append(f"{name}\n{traceback.format_exc()[-8000:]}")
        else:
            self.explained += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def lose(self, name: str, what: str) -> None:
        """Count something that is wrong without an error."""
        self.lost += 1
        if len(self.faults) < SHOWN:
            self.faults.append(f"{name}: {what}")

    def line(self) -> str:
        """Return the line of JSON that the torture reads."""
        numbers = {key: value for key, value in vars(self).items() if key != "faults"}
        own, children = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        peak = max(resource.getrusage(who).ru_maxrss for who in (own, children)) / 1024
        rounded = {"slowest_s": round(self.slowest_s, 2), "peak_mb": round(peak)}
        return json.dumps({**numbers, **rounded})


def run_for(
    seconds: float, part: Callable[[Figures, int], None], figures: Figures | None = None
) -> Figures:
    """Run a part with seed after seed until its time is over."""
    figures = figures or Figures()
    end = time.monotonic() + seconds
    seed = 0
    while time.monotonic() < end:
        part(figures, seed)
        seed += 1
    return figures


def main(description: str | None, part: Callable[[Figures, int], None]) -> None:
    """Run a part of the torture as a program: for `--seconds`, quietly, figures at the end."""
    import torch

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    figures = run_for(seconds, part)
    for fault in figures.faults:
        print(fault, file=sys.stderr)
    print(figures.line())


def outcome(case: Callable[[], Any]) -> str:
    """Return "a result", or the message of an error of ours."""
    try:
        case()
    except QvggtError as error:
        return str(error)
    return "a result"
