"""The ground below a robot's camera, in an upright map in metres."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import unproject
from qvggt_core.stream.frame import FrameGeometry

_KEPT, _NEEDED = 15, 3
# A floor that is off by more from those before is a table or a step.
_SAME_M = 0.15
_POINTS, _FEWEST = 3000, 60
_FARTHEST = 4.0
"""From the camera, in heights of it: what is farther says little of the ground below it."""
_THICK = 0.1
"""Of the layer in which points are the floor's, as a share of the camera's height."""
_FLOOR, _BELOW = 0.1, 0.03
"""Least share of the points below the camera that are the floor's, and largest share below it."""
_LEAST_HEIGHT = 0.05
_REFITS, _SPREADS, _EXACT = 4, 2.5, 0.01
_MAX_SLOPE = float(np.tan(np.radians(6.0)))


class Ground:
    """Follows the ground from frame to frame.

    A frame that shows it gives its own plane, so that neither drift nor a map that is a little
    tilted makes the floor an obstacle; the others take it level, as high as the last ones.
    """

    def __init__(self, camera_height: float) -> None:
        """Start without a ground.

        Args:
            camera_height: metres from the ground up to the camera where that never changes; 0 if
                it is not known.
        """
        self._camera_height = camera_height
        self._heights: deque[float] = deque(maxlen=_KEPT)

    def plane(self, geometry: FrameGeometry) -> NDArray[np.float64] | None:
        """Return the ground (4,) in the map, see `DepthView.ground`; None while it is unknown."""
        centre = geometry.map_from_camera[:3, 3]
        seen = _floor(geometry)
        if seen is not None:
            height = -(seen[3] + seen[:2] @ centre[:2]) / seen[2]
            before = self._height(centre)
            self._heights.append(float(height))
            known = self._height(centre)
            if known is not None and (before is None or abs(height - before) < _SAME_M):
                return seen
        known = self._height(centre)
        return None if known is None else np.array([0.0, 0.0, 1.0, -known])

    def _height(self, centre: NDArray[np.float64]) -> float | None:
        """Return the ground's z below the camera."""
        if len(self._heights) >= _NEEDED:
            return float(np.median(self._heights))
        return float(centre[2]) - self._camera_height if self._camera_height else None


def _floor(geometry: FrameGeometry) -> NDArray[np.float64] | None:
    """Return the floor (4,) that a depth image shows, None if none is seen.

    It is the lowest layer in which many points are, about level. Walls have as many at any
    height, and nothing is below a floor.
    """
    points = _points_below(geometry)
    if len(points) < _FEWEST:
        return None
    drop = np.sort(-points[:, 2])
    thick = _THICK * drop
    count = np.searchsorted(drop, drop + 0.5 * thick) - np.searchsorted(drop, drop - 0.5 * thick)
    lower = len(drop) - np.searchsorted(drop, drop + thick)
    # Noise grows with the distance, so of two layers as full the lower one is the floor.
    floor = (count >= _FLOOR * len(drop)) & (lower <= _BELOW * len(drop))
    if not floor.any():
        return None
    best = drop[floor][count[floor].argmax()]
    for _ in range(_REFITS):
        # A layer that is moved up a little is as full; its middle is the floor.
        best = float(np.median(drop[np.abs(drop - best) < 0.5 * _THICK * best]))
    if best < _LEAST_HEIGHT:
        return None
    layer = points[np.abs(-points[:, 2] - best) < _THICK * best]
    slope = _slope(layer, best)
    if np.linalg.norm(slope[:2]) > _MAX_SLOPE:
        slope = np.array([0.0, 0.0, -best])
    # z = a x + b y + c about the camera's centre, as n @ point + d = 0.
    normal = np.array([-slope[0], -slope[1], 1.0])
    length = float(np.linalg.norm(normal))
    centre = geometry.map_from_camera[:3, 3]
    return np.append(normal, -slope[2] - normal @ centre) / length


def _points_below(geometry: FrameGeometry) -> NDArray[np.float64]:
    """Return points (N, 3) below the camera and not far from it, along the map's axes."""
    step = max(1, int(np.sqrt(geometry.depth.size / _POINTS)))
    points = unproject(geometry.depth, geometry.intrinsics)[::step, ::step].reshape(-1, 3)
    known = points[np.isfinite(points).all(axis=1)].astype(np.float64)
    placed = known @ geometry.map_from_camera[:3, :3].T
    flat = np.linalg.norm(placed[:, :2], axis=1)
    return placed[(placed[:, 2] < 0.0) & (flat < _FARTHEST * -placed[:, 2].min(initial=0.0))]


def _slope(points: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    """Return (a, b, c) of the plane z = a x + b y + c that most points (N, 3) are near.

    Feet of walls and furniture are among them, all on one side: they are left out step by step.
    """
    columns = np.column_stack([points[:, :2], np.ones(len(points))])
    found, off = np.array([0.0, 0.0, -height]), np.abs(points[:, 2] + height)
    for _ in range(_REFITS):
        near = off <= max(_SPREADS * float(np.median(off)), _EXACT * height)
        columns, points, off = columns[near], points[near], off[near]
        if len(points) < _FEWEST // 2:
            break
        solution, *_ = np.linalg.lstsq(columns, points[:, 2], rcond=None)
        found = solution.astype(np.float64)
        off = np.abs(points[:, 2] - columns @ found)
    return found
