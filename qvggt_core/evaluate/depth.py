"""Depth images against true ones: AbsRel, RMSE and the shares within a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError

_RATIO = 1.25


@dataclass(frozen=True)
class DepthErrors:
    """Errors of one depth image, or the mean over several (Eigen et al., NIPS 2014).

    Attributes:
        abs_rel: mean of |estimate - truth| / truth.
        rmse: root of the mean square of estimate - truth, in the truth's unit.
        delta_1: share of pixels whose ratio to the truth, whichever is above 1, is below 1.25.
        delta_2: the same for 1.25 squared.
        delta_3: the same for 1.25 cubed.
        scale: factor that the estimate was multiplied with.
        valid: share of the pixels with a true depth that have an estimated one.
    """

    abs_rel: float
    rmse: float
    delta_1: float
    delta_2: float
    delta_3: float
    scale: float
    valid: float


def depth_errors(estimate: NDArray, truth: NDArray, scale: float | None = None) -> DepthErrors:
    """Compare a depth image with the true one, where both are valid.

    Args:
        estimate: (..., H, W) depth along the optical axis; invalid where not finite or not
            positive.
        truth: (..., H, W) likewise.
        scale: factor for the estimate; None takes the ratio of the medians.

    Raises:
        EvaluationError: the shapes differ, or no pixel is valid in both.
    """
    estimate = np.asarray(estimate, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64)
    if estimate.shape != truth.shape:
        raise EvaluationError(f"depth of {estimate.shape} is no match for a truth of {truth.shape}")
    with np.errstate(invalid="ignore"):
        known = np.isfinite(truth) & (truth > 0.0)
        both = known & np.isfinite(estimate) & (estimate > 0.0)
    if not both.any():
        raise EvaluationError(
            f"no pixel has both depths: {int(known.sum())} of {truth.size} have a true one"
        )
    found, true = estimate[both], truth[both]
    factor = float(np.median(true) / np.median(found)) if scale is None else scale
    found = factor * found
    ratio = np.maximum(found / true, true / found)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(found - true) / true)),
        rmse=float(np.sqrt(np.mean((found - true) ** 2))),
        delta_1=float(np.mean(ratio < _RATIO)),
        delta_2=float(np.mean(ratio < _RATIO**2)),
        delta_3=float(np.mean(ratio < _RATIO**3)),
        scale=factor,
        valid=float(both.sum() / known.sum()),
    )


def window_depth_errors(estimate: NDArray, truth: NDArray) -> DepthErrors:
    """Compare the depth images of a window after one scale, the ratio of all medians.

    A network predicts every pixel, so an invalid estimate is an error of its own: AbsRel, RMSE
    and shares are NaN then.

    Args:
        estimate: (S, H, W) depth along the optical axis.
        truth: (S, H, W) likewise; NaN where there is none.

    Raises:
        EvaluationError: see `depth_errors`.
    """
    errors = depth_errors(estimate, truth)
    if errors.valid == 1.0:
        return errors
    nan = float("nan")
    return replace(errors, abs_rel=nan, rmse=nan, delta_1=nan, delta_2=nan, delta_3=nan)


def mean_depth_errors(frames: Sequence[DepthErrors]) -> DepthErrors:
    """Return the mean of the errors of several images, each with the same weight.

    Raises:
        EvaluationError: there are none.
    """
    if not frames:
        raise EvaluationError("there is no depth image with a true one beside it")
    names = DepthErrors.__dataclass_fields__
    return DepthErrors(
        **{name: float(np.mean([getattr(frame, name) for frame in frames])) for name in names}
    )
