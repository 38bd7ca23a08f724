"""Errors of relative camera poses in a window, and the area under their accuracy curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError
from qvggt_core.geometry.poses import inverse, rotation_angle


@dataclass(frozen=True)
class RelativePoseErrors:
    """Errors of all ordered pairs i < j of a window, in degrees.

    Attributes:
        rotation: (N,) angle between estimated and true relative rotation.
        translation: (N,) angle between estimated and true direction of the relative
            translation, in [0, 180], or in [0, 90] if folded; the largest where the estimate has
            no translation at all.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @property
    def worst(self) -> NDArray[np.float64]:
        """The larger of both errors, (N,)."""
        return np.maximum(self.rotation, self.translation)


def relative_pose_errors(
    estimate_camera_from_world: NDArray,
    truth_camera_from_world: NDArray,
    min_baseline: float = 1e-6,
    *,
    fold_direction: bool = False,
) -> RelativePoseErrors:
    """Compare all pairs of cameras of one window, whatever its scale and world frame.

    Args:
        estimate_camera_from_world: (S, 4, 4).
        truth_camera_from_world: (S, 4, 4).
        min_baseline: pairs whose true cameras are not further apart have no direction of
            translation; they are left out.
        fold_direction: whether a direction and its opposite count as the same, as in VGGT's and
            PoseDiffusion's evaluations; then the error of direction is at most 90 degrees.

    Raises:
        EvaluationError: the shapes differ, there are fewer than two cameras, or a value is not
            finite.
    """
    estimate = np.asarray(estimate_camera_from_world, dtype=np.float64)
    truth = np.asarray(truth_camera_from_world, dtype=np.float64)
    if estimate.shape != truth.shape or estimate.shape[1:] != (4, 4):
        raise EvaluationError(
            f"poses of shapes {estimate.shape} and {truth.shape} cannot be compared: "
            "both must be (S, 4, 4)"
        )
    if len(truth) < 2:
        raise EvaluationError(f"{len(truth)} camera(s) make no pair: give at least 2")
    for name, poses in (("estimated", estimate), ("true", truth)):
        wrong = np.flatnonzero(~np.isfinite(poses).all(axis=(1, 2)))
        if len(wrong):
            raise EvaluationError(
                f"{len(wrong)} of {len(poses)} {name} poses are not finite, the first is number "
                f"{wrong[0]}: they have no error"
            )
    first, second = np.triu_indices(len(truth), k=1)
    estimated = estimate[second] @ inverse(estimate[first])
    true = truth[second] @ inverse(truth[first])
    moved = np.linalg.norm(true[:, :3, 3], axis=1) > min_baseline
    estimated, true = estimated[moved], true[moved]
    difference = np.swapaxes(estimated[:, :3, :3], 1, 2) @ true[:, :3, :3]
    return RelativePoseErrors(
        rotation=np.degrees(rotation_angle(difference)),
        translation=_direction_error(estimated[:, :3, 3], true[:, :3, 3], fold_direction),
    )


def area_under_curve(errors: NDArray, threshold: int) -> float:
    """Return AUC@threshold of errors in degrees, in [0, 100].

    The curve is the share of errors below 1, 2, ..., threshold degrees, and its area the mean
    of those shares (Wang et al., VGGSfM, CVPR 2024, as VGGT reports it).

    Raises:
        EvaluationError: there are no errors, some are not finite, or the threshold is below 1.
    """
    errors = np.asarray(errors)
    if errors.size == 0:
        raise EvaluationError("the area under an accuracy curve needs at least one pair of views")
    if threshold < 1:
        raise EvaluationError(f"a threshold of {threshold} degrees has no curve: give at least 1")
    wrong = int(np.count_nonzero(~np.isfinite(errors)))
    if wrong:
        raise EvaluationError(f"{wrong} of {errors.size} pose errors are not finite")
    return 100.0 * float(np.mean([(errors < limit).mean() for limit in range(1, threshold + 1)]))


def concatenate(errors: Sequence[RelativePoseErrors]) -> RelativePoseErrors:
    """Return the errors of many windows as one.

    Raises:
        EvaluationError: there are no windows.
    """
    if not errors:
        raise EvaluationError("there are no windows to evaluate")
    return RelativePoseErrors(
        rotation=np.concatenate([e.rotation for e in errors]),
        translation=np.concatenate([e.translation for e in errors]),
    )


def _direction_error(estimate: NDArray, truth: NDArray, fold: bool) -> NDArray[np.float64]:
    cross = np.linalg.norm(np.cross(estimate, truth), axis=1)
    dot = np.einsum("ni,ni->n", estimate, truth)
    angle = np.degrees(np.arctan2(cross, dot))
    largest = 180.0
    if fold:
        angle, largest = np.minimum(angle, 180.0 - angle), 90.0
    return np.where(np.linalg.norm(estimate, axis=1) > 0, angle, largest)
