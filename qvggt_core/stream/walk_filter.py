"""Where a random walk is, followed by observations of which some are wrong.

A Gaussian sum filter (Alspach and Sorenson, 1972): an observation is right or wrong, which makes
two of each Kalman filter, and the likeliest are kept. A bank has them for each speed of the walk
and each noise, weighted by how well they foretold what was observed (multiple model estimation).
Speed and noise may change: now and then, each goes on from what all give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.scale_estimate import DRIFT
from qvggt_core.stream.scale_walk import ANY, SPEEDS, UNUSUAL, WalkEstimate

# Below the usual speed: all of a map's observations are there to show that it is a faster one.
_LIKELIEST = 0.5 * DRIFT
# Share of the observations that are wrong, and the standard deviation of how much they are.
_WRONG, _GROSS = 0.1, 0.5
_SHARES = np.log([1.0 - _WRONG, _WRONG])[:, None, None]
# The noise may be so many times what is claimed, and is within a factor of the last, as a rule.
_FACTORS, _USUAL = 2.0 ** np.arange(0.0, 2.5, 0.5), 2.0
# A speed or noise changes with so much of a chance from one observation to the next.
_CHANGES = 0.01
# Filters that are kept of each speed and noise.
_KEPT = 8


class WalkFilter:
    """Follows a random walk whose speed, its change per root of a unit, is of those in `SPEEDS`."""

    def __init__(self) -> None:
        """Start where nothing is known."""
        fast = np.log(SPEEDS / _LIKELIEST) / np.log(UNUSUAL)
        noisy = np.log(_FACTORS) / np.log(_USUAL)
        self._prior = -0.5 * (fast[:, None] ** 2 + noisy**2).reshape(-1, 1)
        self._prior -= np.log(np.exp(self._prior).sum())
        self._walk = np.repeat(SPEEDS**2, len(_FACTORS))[:, None]
        self._factor = np.tile(_FACTORS**2, len(SPEEDS))[:, None]
        # Of each speed and noise (rows) the filters (columns); weights are logarithms.
        self._weights = self._prior
        self._means, self._variances = np.zeros_like(self._prior), np.full_like(self._prior, ANY)

    def observe(self, step: float, value: float, sigma: float) -> WalkEstimate:
        """Take an observation; return the walk there.

        Args:
            step: how far from the last one, units.
            value: observed.
            sigma: standard deviation that is claimed.
        """
        before = self._variances + self._walk * step
        noise = self._factor * sigma**2 + np.array([0.0, _GROSS**2])[:, None, None]
        expected, off = before + noise, value - self._means
        likelihood = _SHARES - 0.5 * (off**2 / expected + np.log(expected))
        means, variances = self._means + before / expected * off, before * noise / expected
        split = [np.hstack(tuple(each)) for each in (self._weights + likelihood, means, variances)]
        best = np.argsort(-split[0], axis=1)[:, :_KEPT]
        weights, means, variances = (np.take_along_axis(each, best, axis=1) for each in split)
        weights -= weights.max()
        weights -= np.log(np.exp(weights).sum())
        found = _mean(np.exp(weights), means, variances)
        self._weights = np.hstack([weights + np.log1p(-_CHANGES), self._prior + np.log(_CHANGES)])
        self._means = np.hstack([means, np.full_like(self._prior, found.value)])
        self._variances = np.hstack([variances, np.full_like(self._prior, found.variance)])
        return found


def _mean(
    weights: NDArray[np.float64], means: NDArray[np.float64], variances: NDArray[np.float64]
) -> WalkEstimate:
    """Return mean and variance of a mixture."""
    mean = float((weights * means).sum())
    return WalkEstimate(mean, float((weights * (variances + (means - mean) ** 2)).sum()))
