"""The ground below a camera: the dominant plane among the points of its depth image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_GROUND_TILT = float(np.radians(35.0))
"""How far a ground's normal may be from a map's z while the map is as its first camera was."""

_POINTS = 1500
_SAMPLES = 200
_MIN_SHARE = 0.25
_TOLERANCE = 0.02
"""Distance from the plane, as a share of the plane's distance, at which a point is of it."""
_ITERATIONS = 3


@dataclass(frozen=True)
class GroundPlane:
    """A plane below a camera.

    Attributes:
        up: (3,) unit normal in the camera's optical frame, towards the camera.
        distance: from the camera, in the depth's unit.
        share: of the points that lie in it.
        sigma: standard deviation of the distance, as a share of it.
    """

    up: NDArray[np.float64]
    distance: float
    share: float
    sigma: float


def ground_plane(
    depth: NDArray[np.float32],
    intrinsics: NDArray[np.float64],
    up: NDArray[np.float64],
    max_tilt: float,
) -> GroundPlane | None:
    """Return the ground that a depth image shows; None where none is seen for sure.

    Args:
        depth: (H, W) along the optical axis, NaN where invalid.
        intrinsics: (3, 3) in its pixels.
        up: (3,) unit, about upwards in the camera's optical frame.
        max_tilt: radians by which the plane's normal may differ from `up`.
    """
    points = _points(depth, intrinsics)
    # Everything below the horizon counts: a floor that is a small part of it is none.
    points = points[points @ up < 0.0]
    if len(points) < _POINTS // 10:
        return None
    normal, distance = _best_plane(points, up, max_tilt)
    if normal is None:
        return None
    for _ in range(_ITERATIONS):
        near = np.abs(points @ normal + distance) < _TOLERANCE * distance
        if np.count_nonzero(near) < _MIN_SHARE * len(points):
            return None
        normal, distance = _fitted(points[near], up)
        if normal @ up < np.cos(max_tilt) or distance <= 0.0:
            return None
    off = points @ normal + distance
    near = np.abs(off) < _TOLERANCE * distance
    # A ground has nothing below it; what lies deep under a table top has.
    if np.count_nonzero(off < -3.0 * _TOLERANCE * distance) > 0.2 * len(points):
        return None
    share = float(near.mean())
    return GroundPlane(normal, distance, share, float(off[near].std()) / distance)


def _points(depth: NDArray[np.float32], intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    step = max(1, int(np.sqrt(depth.size / (2 * _POINTS))))
    rows, columns = np.mgrid[step // 2 : depth.shape[0] : step, step // 2 : depth.shape[1] : step]
    z = depth[rows, columns].astype(np.float64).ravel()
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    try:
        rays = (np.linalg.inv(intrinsics) @ pixels).T
    except np.linalg.LinAlgError:
        # A network may say nonsense of a lens: such an image shows no ground.
        return np.empty((0, 3))
    known = np.isfinite(z) & (z > 0) & np.isfinite(rays).all(axis=1)
    return rays[known] * z[known, None]


def _best_plane(
    points: NDArray[np.float64], up: NDArray[np.float64], max_tilt: float
) -> tuple[NDArray[np.float64] | None, float]:
    """Return the plane through three points that most points lie in (RANSAC, always the same)."""
    rng = np.random.default_rng(0)
    chosen = points[rng.integers(0, len(points), (_SAMPLES, 3))]
    normals = np.cross(chosen[:, 1] - chosen[:, 0], chosen[:, 2] - chosen[:, 0])
    length = np.linalg.norm(normals, axis=1)
    normals = normals / np.maximum(length, 1e-12)[:, None]
    normals *= np.sign(normals @ up)[:, None]
    distances = -(normals * chosen[:, 0]).sum(axis=1)
    good = (length > 0) & (normals @ up > np.cos(max_tilt)) & (distances > 0)
    if not good.any():
        return None, 0.0
    normals, distances = normals[good], distances[good]
    near = np.abs(points @ normals.T + distances) < _TOLERANCE * distances
    best = int(near.sum(axis=0).argmax())
    return normals[best], float(distances[best])


def _fitted(
    points: NDArray[np.float64], up: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    centre = points.mean(axis=0)
    normal = np.linalg.svd(points - centre, full_matrices=False)[2][2]
    normal = normal * np.sign(normal @ up)
    return normal, -float(normal @ centre)
