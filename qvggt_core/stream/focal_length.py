"""The focal length of a camera without a calibration, from points that are followed.

A wrong focal length bends space, so that no poses and points agree with what several images show of
a scene; the right one is where bundle adjustment leaves least. Lenses are pinholes here, with the
principal point in the middle, which is near enough for most cameras without a wide angle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.stream.adjustment import adjust
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.founding import misfit
from qvggt_core.stream.local_map import LocalMap
from qvggt_core.stream.map_keyframes import MIN_SHARED, bundle_of, ray_sigma, shared
from qvggt_core.stream.tracks import Tracker, Tracks

# Focal lengths to begin with, in units of the longer side: 100 to 33 degrees of it in view.
_FIRST = np.geomspace(0.42, 1.7, 6)
_STEP = 0.02
_MOST_STEPS = 8
_ITERATIONS = 25
_MOST_ROUNDS = 4
_STARTS = 3
# Results are one if their logarithms differ by less; of two, one must leave clearly less.
_SAME = 0.1
_CLEARLY = 0.9
_KEYFRAMES = 16
_STEPS = _KEYFRAMES + len(_FIRST) + _STARTS * _MOST_ROUNDS
_FEWEST_KEYFRAMES = 6
# Median motion between keyframes as a share of the width, and share of points that stay.
_MOTION = 0.03
_KEPT_SHARE = 0.7
# Beyond this misfit even the best focal length explains too little.
_DISPUTED = 0.6
# Errors that the observations share (lens, shutter): found on recordings of known cameras.
_SHARED_ERRORS = 3.0
_LEAST_SIGMA = 0.015
_WORST_SIGMA = 0.05


@dataclass(frozen=True)
class FocalLength:
    """A focal length in pixels of the images, and the standard deviation of its logarithm."""

    pixels: float
    sigma: float

    def camera(self, width: int, height: int) -> Camera:
        """Return the pinhole camera of images of a size."""
        return _pinhole(self.pixels, width, height)


def estimate_focal_length(
    images: Iterable[NDArray[np.uint8]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FocalLength | str:
    """Return the focal length of the camera that took some images, or why they do not show it.

    Args:
        images: (H, W, 3) uint8 RGB of one camera and size, in order; not all need to be read.
        progress: called with the number of steps done and the number of steps in all, from 0 on.
    """
    steps = _Steps(progress)
    found = focal_length_of(_followed(images, steps), steps)
    steps.reach(_STEPS)
    return found


class _Steps:
    """Counts the keyframes, the focal lengths to begin with, and the rounds that improve them."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self._done = 0
        progress(0, _STEPS)

    def one(self) -> None:
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        """Go on to a number of steps; where the work ended early, some are none."""
        self._done = max(self._done, done)
        self._progress(self._done, _STEPS)


def focal_length_of(
    keyframes: Sequence[TrackedKeyframe], steps: _Steps | None = None
) -> FocalLength | str:
    """Return the focal length by which points moved as they did, or why they do not show it."""
    steps = steps or _Steps(lambda done, total: None)
    steps.reach(_KEYFRAMES)
    if len(keyframes) < _FEWEST_KEYFRAMES:
        return f"the camera hardly moved: {len(keyframes)} views are too few"
    starts = []
    for factor in _FIRST:
        starts.append(_Explained.by(keyframes, factor))
        steps.one()
    starts = sorted((each for each in starts if each.map.is_founded), key=lambda e: e.misfit)
    if not starts:
        return "the camera's motion shows no distances, and so nothing of its lens"
    # A wrong one may begin better than the right one.
    ways = []
    for number, each in enumerate(starts[:_STARTS], 1):
        ways.append(_improved(keyframes, each, steps.one))
        steps.reach(_KEYFRAMES + len(_FIRST) + number * _MOST_ROUNDS)
    ways.sort(key=lambda e: e.misfit)
    best = ways[0]
    if best.misfit > _DISPUTED:
        return "no focal length explains how points move: does the scene move too?"
    others = [each for each in ways if abs(np.log(each.factor / best.factor)) > _SAME]
    if any(best.misfit > _CLEARLY * each.misfit for each in others):
        return "several focal lengths explain how points move: is the scene a plane?"
    if not best.sigma <= _WORST_SIGMA or not _FIRST[0] <= best.factor <= _FIRST[-1]:
        return "the camera's motion does not show it: it takes turns and ways to the side"
    return FocalLength(best.factor * keyframes[0].longer_side, best.sigma)


@dataclass(frozen=True)
class TrackedKeyframe:
    """The points of a keyframe, as a camera sees them whose focal length is the longer side.

    Attributes:
        tracks: the points.
        longer_side: of the images, pixels.
    """

    tracks: Tracks
    longer_side: float

    def at(self, factor: float) -> Tracks:
        """Return them for another focal length."""
        tracks = self.tracks
        return replace(tracks, rays=tracks.rays / factor, focal=tracks.focal * factor)


def _followed(images: Iterable[NDArray[np.uint8]], steps: _Steps) -> list[TrackedKeyframe]:
    tracker, keyframes = Tracker(), list[TrackedKeyframe]()
    for image in images:
        height, width = image.shape[:2]
        side = float(max(width, height))
        tracks = tracker.track(image, _pinhole(side, width, height))
        if not keyframes or _is_new(keyframes[-1].tracks, tracks, width):
            keyframes.append(TrackedKeyframe(tracks, side))
            steps.one()
        if len(keyframes) == _KEYFRAMES:
            break
    return keyframes


def _is_new(before: Tracks, now: Tracks, width: int) -> bool:
    one, other = shared(before, now)
    if len(one) < max(MIN_SHARED, _KEPT_SHARE * len(before.ids)):
        return True
    moved = np.linalg.norm(before.pixels[one] - now.pixels[other], axis=1)
    return float(np.median(moved)) >= _MOTION * width


@dataclass(frozen=True)
class _Explained:
    """What keyframes show if the focal length is this one.

    Attributes:
        factor: focal length by the longer side.
        map: of the keyframes that could be located.
        misfit: see `founding.misfit`, for errors of as many pixels whatever the focal length.
        sigma: standard deviation of the factor's logarithm.
    """

    factor: float
    map: LocalMap
    misfit: float
    sigma: float = np.inf

    @classmethod
    def by(cls, keyframes: Sequence[TrackedKeyframe], factor: float) -> _Explained:
        """Return the map that keyframes give with a focal length."""
        found = LocalMap(keyframes[0].at(factor), np.eye(4))
        for keyframe in keyframes[1:]:
            tracks = keyframe.at(factor)
            located = found.locate(tracks)
            if not located.is_lost:
                found.add_keyframe(tracks, located)
        lost = 1.0 - len(found.keyframes) / len(keyframes)
        sigma = ray_sigma(keyframes[0].tracks.focal) / factor
        seen = misfit(found.points, found.keyframes, sigma) if found.is_founded else 1.0
        return cls(factor, found, seen + lost)


def _improved(
    keyframes: Sequence[TrackedKeyframe], start: _Explained, after_round: Callable[[], None]
) -> _Explained:
    """Return what the focal length nearby explains that leaves the least."""
    best = start
    for _ in range(_MOST_ROUNDS):
        logarithm, sigma = _lowest(best.map)
        factor = best.factor * float(np.exp(logarithm))
        # What agreed with a focal length that was off may disagree with this one.
        best = replace(_Explained.by(keyframes, factor), sigma=sigma)
        after_round()
        is_there = abs(logarithm) < 0.5 * sigma
        if is_there or not best.map.is_founded or not _FIRST[0] <= factor <= _FIRST[-1]:
            break
    return best


def _lowest(found: LocalMap) -> tuple[float, float]:
    """Return where the cost of all views is lowest, and its standard deviation.

    Both are of the logarithm of the focal length, from the map's.
    """
    is_free = np.ones(len(found.keyframes), bool)
    is_free[0] = False
    _, bundle = bundle_of(found.points, found.keyframes, is_free)
    costs = {0: _adjusted(bundle, bundle, 0.0)}
    for direction in (1, -1):
        start = costs[0][1]
        for step in range(1, _MOST_STEPS + 1):
            costs[direction * step] = _adjusted(bundle, start, direction * step * _STEP)
            start = costs[direction * step][1]
            # Two steps uphill are enough to know the valley.
            if step >= 2 and costs[direction * step][0] > costs[direction * (step - 2)][0]:
                break
    steps = np.array(sorted(costs))
    values = np.array([costs[step][0] for step in steps])
    lowest = int(np.clip(values.argmin(), 1, len(steps) - 2))
    near = slice(lowest - 1, lowest + 2)
    curve = np.polyfit(_STEP * steps[near], values[near], 2)
    if curve[0] <= 0.0:
        return 0.0, np.inf
    variance = values.min() / len(bundle.rays) / curve[0]
    sigma = max(_SHARED_ERRORS * float(np.sqrt(variance)), _LEAST_SIGMA)
    return float(-0.5 * curve[1] / curve[0]), sigma


def _adjusted(observed: Bundle, start: Bundle, logarithm: float) -> tuple[float, Bundle]:
    """Return the cost with another focal length, and the bundle, adjusted from a start."""
    factor = float(np.exp(logarithm))
    rays, sigma = observed.rays / factor, observed.sigma / factor
    adjusted = adjust(replace(start, rays=rays, sigma=sigma), _ITERATIONS)
    return adjusted.cost * len(observed.rays), adjusted.bundle


def _pinhole(focal: float, width: int, height: int) -> Camera:
    matrix = np.diag([focal, focal, 1.0])
    matrix[:2, 2] = 0.5 * (width - 1), 0.5 * (height - 1)
    return Camera(width, height, matrix)
