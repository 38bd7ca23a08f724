"""Cameras, points and what was seen: the state that bundle adjustment changes, and its cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.stream.map_points import NEAREST, Points
from qvggt_core.stream.pose_graph import Edges

# Weight and cost of an observation whose point is behind the camera, where it has no residual.
_BEHIND_WEIGHT = 1e-6
_BEHIND_COST = 50.0
# Pairs of a camera and a point, beyond which only those are turned that were seen.
_MOST_PAIRS = 200_000


@dataclass(frozen=True)
class Bundle:
    """Cameras, points, and what each camera saw of which point.

    Attributes:
        camera_from_map: (K, 4, 4).
        is_free: (K,) whether a camera's pose is adjusted; the others hold the gauge.
        points: the points, with what else is known of their distances.
        camera: (N,) index of the camera of each observation.
        point: (N,) index of its point; a pair occurs once.
        rays: (N, 2) x / z and y / z of the observation.
        sigma: standard deviation of `rays`.
        turning: (P, 2) pairs of cameras between which the camera only turned: indices of the
            earlier and the later one.
        turning_sigma: standard deviation of the distance between the centres of such a pair.
        log_focal: logarithm of the focal length that all cameras share, over that of `rays`.
        log_focal_sigma: standard deviation of that from 0; 0 where the focal length is known.
        edges: what else is known of how cameras lie to each other, None for nothing.
    """

    camera_from_map: NDArray[np.float64]
    is_free: NDArray[np.bool_]
    points: Points
    camera: NDArray[np.int64]
    point: NDArray[np.int64]
    rays: NDArray[np.float64]
    sigma: float
    turning: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    turning_sigma: float = 1.0
    log_focal: float = 0.0
    log_focal_sigma: float = 0.0
    edges: Edges | None = None

    def residuals(self) -> NDArray[np.float64]:
        """Return the observations' reprojection errors (N, 2) in standard deviations."""
        return project(self).residual

    def centres_apart(self, pair: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the vector (3,) from a turning pair's first centre to its second, in sigmas."""
        first, second = (
            -pose[:3, :3].T @ pose[:3, 3] for pose in (self.camera_from_map[i] for i in pair)
        )
        return (second - first) / self.turning_sigma

    def moved(
        self, poses: NDArray[np.float64], points: NDArray[np.float64], log_focal: float = 0.0
    ) -> Bundle:
        """Return the bundle after a step.

        Args:
            poses: (F, 6) of the free cameras in their own frames: exp(step) pose.
            points: (L, 3) along the two tangents of the directions, and of the inverse distance.
            log_focal: of the focal length's logarithm.
        """
        cameras = self.camera_from_map.copy()
        turns = Rotation.from_rotvec(poses[:, :3]).as_matrix()
        for i, turn, shift in zip(np.flatnonzero(self.is_free), turns, poses[:, 3:], strict=True):
            cameras[i] = transform(turn, shift) @ cameras[i]
        old = self.points
        first, second = tangents(old.directions)
        turned = old.directions + points[:, :1] * first + points[:, 1:2] * second
        length = np.linalg.norm(turned, axis=1)
        # (u, v, rho) describes the point up to length: (d + u e1 + v e2) / rho.
        rho = np.maximum(old.inverse_distance + points[:, 2], 0.1 * old.inverse_distance)
        new = replace(old, directions=turned / length[:, None], inverse_distance=rho / length)
        return replace(
            self, camera_from_map=cameras, points=new, log_focal=self.log_focal + log_focal
        )


@dataclass(frozen=True)
class Projection:
    """Where the points of N observations lie in their cameras.

    Attributes:
        residual: (N, 2) in standard deviations of the rays.
        rays: (N, 2) x / z and y / z.
        origins: (N, 3) the places in the cameras from which the points are described.
        depth: (N,) in units of the points' distances from there: of R d + rho (R o + t).
    """

    residual: NDArray[np.float64]
    rays: NDArray[np.float64]
    origins: NDArray[np.float64]
    depth: NDArray[np.float64]


def project(bundle: Bundle) -> Projection:
    """Return where the observed points lie in their cameras."""
    points = bundle.points
    origins = turned(bundle, points.origins) + bundle.camera_from_map[:, :3, 3].T[:, bundle.camera]
    local = turned(bundle, points.directions) + points.inverse_distance[bundle.point] * origins
    depth = np.maximum(local[2], NEAREST)
    rays = (local[:2] / depth).T
    residual = (np.exp(bundle.log_focal) * rays - bundle.rays) / bundle.sigma
    return Projection(residual, rays, origins.T, depth)


def turned(bundle: Bundle, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors (L, 3) of the points by the axes of the N observing cameras, (3, N)."""
    if len(bundle.camera_from_map) * len(vectors) > _MOST_PAIRS:
        axes = bundle.camera_from_map[bundle.camera, :3, :3]
        return np.einsum("nij,nj->in", axes, vectors[bundle.point])
    # All points in all cameras, of which a window's cameras see most.
    every = bundle.camera_from_map[:, :3, :3] @ vectors.T
    seen = bundle.camera * len(vectors) + bundle.point
    return every.transpose(1, 0, 2).reshape(3, -1).take(seen, axis=1)


@dataclass(frozen=True)
class Evaluation:
    """A bundle, and how well its parts agree.

    Attributes:
        bundle: what is judged.
        projection: of its points.
        weights: (N,) of the observations, 1 for those that agree, towards 0 for outliers.
        cost: sum of Cauchy's robust costs, of priors (the focal length's too), of turning pairs and
            of edges.
    """

    bundle: Bundle
    projection: Projection
    weights: NDArray[np.float64]
    cost: float


def evaluate(bundle: Bundle, outlier: float) -> Evaluation:
    """Judge a bundle, where a residual of so many standard deviations counts half."""
    projection, points = project(bundle), bundle.points
    square = (projection.residual**2).sum(axis=1) / outlier**2
    weights = 1.0 / (1.0 + square)
    cost = outlier**2 * float(np.log1p(square).sum())
    behind = projection.depth <= NEAREST
    weights[behind] = _BEHIND_WEIGHT
    cost += _BEHIND_COST * float(np.count_nonzero(behind))
    cost += float((((points.inverse_distance - points.prior) / points.prior_sigma) ** 2).sum())
    for pair in bundle.turning:
        cost += float((bundle.centres_apart(pair) ** 2).sum())
    if bundle.log_focal_sigma > 0.0:
        cost += (bundle.log_focal / bundle.log_focal_sigma) ** 2
    if bundle.edges is not None:
        cost += float(bundle.edges.squares(inverse(bundle.camera_from_map)).sum())
    return Evaluation(bundle, projection, weights, cost)


def tangents(
    directions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two unit vectors (L, 3) each that are orthogonal to the directions (L, 3)."""
    helper = np.zeros_like(directions)
    helper[np.arange(len(directions)), np.abs(directions).argmin(axis=1)] = 1.0
    first = np.cross(directions, helper)
    first /= np.linalg.norm(first, axis=1)[:, None]
    return first, np.cross(directions, first)
