"""Free and occupied space over the ground: log-odds of voxels, in layers of height.

The numbers are OctoMap's (Hornung et al., "OctoMap", Autonomous Robots 2013): a hit and a miss are
0.7 and 0.4, and what is known for sure stays open to change.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse, unproject
from qvggt_core.occupancy.grid import FREE, OCCUPIED, UNKNOWN, OccupancyGrid

MAX_SIDE = 2048
"""Cells along x and y at most; what is farthest from the camera goes first."""

# Log-odds in twentieths.
_HIT, _MISS, _LEAST, _MOST, _UNSEEN = 17, -8, -40, 70, -128
_STEP = 64
_MAX_LAYERS = 16


@dataclass(frozen=True)
class Band:
    """What counts as an obstacle, in metres.

    Attributes:
        resolution: side of a cell.
        min_height: over the ground; below lies the ground itself.
        max_height: over the ground, up to which the robot has to pass.
        max_range: from the camera, up to which depth is believed.
    """

    resolution: float
    min_height: float
    max_height: float
    max_range: float

    @property
    def layers(self) -> int:
        """Number of layers of voxels, none thinner than a cell is wide."""
        height = self.max_height - self.min_height
        return int(np.clip(height / self.resolution + 1e-6, 1, _MAX_LAYERS))

    @property
    def layer(self) -> float:
        """Height of a layer."""
        return (self.max_height - self.min_height) / self.layers


@dataclass(frozen=True)
class DepthView:
    """A depth image, its pose, and the ground that its heights are measured from.

    Attributes:
        depth: (H, W) metres along the optical axis; NaN where invalid.
        intrinsics: (3, 3) in its pixels.
        map_from_camera: (4, 4) rigid.
        ground: (4,) plane (n, d) in the map: n @ point + d is the height over it; n is unit and
            about upwards.
    """

    depth: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    map_from_camera: NDArray[np.float64]
    ground: NDArray[np.float64]


class HeightVoxels:
    """Voxels over the ground, in a window that grows with what is seen, up to `MAX_SIDE` cells.

    A voxel becomes occupied by points in it, and free where the camera looks through its centre:
    where that is nearer than all depth around its pixel.
    """

    def __init__(self, band: Band) -> None:
        """Start with nothing seen."""
        self._band = band
        self._low = np.zeros(2, np.int64)
        self._odds = np.empty((band.layers, 0, 0), np.int8)
        self._ground = np.empty((0, 0), bool)
        self._heights = band.min_height + band.layer * (0.5 + np.arange(band.layers))

    def add(self, view: DepthView) -> None:
        """Take what a depth image shows."""
        band = self._band
        points = unproject(view.depth, view.intrinsics).reshape(-1, 3).astype(np.float64)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) == 0:
            return
        distance = np.linalg.norm(points, axis=1)
        # Space is free up to the range, also before what lies beyond it.
        points *= np.minimum(1.0, band.max_range / distance)[:, None]
        in_map = points @ view.map_from_camera[:3, :3].T + view.map_from_camera[:3, 3]
        part = self._grown(np.concatenate([in_map[:, :2], view.map_from_camera[None, :2, 3]]))
        hit = self._hit(in_map[distance <= band.max_range], view.ground, part)
        self._update(part, hit, self._looked_through(view, part))

    def grid(self) -> OccupancyGrid | None:
        """Return the floor plan; None where nothing was seen.

        A cell is occupied if one of its voxels is, and free if the ground was seen there or its
        lowest voxel is free; what lies below an unseen one may be anything.
        """
        if self._ground.size == 0:
            return None
        lowest = self._odds[0]
        cells = np.full(self._ground.shape, UNKNOWN, np.int8)
        cells[self._ground | ((lowest < 0) & (lowest != _UNSEEN))] = FREE
        cells[(self._odds > 0).any(axis=0)] = OCCUPIED
        origin = np.append(self._low * self._band.resolution, 0.0)
        return OccupancyGrid(cells, self._band.resolution, origin)

    def _grown(self, places: NDArray[np.float64]) -> tuple[slice, slice]:
        """Make room for places (N, 2); return the rows and columns that hold them.

        Where that is more than `MAX_SIDE` cells, what was seen before goes.
        """
        cells = np.floor(places / self._band.resolution).astype(np.int64)
        low, high = cells.min(axis=0), cells.max(axis=0) + 1
        size = np.array(self._ground.shape[::-1])
        wanted_low, wanted_high = low // _STEP * _STEP, -(-high // _STEP) * _STEP
        if self._ground.size:
            wanted_low = np.minimum(self._low, wanted_low)
            wanted_high = np.maximum(self._low + size, wanted_high)
        for axis in range(2):
            beyond = wanted_high[axis] - wanted_low[axis] - MAX_SIDE
            if beyond > 0 and low[axis] < self._low[axis]:
                wanted_high[axis] -= beyond
            elif beyond > 0:
                wanted_low[axis] += beyond
        self._move(wanted_low, wanted_high - wanted_low)
        first = np.maximum(low - self._low, 0)
        last = np.minimum(high - self._low, self._ground.shape[::-1])
        return _slices(first, last)

    def _move(self, low: NDArray[np.int64], size: NDArray[np.int64]) -> None:
        """Let the window begin elsewhere and have another size; keep what lies in both."""
        if np.array_equal(low, self._low) and self._ground.shape == (size[1], size[0]):
            return
        odds = np.full((len(self._odds), size[1], size[0]), _UNSEEN, np.int8)
        ground = np.zeros((size[1], size[0]), bool)
        former = np.array(self._ground.shape[::-1])
        start = np.maximum(low, self._low)
        end = np.minimum(low + size, self._low + former)
        if (end > start).all():
            to, of = _slices(start - low, end - low), _slices(start - self._low, end - self._low)
            odds[(slice(None), *to)] = self._odds[(slice(None), *of)]
            ground[to] = self._ground[of]
        self._low, self._odds, self._ground = low, odds, ground

    def _hit(
        self, points: NDArray[np.float64], ground: NDArray[np.float64], part: tuple[slice, slice]
    ) -> NDArray[np.bool_]:
        """Return the voxels (layers, rows, columns) of a part that have points (N, 3) in them.

        Points below the least height of an obstacle are of the ground, and are noted there.
        """
        band, (rows, columns) = self._band, part
        hit = np.zeros((band.layers, rows.stop - rows.start, columns.stop - columns.start), bool)
        cells = np.floor(points[:, :2] / band.resolution).astype(np.int64) - self._low
        column, row = (cells - [columns.start, rows.start]).T
        inside = (column >= 0) & (row >= 0) & (column < hit.shape[2]) & (row < hit.shape[1])
        height = points @ ground[:3] + ground[3] - band.min_height
        layer = np.floor(height / band.layer).astype(np.int64)
        above = inside & (layer >= 0) & (layer < band.layers)
        hit[layer[above], row[above], column[above]] = True
        below = inside & (height < 0.0) & (height > -2.0 * band.min_height)
        self._ground[part][row[below], column[below]] = True
        return hit

    def _looked_through(self, view: DepthView, part: tuple[slice, slice]) -> NDArray[np.bool_]:
        """Return the voxels (layers, rows, columns) of a part that the camera looks through."""
        band, (rows, columns) = self._band, part
        x = (self._low[0] + np.arange(columns.start, columns.stop) + 0.5) * band.resolution
        y = (self._low[1] + np.arange(rows.start, rows.stop) + 0.5) * band.resolution
        normal, offset = view.ground[:3], view.ground[3]
        # Positions in the camera are linear in x, y and the height over the ground.
        camera_from_map = inverse(view.map_from_camera)
        turn, centre = camera_from_map[:3, :3], camera_from_map[:3, 3]
        up = turn[:, 2] / normal[2]
        per_x, per_y = turn[:, 0] - up * normal[0], turn[:, 1] - up * normal[1]
        at = (
            (centre - up * offset)[:, None, None, None]
            + per_x[:, None, None, None] * x
            + per_y[:, None, None, None] * y[:, None]
            + up[:, None, None, None] * self._heights[:, None, None]
        ).astype(np.float32)
        z = at[2]
        ahead = z > 0.5 * band.resolution
        depth = np.where(ahead, z, 1.0)
        fx, fy = view.intrinsics[0, 0], view.intrinsics[1, 1]
        column = np.rint(fx * at[0] / depth + view.intrinsics[0, 2])
        row = np.rint(fy * at[1] / depth + view.intrinsics[1, 2])
        height, width = view.depth.shape
        seen = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen &= np.square(at).sum(axis=0) <= band.max_range**2
        nearest = _nearest(view.depth)[row[seen].astype(np.int64), column[seen].astype(np.int64)]
        margin = 0.5 * np.sqrt(2.0 * band.resolution**2 + band.layer**2)
        seen[seen] = z[seen] + margin < nearest
        return seen

    def _update(
        self, part: tuple[slice, slice], hit: NDArray[np.bool_], free: NDArray[np.bool_]
    ) -> None:
        odds = self._odds[(slice(None), *part)]
        changed = hit | free
        known = odds[changed].astype(np.int16)
        known[known == _UNSEEN] = 0
        known += np.where(hit[changed], _HIT, _MISS).astype(np.int16)
        odds[changed] = known.clip(_LEAST, _MOST)


def _slices(start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[slice, slice]:
    """Return the rows and columns from one (column, row) to another."""
    return slice(start[1], end[1]), slice(start[0], end[0])


def _nearest(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the least depth of a pixel and its neighbours; 0 where the pixel itself has none."""
    known = np.isfinite(depth)
    filled = np.where(known, depth, np.float32(np.inf))
    least = cv2.erode(filled, np.ones((3, 3), np.uint8))
    return np.where(known, least, np.float32(0.0))
