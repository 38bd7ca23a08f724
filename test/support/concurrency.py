"""Runs a function in several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Result = TypeVar("Result")


def results_of_threads(
    run: Callable[[int], Result], count: int, repeats: int = 50
) -> list[tuple[int, Result]]:
    """Call `run` with the number of each thread, repeatedly, all threads starting together.

    Returns:
        Every result with its thread's number.
    """
    start = Barrier(count)

    def work(index: int) -> list[tuple[int, Result]]:
        start.wait()
        return [(index, run(index)) for _ in range(repeats)]

    with ThreadPoolExecutor(count) as pool:
        return [result for results in pool.map(work, range(count)) for result in results]
