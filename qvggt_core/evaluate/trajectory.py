"""Trajectories against the truth: Sim(3) alignment and the absolute trajectory error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError

# Positions that spread less than this share of their largest spread are on a point or a line.
_RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class TrajectoryError:
    """Distances between aligned and true positions, in the truth's unit.

    Attributes:
        rmse: root of the mean square.
        mean: mean.
        median: median.
        maximum: largest.
        path_length: length of the true path.
        scale: factor of the alignment that was applied.
    """

    rmse: float
    mean: float
    median: float
    maximum: float
    path_length: float
    scale: float


def align_sim3(
    estimate: NDArray, truth: NDArray, *, with_scale: bool = True
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return the similarity (scale, R, t) that minimises |truth - (scale R estimate + t)|^2.

    Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", PAMI 1991. Points on one line leave the turn about that line open; of the
    equally good rotations one is returned.

    Args:
        estimate: (N, 3) positions, N >= 2.
        truth: (N, 3) positions.
        with_scale: whether the scale is free; otherwise it is 1.

    Raises:
        EvaluationError: the shapes do not fit, a value is not finite, or all positions of one
            side are the same.
    """
    estimate, truth = _positions(estimate, "estimate"), _positions(truth, "truth")
    if len(estimate) != len(truth) or len(truth) < 2:
        raise EvaluationError(
            f"{len(estimate)} estimated and {len(truth)} true positions cannot be aligned: "
            "there must be as many of both, and at least 2"
        )
    estimate_mean, truth_mean = estimate.mean(axis=0), truth.mean(axis=0)
    estimate_offset, truth_offset = estimate - estimate_mean, truth - truth_mean
    variance = float(np.mean(np.sum(estimate_offset**2, axis=1)))
    for name, offset, mean in (
        ("estimated", estimate_offset, estimate_mean),
        ("true", truth_offset, truth_mean),
    ):
        if np.abs(offset).max() <= _RANK_TOLERANCE * max(1.0, np.abs(mean).max()):
            raise EvaluationError(
                f"all {len(offset)} {name} positions are the same: a path without extent has "
                "no alignment"
            )
    u, singular, vt = np.linalg.svd(truth_offset.T @ estimate_offset / len(truth))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * signs) @ vt
    scale = float(np.sum(singular * signs) / variance) if with_scale else 1.0
    return scale, rotation, truth_mean - scale * rotation @ estimate_mean


def absolute_trajectory_error(
    estimate_poses: NDArray,
    truth_poses: NDArray,
    alignment: Literal["none", "se3", "sim3"] = "sim3",
) -> TrajectoryError:
    """Compare the positions of two trajectories, pose by pose.

    Args:
        estimate_poses: (N, 4, 4) world_from_camera.
        truth_poses: (N, 4, 4) world_from_camera at the same stamps.
        alignment: what is aligned before: nothing, rotation and translation, or the scale too.

    Raises:
        EvaluationError: the shapes do not fit, a value is not finite, or no alignment is
            defined.
    """
    if alignment not in ("none", "se3", "sim3"):
        raise EvaluationError(f"there is no alignment {alignment!r}; known: none, se3, sim3")
    for name, poses in (("estimate", estimate_poses), ("truth", truth_poses)):
        if np.ndim(poses) != 3 or np.shape(poses)[1:] != (4, 4):
            raise EvaluationError(f"the {name} has shape {np.shape(poses)}: it must be (N, 4, 4)")
    estimate = _positions(np.asarray(estimate_poses)[:, :3, 3], "estimate")
    truth = _positions(np.asarray(truth_poses)[:, :3, 3], "truth")
    if len(estimate) != len(truth) or len(truth) == 0:
        raise EvaluationError(
            f"{len(estimate)} estimated and {len(truth)} true poses cannot be compared one by one"
        )
    scale = 1.0
    if alignment != "none":
        scale, rotation, translation = align_sim3(estimate, truth, with_scale=alignment == "sim3")
        estimate = scale * estimate @ rotation.T + translation
    distance = np.linalg.norm(estimate - truth, axis=1)
    return TrajectoryError(
        rmse=float(np.sqrt(np.mean(distance**2))),
        mean=float(distance.mean()),
        median=float(np.median(distance)),
        maximum=float(distance.max()),
        path_length=float(np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()),
        scale=scale,
    )


def _positions(values: NDArray, name: str) -> NDArray[np.float64]:
    positions = np.asarray(values, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise EvaluationError(
            f"the {name}'s positions have shape {positions.shape}: they must be (N, 3)"
        )
    if not np.isfinite(positions).all():
        raise EvaluationError(f"the {name} has positions that are not finite")
    return positions
