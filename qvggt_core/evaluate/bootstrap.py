"""Confidence intervals by resampling windows (Efron's percentile bootstrap)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError

DRAWS = 2000
_CHUNK = 100  # Resamples at once, so that memory stays bounded.


class Interval(NamedTuple):
    """An estimate with the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def bootstrap(
    values: NDArray,
    statistic: Callable[..., NDArray] = np.mean,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return a statistic over windows and its 95 % interval.

    Args:
        values: (N,) one number per window, or (N, M) several; the statistic decides about NaN.
        statistic: takes an array and an axis (a tuple for several numbers per window).
        draws: resamples of N windows with replacement.
        seed: of the resamples, so that the same numbers give the same interval.

    Raises:
        EvaluationError: there are no windows.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise EvaluationError("a confidence interval needs windows: there are no windows")
    rng = np.random.default_rng(seed)
    axes = tuple(range(1, values.ndim + 1))
    samples = np.concatenate(
        [
            np.atleast_1d(
                statistic(values[rng.integers(len(values), size=(_CHUNK, len(values)))], axis=axes)
            )
            for _ in range(max(1, draws // _CHUNK))
        ]
    )
    low, high = np.percentile(samples, [2.5, 97.5])
    value = float(statistic(values[None], axis=axes)[0])
    return Interval(value, float(low), float(high))
