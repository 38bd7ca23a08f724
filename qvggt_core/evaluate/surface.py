"""Reconstructed surfaces against true ones: accuracy, completeness, normal consistency.

Points are in metres, or in the truth's unit. Nearest neighbours are SciPy's; the alignment is the
one that CUT3R's evaluation uses (Wang et al., CVPR 2025), after Spann3R's (Wang and Agapito, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.geometry.poses import transform

NORMAL_NEIGHBOURS = 30
_BLOCK = 65_536


@dataclass(frozen=True)
class SurfaceErrors:
    """How two clouds differ.

    Attributes:
        accuracy_mean: mean distance from an estimated point to the nearest true point.
        accuracy_median: median of the same.
        completeness_mean: mean distance from a true point to the nearest estimated point.
        completeness_median: median of the same.
        normal_consistency_mean: mean |cosine| between the normals of those neighbours, the mean of
            both directions; 1 is best.
        normal_consistency_median: median of the same, the mean of both directions' medians.
    """

    accuracy_mean: float
    accuracy_median: float
    completeness_mean: float
    completeness_median: float
    normal_consistency_mean: float
    normal_consistency_median: float


@dataclass(frozen=True)
class Registration:
    """What ICP found.

    Attributes:
        transform: (4, 4) target_from_source, rigid.
        fitness: share of source points with a target point within the allowed distance.
        inlier_rmse: root of the mean square of those distances; 0 if there are none.
        iterations: updates of the transform.
    """

    transform: NDArray[np.float64]
    fitness: float
    inlier_rmse: float
    iterations: int


@dataclass(frozen=True)
class MedianAlignment:
    """The shift and scale that bring one set of points to another's medians.

    A point p comes to `scale * (p - (0, 0, estimate_depth)) + (0, 0, truth_depth)`.

    Attributes:
        scale: ratio of the median distances from the median point.
        estimate_depth: median z of the estimate.
        truth_depth: median z of the truth.
    """

    scale: float
    estimate_depth: float
    truth_depth: float

    def apply(self, points: NDArray) -> NDArray[np.float64]:
        """Return aligned points, (..., 3)."""
        shifted = np.array(points, dtype=np.float64)
        shifted[..., 2] -= self.estimate_depth
        shifted *= self.scale
        shifted[..., 2] += self.truth_depth
        return shifted


def surface_errors(
    estimate: NDArray, truth: NDArray, neighbours: int = NORMAL_NEIGHBOURS
) -> SurfaceErrors:
    """Compare two clouds that are aligned already.

    Args:
        estimate: (N, 3) points.
        truth: (M, 3) points.
        neighbours: nearest points that a normal is fitted to, itself included.

    Raises:
        EvaluationError: a cloud is empty, has fewer than 3 points, or is not finite.
    """
    estimate, truth = _points(estimate, "estimated", 3), _points(truth, "true", 3)
    estimate_tree, truth_tree = cKDTree(estimate), cKDTree(truth)
    estimate_normals = _normals(estimate, estimate_tree, neighbours)
    truth_normals = _normals(truth, truth_tree, neighbours)
    accuracy, nearest_true = truth_tree.query(estimate)
    completeness, nearest_estimated = estimate_tree.query(truth)
    forward = np.abs(np.sum(estimate_normals * truth_normals[nearest_true], axis=1))
    backward = np.abs(np.sum(truth_normals * estimate_normals[nearest_estimated], axis=1))
    return SurfaceErrors(
        accuracy_mean=float(accuracy.mean()),
        accuracy_median=float(np.median(accuracy)),
        completeness_mean=float(completeness.mean()),
        completeness_median=float(np.median(completeness)),
        normal_consistency_mean=float(0.5 * (forward.mean() + backward.mean())),
        normal_consistency_median=float(0.5 * (np.median(forward) + np.median(backward))),
    )


def estimate_normals(points: NDArray, neighbours: int = NORMAL_NEIGHBOURS) -> NDArray[np.float64]:
    """Return unit normals (N, 3) of a cloud, of either sign.

    A normal is the direction in which the nearest points, the point itself among them, spread
    least.

    Raises:
        EvaluationError: there are fewer than 3 points, or some are not finite.
    """
    points = _points(points, "given", 3)
    return _normals(points, cKDTree(points), neighbours)


def median_alignment(estimate: NDArray, truth: NDArray) -> MedianAlignment:
    """Return CUT3R's coarse alignment of points in the first camera's frame.

    The shift along the optical axis makes the median depths equal; the scale then makes the median
    distances from the (coordinate-wise) median point equal.

    Args:
        estimate: (N, 3) points in the first estimated camera's frame.
        truth: (N, 3) points in the first true camera's frame.

    Raises:
        EvaluationError: a cloud is empty or not finite, or half of it is one single point.
    """
    estimate, truth = _points(estimate, "estimated", 1), _points(truth, "true", 1)
    radii = []
    for name, points in (("estimated", estimate), ("true", truth)):
        centre = np.median(points, axis=0)
        radius = float(np.median(np.linalg.norm(points - centre, axis=1)))
        if radius <= 1e-12 * max(1.0, float(np.abs(centre).max())):
            raise EvaluationError(
                f"more than half of the {len(points)} {name} points are at {centre.tolist()}: a "
                "cloud without extent has no scale"
            )
        radii.append(radius)
    return MedianAlignment(
        scale=radii[1] / radii[0],
        estimate_depth=float(np.median(estimate[:, 2])),
        truth_depth=float(np.median(truth[:, 2])),
    )


def icp(
    source: NDArray,
    target: NDArray,
    max_distance: float,
    *,
    max_iterations: int = 30,
    relative_change: float = 1e-6,
) -> Registration:
    """Register a cloud to another by point-to-point ICP (Besl and McKay, PAMI 1992).

    It starts where the clouds are and ends, as open3d's does, when fitness and error change by
    less than `relative_change` from one iteration to the next.

    Args:
        source: (N, 3) points to move.
        target: (M, 3) points to move them to.
        max_distance: pairs further apart do not count.
        max_iterations: most updates.
        relative_change: below which it ends.

    Raises:
        EvaluationError: a cloud is empty or not finite, or the distance is not positive.
    """
    source, target = _points(source, "source", 1), _points(target, "target", 1)
    if not max_distance > 0:
        raise EvaluationError(f"a largest distance of {max_distance} leaves no pairs for ICP")
    tree = cKDTree(target)
    target_from_source = np.eye(4)
    moved, nearest, fitness, rmse = _correspond(source, target_from_source, tree, max_distance)
    iterations = 0
    # Two pairs leave the turn about their line open.
    while iterations < max_iterations and len(moved) >= 3:
        try:
            _, rotation, translation = align_sim3(moved, target[nearest], with_scale=False)
        except EvaluationError:
            break
        target_from_source = transform(rotation, translation) @ target_from_source
        iterations += 1
        before = fitness, rmse
        moved, nearest, fitness, rmse = _correspond(source, target_from_source, tree, max_distance)
        if abs(before[0] - fitness) < relative_change and abs(before[1] - rmse) < relative_change:
            break
    return Registration(target_from_source, fitness, rmse, iterations)


def _correspond(
    source: NDArray, target_from_source: NDArray, tree: cKDTree, max_distance: float
) -> tuple[NDArray[np.float64], NDArray[np.intp], float, float]:
    """Return the moved points that have a neighbour, the neighbours, fitness and rmse."""
    moved = source @ target_from_source[:3, :3].T + target_from_source[:3, 3]
    distance, nearest = tree.query(moved, distance_upper_bound=max_distance)
    paired = np.isfinite(distance)
    rmse = float(np.sqrt(np.mean(distance[paired] ** 2))) if paired.any() else 0.0
    return moved[paired], nearest[paired], float(paired.mean()), rmse


def _normals(points: NDArray, tree: cKDTree, neighbours: int) -> NDArray[np.float64]:
    neighbours = min(neighbours, len(points))
    normals = np.empty_like(points)
    # In blocks: the neighbours of all points of a scene would take a gigabyte.
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        _, index = tree.query(points[block], k=neighbours)
        around = points[index]
        around = around - around.mean(axis=1, keepdims=True)
        covariance = np.einsum("nki,nkj->nij", around, around)
        _, vectors = np.linalg.eigh(covariance)
        normals[block] = vectors[:, :, 0]
    return normals


def _points(values: NDArray, name: str, least: int) -> NDArray[np.float64]:
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise EvaluationError(f"the {name} points have shape {points.shape}: they must be (N, 3)")
    if len(points) < least:
        raise EvaluationError(
            f"the {name} cloud has {len(points)} points where at least {least} are needed: is the "
            "depth invalid everywhere?"
        )
    wrong = int(np.count_nonzero(~np.isfinite(points).all(axis=1)))
    if wrong:
        raise EvaluationError(
            f"{wrong} of the {len(points)} {name} points are not finite: leave invalid pixels out"
        )
    return points
