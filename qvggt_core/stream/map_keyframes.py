"""Keyframes of the local map: what two of them share, turns, and views that can found a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.map_points import MeasuredPoints, Points
from qvggt_core.stream.tracks import Tracks
from qvggt_core.stream.two_view import TwoViews, relate, turn_between
from qvggt_core.stream.uncertainty import (
    SCALE_SIGMA,
    STEP_FACTOR,
    at_one_scale,
    between,
    bounded,
    carried,
    common,
)

_PIXEL_SIGMA = 1.0
_LEAST_PIXEL_SIGMA = 0.3
# Focal length of an image of 640 columns, from which a pixel of error is the lens's and the
# shutter's more than the flow's.
_USUAL_FOCAL = 500.0

# A camera that only turned stays where it was, to this share of a track's error. Small common
# errors of many tracks (lens, flow) would move it otherwise.
_TURNING_SIGMA = 0.05

MIN_SHARED = 30
"""Points that two views share at least, for anything to be concluded from both."""

# Median image motion in pixels, beside that of a turn, from which a camera has moved.
_NO_PARALLAX = 0.5
# Median motion in pixels between two images up to which the camera stands still.
_STILL = 0.3


@dataclass
class Keyframe:
    """A pose that is adjusted, and what was seen from there.

    Attributes:
        camera_from_map: (4, 4).
        tracks: the points in its image.
        only_turned: whether the camera did nothing but turn since the keyframe before.
        step: (6, 6) covariance of its pose against that of the keyframe before, rotation and
            translation in the camera's frame.
        covariance: (7, 7) of its pose in the map, likewise, and of the logarithm of the scale.
        adrift: radians by which the image had moved before the map knew distances, on the way
            from its first pose to this one; see `uncertainty.adrift`.
        measured: distances of its points by something else than motion; None where there are none.
    """

    camera_from_map: NDArray[np.float64]
    tracks: Tracks
    only_turned: bool = False
    step: NDArray[np.float64] = field(default_factory=lambda: np.zeros((6, 6)))
    covariance: NDArray[np.float64] = field(default_factory=lambda: np.zeros((7, 7)))
    adrift: float = 0.0
    measured: MeasuredPoints | None = None

    def rescale(self, centre: NDArray[np.float64], factor: float) -> None:
        """Multiply all lengths about a place (3,) in the map."""
        unit = np.array([1.0, 1.0, 1.0, factor, factor, factor, 1.0])
        self.camera_from_map = scaled_pose(self.camera_from_map, centre, factor)
        self.step = self.step * np.outer(unit[:6], unit[:6])
        self.covariance = self.covariance * np.outer(unit, unit)


def scaled_pose(
    camera_from_map: NDArray[np.float64], centre: NDArray[np.float64], factor: float
) -> NDArray[np.float64]:
    """Return a pose (4, 4) with its camera's centre moved away from another one by a factor."""
    map_from_camera = inverse(camera_from_map)
    map_from_camera[:3, 3] = centre + factor * (map_from_camera[:3, 3] - centre)
    return inverse(map_from_camera)


def ray_sigma(focal: float) -> float:
    """Return the standard deviation that the rays of tracks are taken to have.

    It is a pixel (what is left in practice is 0.3 to 0.8 of it), in small images less: what errors
    a lens and a shutter make shrinks with them.

    Args:
        focal: of the tracked image, pixels per unit of the rays.
    """
    pixels = float(np.clip(_PIXEL_SIGMA * focal / _USUAL_FOCAL, _LEAST_PIXEL_SIGMA, _PIXEL_SIGMA))
    return pixels / focal


def shared(one: Tracks, other: Tracks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices in both of the points that two images share."""
    _, first, second = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    return first, second


def pose_after_turn(
    keyframes: Sequence[Keyframe], tracks: Tracks, moving: Sequence[int] = ()
) -> NDArray[np.float64] | None:
    """Return the pose (4, 4) if a turn since the last keyframe explains what is seen.

    A motion has then no effect that could be seen, and so none should be found: distances
    without parallax leave room for one, with a wrong turn to match.

    Args:
        keyframes: of the map.
        tracks: what is seen.
        moving: numbers of points that move by themselves.
    """
    found = None
    standing = tracks.take(~np.isin(tracks.ids, moving))
    for keyframe in reversed(keyframes):
        if keyframe.tracks is tracks:
            continue
        one, other = shared(keyframe.tracks, standing)
        if len(one) < MIN_SHARED:
            break
        rotation, rest = turn_between(keyframe.tracks.rays[one], standing.rays[other])
        if float(np.median(rest)) * standing.focal > _NO_PARALLAX:
            return None
        if found is None:
            found = transform(rotation, np.zeros(3)) @ keyframe.camera_from_map
        # A slow motion shows against the first of several that only turned.
        if not keyframe.only_turned:
            break
    return found


def agreement(before: Tracks, after: Tracks) -> float:
    """Return the share of the points in two images that one motion of the camera explains."""
    views = _related(before, after)
    return 1.0 if views is None else views.share


def turned_since(
    before: Tracks, after: Tracks, camera_from_map: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return the pose (4, 4) with the turn that explains most points since an image, if any.

    What moves by itself may look as if the camera had not turned, or turned otherwise.
    """
    views = _related(before, after)
    if views is None:
        return []
    return [transform(views.second_from_first[:3, :3], np.zeros(3)) @ camera_from_map]


def _related(before: Tracks, after: Tracks) -> TwoViews | None:
    one, other = shared(before, after)
    if len(one) < MIN_SHARED:
        return None
    return relate(before.rays[one], after.rays[other], ray_sigma(after.focal))


def image_motion(before: Tracks, after: Tracks) -> float:
    """Return the median angle in radians by which points moved, 0 where it is the tracker's."""
    one, other = shared(before, after)
    if len(one) < MIN_SHARED:
        return 0.0
    moved = np.linalg.norm(before.rays[one] - after.rays[other], axis=1)
    angle = float(np.median(moved))
    return angle if angle * after.focal > _STILL else 0.0


def turning_pairs(keyframes: Sequence[Keyframe], is_free: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the pairs (P, 2) of keyframes between which the camera only turned."""
    later = [
        number
        for number, keyframe in enumerate(keyframes)
        if number > 0 and keyframe.only_turned and is_free[number]
    ]
    return np.array([(number - 1, number) for number in later], np.int64).reshape(-1, 2)


def bundle_of(
    points: Points, keyframes: Sequence[Keyframe], is_free: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Bundle]:
    """Return what keyframes see of points, to be adjusted.

    Args:
        points: of the map.
        keyframes: K.
        is_free: (K,) which of them may move.

    Returns:
        The indices of the points that two keyframes see, one of them free; and all.
    """
    cameras, indices, rays = [], [], []
    for number, keyframe in enumerate(keyframes):
        index, found = points.find(keyframe.tracks.ids)
        cameras.append(np.full(len(index), number))
        indices.append(index)
        rays.append(keyframe.tracks.rays[found])
    camera, point = np.concatenate(cameras), np.concatenate(indices)
    count = np.bincount(point, minlength=len(points))
    by_free = np.bincount(point[is_free[camera]], minlength=len(points))
    used = (count >= 2) & (by_free >= 1)
    kept, index = used[point], np.flatnonzero(used)
    chosen = points.take(index)
    sigma = ray_sigma(keyframes[-1].tracks.focal)
    usual = float(np.median(chosen.inverse_distance)) if len(index) else 1.0
    bundle = Bundle(
        camera_from_map=np.stack([keyframe.camera_from_map for keyframe in keyframes]),
        is_free=is_free,
        points=chosen,
        camera=camera[kept],
        point=np.searchsorted(index, point[kept]),
        rays=np.concatenate(rays)[kept],
        sigma=sigma,
        turning=turning_pairs(keyframes, is_free),
        turning_sigma=_TURNING_SIGMA * sigma / usual,
    )
    return index, bundle


def last_step(
    keyframes: Sequence[Keyframe], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the covariance (6, 6) of the last keyframe against the one before it.

    Args:
        keyframes: of an adjustment, its free ones last.
        covariance: (6 F, 6 F) of the free ones.
    """
    if len(covariance) < 12:
        return covariance
    last_from_former = keyframes[-1].camera_from_map @ inverse(keyframes[-2].camera_from_map)
    return between(covariance[-12:, -12:], last_from_former)


def take_covariances(
    keyframes: Sequence[Keyframe],
    is_free: NDArray[np.bool_],
    covariance: NDArray[np.float64],
    depth: float,
    is_settled: bool,
) -> None:
    """Let the keyframes that were adjusted know how uncertain they are in the map.

    What the adjustment gives holds against the newest keyframe that it held: errors of those
    that are adjusted together have much in common, and do not add up like those of steps.

    Args:
        keyframes: of an adjustment.
        is_free: (K,) which of them it moved.
        covariance: (6 F, 6 F) of these, the others exact.
        depth: how far away things are.
        is_settled: whether the map knows distances for sure.
    """
    covariance = bounded(covariance, depth)
    held, free = np.flatnonzero(~is_free).tolist(), np.flatnonzero(is_free).tolist()
    if len(held) == 1:
        centre = inverse(keyframes[0].camera_from_map)[:, 3]
        away = [np.r_[np.zeros(3), (keyframes[i].camera_from_map @ centre)[:3]] for i in free]
        covariance = at_one_scale(covariance, np.concatenate(away))
    last = keyframes[held[-1]]
    for slot, number in enumerate(free):
        keyframe = keyframes[number]
        here = slice(6 * slot, 6 * slot + 6)
        motion = keyframe.camera_from_map @ inverse(last.camera_from_map)
        total = carried(last.covariance, motion)
        total[:6, :6] += STEP_FACTOR**2 * covariance[here, here]
        total[:6, :6] += (slot + 1) * common(keyframe.tracks.focal, depth)
        total[6, 6] += (slot + 1) * SCALE_SIGMA**2
        keyframe.covariance = total
        if is_settled:
            keyframe.adrift = last.adrift
