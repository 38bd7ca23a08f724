"""The ground that a camera goes over at one height, by many views together.

One view shows a strip of floor some way ahead, in depth that is a little bent: where its plane is
below the camera, unseen, may be off by a third. Views from places apart hold each
other, and so does the camera's own path, which keeps its distance from the ground.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import unproject
from qvggt_core.stream.frame import FrameGeometry

MAX_TILT = float(np.radians(35.0))
"""How far a ground's normal may be from a map's z while the map is as its first camera was."""

# Views, and points of each, at most; views and points at least, all together and in one view.
_VIEWS, _POINTS = 16, 240
_FEWEST_VIEWS, _FEWEST, _FEWEST_IN_VIEW = 5, 200, 20
# Lengths in the camera's height above the ground: what is farther says little of the ground below
# it; a point of the ground is so near to it; views are so far apart, about.
_FARTHEST, _TOLERANCE, _STEP = 5.0, 0.06, 0.25
_TURN = float(np.radians(10.0))
# Share of points that are the ground's at least, that are below it and by which its height changes
# at most.
_MIN_SHARE, _MAX_BELOW, _MAX_CHANGE = 0.2, 0.1, 0.15
# Depth of neighbouring points is off alike: a view's are worth so many that are not.
_INDEPENDENT, _LEAST_NOISE, _HEIGHT_NOISE = 4.0, 0.015, 0.03
_SAMPLES, _ITERATIONS, _ROBUST = 400, 5, 2.0

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LevelGround:
    """A ground plane in a map, and how far a camera is above it.

    Attributes:
        up: (3,) unit normal in the map.
        height: of the camera above it, map units.
        sigma: standard deviation of the height's logarithm, of one view alone.
        tilt_sigma: standard deviation of the normal, radians.
        common: the same, of what views share: the normal, and how even the ground is.
    """

    up: _Floats
    height: float
    sigma: float
    tilt_sigma: float
    common: float


@dataclass(frozen=True)
class _Seen:
    centre: _Floats
    rotation: _Floats
    points: _Floats


class GroundSearch:
    """Gathers views of the ground in one map segment.

    Attributes:
        keeps_height: whether the camera stays as high above the ground as it is.
        problem: why there is no ground, for an operator; empty where there is one.
    """

    def __init__(self) -> None:
        """Start without a view."""
        self.keeps_height = False
        self.begin_map()

    def begin_map(self) -> None:
        """Forget all views: the map is another."""
        self._views: deque[_Seen] = deque(maxlen=_VIEWS)
        self._height = 0.0
        self.problem = ""

    def observe(self, frame: FrameGeometry) -> bool:
        """Take a view in map units; return whether it shows something new."""
        pose = frame.map_from_camera
        centre, rotation = pose[:3, 3].copy(), pose[:3, :3].copy()
        points = _points_below(frame)
        if len(points) < _FEWEST // 10:
            if not self._views:
                self.problem = "no image has shown the ground yet"
            return False
        if self._views:
            last = self._views[-1]
            unit = self._height or float(np.percentile(centre[2] - points[:, 2], 90))
            turn = np.arccos(np.clip((np.trace(last.rotation.T @ rotation) - 1.0) / 2.0, -1.0, 1.0))
            if np.linalg.norm(centre - last.centre) < _STEP * unit and turn < _TURN:
                return False
        self._views.append(_Seen(centre, rotation, points))
        return True

    @property
    def ground(self) -> LevelGround | None:
        """What the views show together; None where that is no ground for sure."""
        if len(self._views) < _FEWEST_VIEWS:
            self.problem = (
                f"the ground is not seen from enough places yet ({len(self._views)} of "
                f"{_FEWEST_VIEWS}): the camera has to move, at rest its height gives no scale"
            )
            return None
        found = _fit(list(self._views), self.keeps_height)
        if isinstance(found, str):
            self.problem = found
            return None
        self.problem, self._height = "", found.height
        return found


def _points_below(frame: FrameGeometry) -> _Floats:
    """Return points (N, 3) of the map below the camera, evenly from the image."""
    step = max(1, int(np.sqrt(frame.depth.size / (4 * _POINTS))))
    rows, columns = slice(step // 2, None, step), slice(step // 2, None, step)
    try:
        points = unproject(frame.depth, frame.intrinsics)[rows, columns].reshape(-1, 3)
    except np.linalg.LinAlgError:
        # A network may say nonsense of a lens: such an image shows no ground.
        return np.empty((0, 3))
    points = points[np.isfinite(points).all(axis=1)].astype(np.float64)
    pose = frame.map_from_camera
    turned = points @ pose[:3, :3].T
    # Below by more than a flat angle: farther points say little of what is below.
    below = turned[:, 2] < -np.linalg.norm(turned, axis=1) / _FARTHEST
    chosen = turned[below]
    if len(chosen) > _POINTS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, _POINTS).astype(int)]
    return chosen + pose[:3, 3]


def _fit(views: list[_Seen], keeps_height: bool) -> LevelGround | str:
    points = np.concatenate([view.points for view in views])
    of_view = np.repeat(np.arange(len(views)), [len(view.points) for view in views])
    centres = np.stack([view.centre for view in views])
    # Of a camera that climbs, the path says nothing of the ground.
    path = centres if keeps_height else centres[-1:]
    if len(points) < _FEWEST:
        return "too little is seen below the camera"
    start = _best_plane(points, path)
    plane = None if start is None else _refined(points, of_view, path, start)
    if plane is None:
        return "nothing below the camera is level"
    if problem := _why_not(plane, points, path):
        return problem
    # What the path does beside the plane, the ground may do: it is bent, or the camera sways.
    sways = float(np.std(plane.off(path)))
    return _below(views[-1], plane, sways) or "the newest image does not show the ground"


def _best_plane(points: _Floats, centres: _Floats) -> _Plane | None:
    """Return the plane that most points lie in, below cameras that have about one height."""
    rng = np.random.default_rng(0)
    chosen = points[rng.integers(0, len(points), (_SAMPLES, 3))]
    normals = np.cross(chosen[:, 1] - chosen[:, 0], chosen[:, 2] - chosen[:, 0])
    length = np.linalg.norm(normals, axis=1)
    normals /= np.maximum(length, 1e-12)[:, None]
    normals *= np.sign(normals[:, 2:] + 1e-300)
    offsets = (normals * chosen[:, 0]).sum(axis=1)
    heights = centres @ normals.T - offsets
    height = np.median(heights, axis=0)
    good = (length > 1e-9) & (normals[:, 2] > np.cos(MAX_TILT)) & (heights.min(axis=0) > 0.0)
    if not good.any():
        return None
    normals, offsets, heights, height = normals[good], offsets[good], heights[:, good], height[good]
    off = (points @ normals.T - offsets) / height
    score = 1.0 / (1.0 + (off / (0.5 * _TOLERANCE)) ** 2)
    steady = np.mean(1.0 / (1.0 + ((heights - height) / (height * _TOLERANCE)) ** 2), axis=0)
    best = int((score.mean(axis=0) * steady).argmax())
    return _Plane(normals[best], float(offsets[best]), float(height[best]))


@dataclass(frozen=True)
class _Plane:
    """A plane normal @ p = offset, and how far cameras are above it."""

    normal: _Floats
    offset: float
    height: float
    noise: float = _TOLERANCE / 2.0
    tilt_sigma: float = 0.0

    def off(self, points: _Floats) -> _Floats:
        """Return how far points (N, 3) are above it, in the camera's heights."""
        return (points @ self.normal - self.offset) / self.height


def _refined(
    points: _Floats,
    of_view: NDArray[np.int64],
    centres: _Floats,
    plane: _Plane,
) -> _Plane | None:
    """Return the plane that floor and path fit together, by least squares with Cauchy's weights."""
    for _ in range(_ITERATIONS):
        near = np.abs(plane.off(points)) < 1.5 * _TOLERANCE
        if np.count_nonzero(near) < _FEWEST // 2:
            return None
        count = np.bincount(of_view[near])[of_view[near]]
        found = _solved(points[near], count, centres, plane)
        if found is None or found.height <= 0.0 or found.normal[2] < np.cos(MAX_TILT):
            return None
        off = np.abs(found.off(points))
        spread = 1.4826 * float(np.median(off[off < _TOLERANCE])) if (off < _TOLERANCE).any() else 0
        plane = replace(found, noise=max(_LEAST_NOISE, spread))
    return plane


def _solved(
    floor: _Floats,
    count: NDArray[np.int64],
    centres: _Floats,
    plane: _Plane,
) -> _Plane | None:
    """Return the plane after one step.

    Args:
        floor: (N, 3) points near the plane.
        count: (N,) how many of them are of the same view.
        centres: (M, 3) of the cameras.
        plane: as it is so far.
    """
    across, middle = _across(plane.normal), floor.mean(axis=0)
    places = np.concatenate([floor, centres]) - middle
    is_path = np.arange(len(places)) >= len(floor)
    rows = np.column_stack([places @ across.T, np.ones(len(places)), is_path])
    value = places @ plane.normal
    single = np.where(is_path, _HEIGHT_NOISE, plane.noise) * plane.height
    shared = np.ones(len(places))
    shared[: len(floor)] = np.maximum(count / _INDEPENDENT, 1.0)
    residual = plane.height * plane.off(np.concatenate([floor, centres])) - plane.height * is_path
    weights = 1.0 / (1.0 + (residual / (_ROBUST * single)) ** 2) / (single**2 * shared)
    try:
        covariance = np.linalg.inv((rows * weights[:, None]).T @ rows)
    except np.linalg.LinAlgError:
        return None
    slope_u, slope_v, level, height = covariance @ (rows * weights[:, None]).T @ value
    turned = plane.normal - slope_u * across[0] - slope_v * across[1]
    length = float(np.linalg.norm(turned))
    return _Plane(
        turned / length,
        float(turned @ middle + level) / length,
        float(height) / length,
        plane.noise,
        float(np.sqrt(np.trace(covariance[:2, :2]))),
    )


def _why_not(plane: _Plane, points: _Floats, centres: _Floats) -> str:
    """Return why a plane is not the ground; empty if it is."""
    off = plane.off(points)
    if np.mean(np.abs(off) < _TOLERANCE) < _MIN_SHARE:
        return "too little of what is below the camera is level"
    # A ground has nothing below it; what lies deep under a table top has.
    if np.mean(off < -2.0 * _TOLERANCE) > _MAX_BELOW:
        return "below what is level there is more: a table or a step"
    changes = float(np.percentile(np.abs(plane.off(centres) - 1.0), 90))
    if changes > _MAX_CHANGE:
        return f"the camera's height above the ground changes by {changes:.0%}"
    return ""


def _below(view: _Seen, plane: _Plane, sways: float) -> LevelGround | None:
    """Return the ground below a view by its own depth: the unit of a map drifts."""
    away = view.points - view.centre
    drop = -(away @ plane.normal)
    near = np.abs(drop / plane.height - 1.0) < _MAX_CHANGE
    if np.count_nonzero(near) < _FEWEST_IN_VIEW:
        return None
    height = float(np.median(drop[near]))
    for _ in range(_ITERATIONS):
        near = np.abs(drop / height - 1.0) < 2.0 * _TOLERANCE
        if np.count_nonzero(near) < _FEWEST_IN_VIEW:
            return None
        height = float(np.median(drop[near]))
    flat = away[near] + drop[near, None] * plane.normal
    lever = float(np.linalg.norm(flat.mean(axis=0))) / height
    spread = 1.4826 * float(np.median(np.abs(drop[near] / height - 1.0)))
    noise = max(plane.noise, spread) / np.sqrt(_INDEPENDENT)
    # Either the map's unit has changed, or the ground ahead is not the one below.
    noise = float(np.hypot(noise, np.log(height / plane.height)))
    common = float(np.hypot(plane.tilt_sigma * lever, sways))
    return LevelGround(plane.normal, height, noise, plane.tilt_sigma, common)


def _across(normal: _Floats) -> _Floats:
    """Return two unit vectors (2, 3) that are orthogonal to a normal (3,)."""
    helper = np.eye(3)[int(np.abs(normal).argmin())]
    first = np.cross(normal, helper)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first)])
