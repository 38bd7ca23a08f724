"""Robust bundle adjustment: camera poses and points that agree best with where points were seen.

Levenberg-Marquardt on the Schur complement, in NumPy over all observations at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.bundle import Bundle, evaluate
from qvggt_core.stream.normal_equations import Plan, linearise

_FIRST_DAMPING = 1e-4
_LEAST_DAMPING = 1e-8
_MAX_DAMPING = 1e4
# Below this relative decrease of the cost further iterations do not pay.
_CONVERGED = 1e-4


@dataclass(frozen=True)
class Adjusted:
    """A bundle after its adjustment.

    Attributes:
        bundle: with poses and points replaced.
        weights: (N,) of the observations, 1 for those that agree, towards 0 for outliers.
        covariance: (6 F, 6 F) of the F free poses, in order: rotation, then translation, in the
            camera's frame, with the points marginalised; the observations' sigma taken as true;
            empty where it is not asked for.
        point_sigma: (L,) standard deviation of the inverse distances with the poses given, or
            empty likewise.
        iterations: number of linear systems solved.
        cost: mean robust cost of an observation.
    """

    bundle: Bundle
    weights: NDArray[np.float64]
    covariance: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    point_sigma: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    iterations: int = 0
    cost: float = 0.0


def adjust(
    bundle: Bundle,
    iterations: int = 8,
    outlier: float = 2.0,
    with_covariance: bool = False,
    with_point_sigma: bool = False,
) -> Adjusted:
    """Return the bundle with the poses and points that minimise Cauchy's robust cost.

    Args:
        bundle: cameras, points and observations; at least one camera must not be free, or the
            points need priors, for the gauge to be fixed.
        iterations: most linear systems to solve.
        outlier: residual in standard deviations at which an observation counts half.
        with_covariance: whether to compute the covariance too, and the points' sigmas.
        with_point_sigma: whether to compute the points' sigmas, a fraction of the work.
    """
    plan = Plan(bundle)
    here = evaluate(bundle, outlier)
    damping, done, system = _FIRST_DAMPING, 0, None
    while done < iterations:
        system = system or linearise(here, plan)
        done += 1
        step = system.solve(damping)
        there = here if step is None else evaluate(here.bundle.moved(*step), outlier)
        if not there.cost < here.cost:
            damping *= 10.0
            if damping > _MAX_DAMPING:
                break
            continue
        gain = (here.cost - there.cost) / max(here.cost, 1e-12)
        here, system = there, None
        damping = max(damping * 0.1, _LEAST_DAMPING)
        if gain < _CONVERGED:
            break
    covariance, point_sigma = np.empty((0, 0)), np.empty(0)
    if with_covariance or with_point_sigma:
        system = system or linearise(here, plan)
        point_sigma = system.point_sigmas()
        covariance = system.covariance() if with_covariance else covariance
    mean = here.cost / max(len(bundle.rays), 1)
    return Adjusted(here.bundle, here.weights, covariance, point_sigma, done, mean)
