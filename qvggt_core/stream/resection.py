"""The pose of one camera from points of the map whose distances are more or less certain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import transform
from qvggt_core.stream.map_points import NEAREST, Points, pose_jacobian

_ITERATIONS = 12
_MAX_DAMPING = 1e3
_CONVERGED = 1e-4
_RANSAC_ITERATIONS = 100
_FEWEST = 6
# Residual in standard deviations at which a point counts half, and from which it is an outlier.
OUTLIER_SCALE = 2.0
OUTLIER = 3.0


@dataclass(frozen=True)
class Sighting:
    """Points of the map, and where a camera sees them.

    Attributes:
        points: N points; the sigma of their inverse distances counts.
        rays: (N, 2) x / z and y / z where the camera sees them.
        sigma: standard deviation of `rays`.
    """

    points: Points
    rays: NDArray[np.float64]
    sigma: float

    def take(self, index: NDArray) -> Sighting:
        """Return what is seen of some of the points."""
        return Sighting(self.points.take(index), self.rays[index], self.sigma)


@dataclass(frozen=True)
class Resection:
    """A camera's pose, and what speaks for it.

    Attributes:
        camera_from_map: (4, 4).
        residual: (N,) in standard deviations, the points' own uncertainty included.
        cost: mean robust cost of a point.
        covariance: (6, 6) of rotation and translation in the camera's frame, the points taken as
            they are and the residuals as what they show.
    """

    camera_from_map: NDArray[np.float64]
    residual: NDArray[np.float64]
    cost: float
    covariance: NDArray[np.float64]

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """Which points are no outliers, (N,)."""
        return self.residual < OUTLIER

    @property
    def share(self) -> float:
        """Share of the points that agree."""
        return float(np.mean(self.agrees)) if len(self.residual) else 0.0


def resect(sighting: Sighting, starts: list[NDArray[np.float64]]) -> Resection:
    """Return the pose that agrees best with the points, under Cauchy's robust cost.

    A point of uncertain distance may lie anywhere along a line in the image: its residual along
    that line counts less, so that it still helps to find the rotation.

    Args:
        sighting: at least 6 points.
        starts: poses (4, 4) from which to begin, all are tried; if from none half of the points
            agree, also one by RANSAC.
    """
    best = min((_descend(sighting, start) for start in starts), key=lambda found: found.cost)
    if best.share >= 0.5:
        return best
    start = _by_ransac(sighting)
    if start is not None:
        best = min(best, _descend(sighting, start), key=lambda found: found.cost)
    return best


def resect_again(
    sighting: Sighting, voters: NDArray[np.bool_], starts: list[NDArray[np.float64]]
) -> tuple[Resection, float]:
    """Return the pose by those points alone that may be trusted, and by all that agree with it.

    Args:
        sighting: as in `resect`; the result has residuals of all.
        voters: (N,) points that decide on the motion, at least 6.
        starts: as in `resect`.

    Returns:
        The pose, and the share of the voters that agree with it.
    """
    first = resect(sighting.take(voters), starts)
    agrees = residuals(sighting, first.camera_from_map) < OUTLIER
    if np.count_nonzero(agrees) < _FEWEST:
        return first, 0.0
    found = _descend(sighting.take(agrees), first.camera_from_map)
    every = residuals(sighting, found.camera_from_map)
    return replace(found, residual=every), float(np.mean(every[voters] < OUTLIER))


def residuals(sighting: Sighting, pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far off points are (N,) at a pose (4, 4), in standard deviations."""
    return OUTLIER_SCALE * np.sqrt(_linearise(sighting, pose).square)


def _by_ransac(sighting: Sighting) -> NDArray[np.float64] | None:
    found, turn, shift, _ = cv2.solvePnPRansac(
        sighting.points.positions,
        sighting.rays,
        np.eye(3),
        np.zeros(4),
        reprojectionError=float(OUTLIER * sighting.sigma),
        iterationsCount=_RANSAC_ITERATIONS,
    )
    if not found or not np.isfinite(turn).all() or not np.isfinite(shift).all():
        return None
    return transform(cv2.Rodrigues(turn)[0], shift.ravel())


@dataclass(frozen=True)
class _Linearised:
    """Whitened residuals of N points at a pose, and what their derivatives need.

    Coordinates come first: so each is one run of memory.

    Attributes:
        residual: (2, N) in standard deviations.
        rays: (2, N) x / z and y / z of the points.
        inverse_depth: (N,).
        along: (2, N) where a point moves in the image by one standard deviation of its distance.
        shrink: (N,) with I - shrink along along^T what whitens a residual.
        square: (N,) of the residuals, in `OUTLIER_SCALE`.
    """

    residual: NDArray[np.float64]
    rays: NDArray[np.float64]
    inverse_depth: NDArray[np.float64]
    along: NDArray[np.float64]
    shrink: NDArray[np.float64]
    square: NDArray[np.float64]

    @property
    def cost(self) -> float:
        return OUTLIER_SCALE**2 * float(np.log1p(self.square).sum())

    def root(self, sigma: float) -> NDArray[np.float64]:
        """Return the square roots (N,) of the points' weights under Cauchy's cost."""
        return np.sqrt(1.0 / (1.0 + self.square)) / sigma

    def jacobian(self, root: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return d rays / d (rotation, translation), whitened and weighted, (6, 2 N)."""
        result = pose_jacobian(self.rays.T, self.inverse_depth).T
        projected = result[:, 0] * self.along[0] + result[:, 1] * self.along[1]
        result -= projected[:, None] * (self.shrink * self.along)
        result *= root
        return result.reshape(6, -1)


def _linearise(sighting: Sighting, pose: NDArray[np.float64]) -> _Linearised:
    rotation, points = pose[:3, :3], sighting.points
    origin = rotation @ points.origins.T + pose[:3, 3:]
    local = rotation @ points.directions.T + points.inverse_distance * origin
    depth = np.maximum(local[2], NEAREST)
    rays = local[:2] / depth
    # One standard deviation of the distance moves the point by this much in the image.
    along = (origin[:2] - rays * origin[2]) * (points.sigma / (sighting.sigma * depth))
    length = along[0] ** 2 + along[1] ** 2
    # (I + a a^T)^(-1/2) = I - shrink a a^T.
    shrink = (1.0 - 1.0 / np.sqrt(1.0 + length)) / np.maximum(length, 1e-12)
    residual = (rays - sighting.rays.T) / sighting.sigma
    residual -= shrink * (along[0] * residual[0] + along[1] * residual[1]) * along
    square = (residual[0] ** 2 + residual[1] ** 2) / OUTLIER_SCALE**2
    square[local[2] < NEAREST] = 1e3
    return _Linearised(residual, rays, points.inverse_distance / depth, along, shrink, square)


def _descend(sighting: Sighting, pose: NDArray[np.float64]) -> Resection:
    """Return where Levenberg and Marquardt's method ends from a pose."""
    here = _linearise(sighting, pose)
    damping, diagonal = 1e-4, np.arange(6)
    for _ in range(_ITERATIONS):
        root = here.root(sighting.sigma)
        jacobian = here.jacobian(root)
        error = (here.residual * (sighting.sigma * root)).ravel()
        normal = jacobian @ jacobian.T
        normal[diagonal, diagonal] *= 1.0 + damping
        normal[diagonal, diagonal] += 1e-9
        step = -np.linalg.solve(normal, jacobian @ error)
        moved = transform(cv2.Rodrigues(step[:3])[0], step[3:]) @ pose
        there = _linearise(sighting, moved)
        if not there.cost < here.cost:
            damping *= 10.0
            if damping > _MAX_DAMPING:
                break
            continue
        gain = (here.cost - there.cost) / here.cost
        pose, here, damping = moved, there, damping * 0.1
        if gain < _CONVERGED:
            break
    residual = OUTLIER_SCALE * np.sqrt(here.square)
    jacobian = here.jacobian(here.root(sighting.sigma))
    information = jacobian @ jacobian.T + 1e-9 * np.eye(6)
    covariance = np.asarray(variance_shown(residual**2) * np.linalg.inv(information), np.float64)
    return Resection(pose, residual, here.cost / max(len(residual), 1), covariance)


def variance_shown(square: NDArray[np.float64]) -> float:
    """Return the variance per axis that squared residuals (N,) of two axes show, by the median."""
    return float(np.median(square)) / (2.0 * np.log(2.0)) if len(square) else 1.0
