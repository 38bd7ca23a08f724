"""Where a random walk was that is observed with noise, if how fast it walks is not known.

The logarithm of a map's scale walks along the way: by 0.5 % per root metre in one recording and by
6 % in the next. The observations show which. Their likelihood is taken over a grid of speeds and of
noise, and the answers of all are averaged with it (Bayesian model averaging), so that a few
observations, which show little, are read with the usual speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.scale_estimate import DRIFT

SPEEDS = DRIFT * 2.0 ** np.arange(-3, 4)
"""How fast a walk may be: its change along a unit, standard deviation."""

UNUSUAL = 3.0
"""Two of three maps drift by up to so many times more or less than the usual one."""

_LOG_PRIOR = -0.5 * (np.log(SPEEDS / DRIFT) / np.log(UNUSUAL)) ** 2

ANY = 100.0
"""Variance of a first value, which may be any: a factor of e to the tenth either way."""


@dataclass(frozen=True)
class WalkEstimate:
    """The walk at a place.

    Attributes:
        value: of it.
        variance: of the value, what is not known of speed and noise included.
    """

    value: float
    variance: float


def walk_at(
    place: float,
    places: NDArray[np.float64],
    values: NDArray[np.float64],
    noise: NDArray[np.float64],
    factors: Sequence[float] = (1.0,),
) -> WalkEstimate:
    """Return what a random walk was at a place, by what was observed on both sides of it.

    Args:
        place: where; the walk changes by `DRIFT` per root of a unit, as a rule.
        places: (N,) where it was observed, in the same unit, in any order.
        values: (N,) observed.
        noise: (N,) standard deviation of each, up to a factor that all have in common.
        factors: what that may be, each as likely as the others.
    """
    start = min(place, float(places.min()))
    along, there = places - start, place - start
    shared = np.minimum(along[:, None], along[None, :])
    towards = np.minimum(along, there)
    speeds = np.repeat(SPEEDS**2, len(factors))
    scales = np.tile(np.square(factors), len(SPEEDS))
    covariance = speeds[:, None, None] * shared + ANY
    covariance += scales[:, None, None] * np.diag(noise**2)
    middle = float(np.median(values))
    lower = np.linalg.cholesky(covariance)
    cross = speeds[:, None] * towards + ANY
    both = np.stack([np.broadcast_to(values - middle, cross.shape), cross], axis=-1)
    white, gain = np.moveaxis(np.linalg.solve(lower, both), -1, 0)
    log_likelihood = -0.5 * (white**2).sum(axis=1)
    log_likelihood -= np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    log_likelihood += np.repeat(_LOG_PRIOR, len(factors))
    weights = np.exp(log_likelihood - log_likelihood.max())
    weights /= weights.sum()
    means = (gain * white).sum(axis=1)
    variances = speeds * there + ANY - (gain**2).sum(axis=1)
    mean = float(weights @ means)
    variance = float(weights @ (variances + (means - mean) ** 2))
    return WalkEstimate(middle + mean, variance)
