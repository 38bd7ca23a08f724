"""Times candidates against each other, interleaved in one run, for the benchmarks."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from machine import describe

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_MIN_SECONDS = 0.005
"""Shorter calls are repeated within a round until they take this long."""


def compare(
    runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Return milliseconds (median and best) and the median of per-round ratios to the first.

    Rounds interleave the candidates, every other one backwards, so that a machine that slows
    down slows all of them.
    """
    for run in runs.values():
        run()
    repeats = {
        name: max(1, int(_MIN_SECONDS / seconds(run, 1, clock))) for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        order = list(runs) if index % 2 else list(runs)[::-1]
        for name in order:
            times[name].append(seconds(runs[name], repeats[name], clock))
    yardstick = times[next(iter(runs))]
    return {
        name: {
            "median_ms": 1e3 * statistics.median(taken),
            "best_ms": 1e3 * min(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, yardstick, strict=True)),
            "best_ratio": min(taken) / min(yardstick),
        }
        for name, taken in times.items()
    }


def seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Return the time of one call by a clock in seconds, averaged over a few."""
    start = clock()
    for _ in range(repeats):
        run()
    return max(1e-9, clock() - start) / repeats


def describe_run(clock: str) -> dict[str, Any]:
    """Return what the figures depend on: the machine, and how busy it was."""
    return {
        **describe(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "clock": clock,
        "load_average": os.getloadavg()[0],
    }
