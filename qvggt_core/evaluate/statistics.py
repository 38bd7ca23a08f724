"""Summary statistics of a set of errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError


@dataclass(frozen=True)
class Statistics:
    """Errors in a few numbers, all in the unit of the errors.

    Attributes:
        rmse: root of the mean square.
        mean: mean.
        median: median.
        std: standard deviation about the mean, of the population.
        minimum: smallest.
        maximum: largest.
    """

    rmse: float
    mean: float
    median: float
    std: float
    minimum: float
    maximum: float


def statistics(errors: NDArray) -> Statistics:
    """Return the numbers of errors of any shape.

    Raises:
        EvaluationError: there are none, or one is not finite.
    """
    errors = np.asarray(errors, dtype=np.float64).ravel()
    if errors.size == 0:
        raise EvaluationError("there are no errors to sum up: nothing was compared")
    if not np.isfinite(errors).all():
        count = int((~np.isfinite(errors)).sum())
        raise EvaluationError(f"{count} of {errors.size} errors are not finite")
    return Statistics(
        rmse=float(np.sqrt(np.mean(errors**2))),
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        std=float(errors.std()),
        minimum=float(errors.min()),
        maximum=float(errors.max()),
    )
