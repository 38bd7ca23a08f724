"""Trajectories against the truth: alignment and the absolute trajectory error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.statistics import Statistics, statistics
from qvggt_core.geometry.poses import inverse, rotation_angle, transform

AlignmentKind = Literal["none", "origin", "scale", "se3", "sim3"]
"""Alignment of an estimate before it is compared.

- none: nothing.
- origin: moved so that the first poses coincide.
- scale: the factor of the sim3 alignment alone, about the origin of the estimate's world.
- se3: rotation and translation that bring the positions closest.
- sim3: rotation, translation and one factor that bring the positions closest.
"""

ALIGNMENTS: tuple[AlignmentKind, ...] = get_args(AlignmentKind)

# Positions that spread less than this share of their largest spread are on a point or a line.
_RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class TrajectoryError(Statistics):
    """Distances between aligned and true positions, in the truth's unit.

    Attributes:
        path_length: length of the true path.
        scale: factor of the alignment that was applied.
    """

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


@dataclass(frozen=True)
class AbsoluteErrors:
    """Differences of aligned and true poses, pose by pose.

    Attributes:
        translation: (N,) distances in the truth's unit.
        rotation: (N,) angles in degrees.
        aligned: (N, 4, 4) the estimate as it was compared, in the truth's world.
        scale: factor of the alignment that was applied.
    """

    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    aligned: NDArray[np.float64]
    scale: float


def align(
    estimate_poses: NDArray, truth_poses: NDArray, alignment: AlignmentKind
) -> tuple[float, NDArray[np.float64]]:
    """Return the factor and the (4, 4) transform that an alignment applies, the factor first.

    Args:
        estimate_poses: (N, 4, 4) world_from_camera.
        truth_poses: (N, 4, 4) world_from_camera at the same stamps.
        alignment: see `AlignmentKind`.

    Raises:
        EvaluationError: the shapes do not fit, a value is not finite, or the alignment is
            unknown or not defined on these poses.
    """
    estimate, truth = _poses(estimate_poses, truth_poses)
    if alignment == "none":
        return 1.0, np.eye(4)
    if alignment == "origin":
        return 1.0, truth[0] @ inverse(estimate[0])
    if alignment not in ALIGNMENTS:
        raise EvaluationError(
            f"there is no alignment {alignment!r}; known: {', '.join(ALIGNMENTS)}"
        )
    scale, rotation, translation = align_sim3(
        estimate[:, :3, 3], truth[:, :3, 3], with_scale=alignment != "se3"
    )
    if scale <= 0.0:
        raise EvaluationError(
            f"the best scale is {scale:g}: no turn and no size makes the estimate look like the "
            "truth"
        )
    if alignment == "scale":
        return scale, np.eye(4)
    return scale, transform(rotation, translation)


def straightness(positions: NDArray) -> float:
    """Return how wide a path is by how long it is: 0 on a line, 1 where it spreads alike.

    The positions of a straight path leave the rotation about it undetermined: rotations after an
    alignment of positions are arbitrary about that axis.

    Args:
        positions: (N, 3), N >= 1.
    """
    offsets = np.asarray(positions, dtype=np.float64)
    singular = np.linalg.svd(offsets - offsets.mean(axis=0), compute_uv=False)
    return float(singular[1] / singular[0]) if len(singular) > 1 and singular[0] > 0.0 else 0.0


def absolute_errors(
    estimate_poses: NDArray, truth_poses: NDArray, alignment: AlignmentKind = "sim3"
) -> AbsoluteErrors:
    """Compare two trajectories pose by pose after an alignment.

    Args:
        estimate_poses: (N, 4, 4) world_from_camera.
        truth_poses: (N, 4, 4) world_from_camera at the same stamps.
        alignment: that is applied before.

    Raises:
        EvaluationError: see `align`.
    """
    estimate, truth = _poses(estimate_poses, truth_poses)
    scale, moved_from_scaled = align(estimate, truth, alignment)
    aligned = estimate.copy()
    aligned[:, :3, 3] *= scale
    aligned = moved_from_scaled @ aligned
    turned = np.swapaxes(truth[:, :3, :3], 1, 2) @ aligned[:, :3, :3]
    return AbsoluteErrors(
        translation=np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=1),
        rotation=np.degrees(rotation_angle(turned)),
        aligned=aligned,
        scale=scale,
    )


def absolute_trajectory_error(
    estimate_poses: NDArray, truth_poses: NDArray, alignment: AlignmentKind = "sim3"
) -> TrajectoryError:
    """Return the statistics of the translations of `absolute_errors`, of equal arguments."""
    errors = absolute_errors(estimate_poses, truth_poses, alignment)
    positions = np.asarray(truth_poses, dtype=np.float64)[:, :3, 3]
    return TrajectoryError(
        **asdict(statistics(errors.translation)),
        path_length=float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()),
        scale=errors.scale,
    )


def _poses(
    estimate_poses: NDArray, truth_poses: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    arrays = []
    for name, poses in (("estimate", estimate_poses), ("truth", truth_poses)):
        if np.ndim(poses) != 3 or np.shape(poses)[1:] != (4, 4):
            raise EvaluationError(f"the {name} has shape {np.shape(poses)}: it must be (N, 4, 4)")
        array = np.asarray(poses, dtype=np.float64)
        broken = ~np.isfinite(array).all(axis=(1, 2))
        if broken.any():
            raise EvaluationError(
                f"{int(broken.sum())} of {len(array)} poses of the {name} are not finite, the "
                f"first is number {int(broken.argmax())}"
            )
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]) or len(arrays[1]) == 0:
        raise EvaluationError(
            f"{len(arrays[0])} estimated and {len(arrays[1])} true poses cannot be compared one by "
            "one"
        )
    return arrays[0], arrays[1]


def _positions(values: NDArray, name: str) -> NDArray[np.float64]:
    positions = np.asarray(values, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise EvaluationError(
            f"the {name}'s positions have shape {positions.shape}: they must be (N, 3)"
        )
    if not np.isfinite(positions).all():
        raise EvaluationError(f"the {name} has positions that are not finite")
    return positions
