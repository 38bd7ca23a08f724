"""Times calls side by side: interleaved rounds, and the speed-up round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

Clock = Literal["wall", "cpu", "cuda"]
Run = Callable[[], Any]

CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
"""Clocks that are read before and after: time passed, or time that this process's threads used."""

_LEAST_SECONDS = 0.005
_CUDA_MILLISECONDS = 100


def measure(
    runs: Mapping[str, Run], rounds: int, clock: Clock, budget_s: float = float("inf")
) -> dict[str, list[float]]:
    """Return the seconds of one call of each run, once per round.

    Rounds interleave the runs, every other one backwards, so that a machine that slows down
    slows all of them. Short calls are repeated within a round. Nothing is warmed up here.

    Args:
        runs: the calls, by name.
        rounds: how often each is timed, at least once.
        clock: "wall", "cpu" (with one thread, fair on a busy machine), or "cuda": the median of
            Triton's `do_bench`, or of CUDA events where there is no Triton.
        budget_s: seconds of wall time after which no further round begins.
    """
    started = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats: dict[str, int] = {}
    for index in range(rounds):
        for name in list(runs)[:: -1 if index % 2 else 1]:
            if name not in repeats:
                first = seconds(runs[name], 1, clock)
                repeats[name] = max(1, int(_LEAST_SECONDS / max(first, 1e-9)))
                if repeats[name] == 1:
                    times[name].append(first)
                    continue
            times[name].append(seconds(runs[name], repeats[name], clock))
        if time.perf_counter() - started > budget_s * (index + 1) / (index + 2):
            break
    return times


def seconds(run: Run, repeats: int, clock: Clock) -> float:
    """Return the seconds of one call by a clock, averaged over a few."""
    if clock == "cuda":
        return _cuda_seconds(run)
    read = CLOCKS[clock]
    start = read()
    for _ in range(repeats):
        run()
    return (read() - start) / repeats


def speedup(baseline: Sequence[float], times: Sequence[float]) -> float:
    """Return how many times longer the baseline took: the median of per-round ratios.

    Raises:
        ValueError: the two were not timed in the same rounds.
    """
    return statistics.median(a / b for a, b in zip(baseline, times, strict=True))


def _cuda_seconds(run: Run) -> float:
    try:
        from triton.testing import do_bench
    except ImportError:
        return _event_seconds(run)
    return do_bench(run, rep=_CUDA_MILLISECONDS, return_mode="median") / 1e3


def _event_seconds(run: Run) -> float:
    taken = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken)
