"""Whether two keyframes see the same place, and how they lie to each other: from their corners."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, rotation_angle, transform
from qvggt_core.geometry.similarities import rotation_of, scale_of, similarity
from qvggt_core.stream.image_features import Features, matched
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.resection import Resection, Sighting, resect

# How well depth is known at a corner, as a share of it, and where a corner is, in pixels.
_DEPTH_SIGMA = 0.1
_PIXEL_SIGMA = 1.5
# RANSAC's first pose: from depth that is off, corners lie this many pixels from where they should.
_START_PIXELS = 6.0
_START_ITERATIONS = 300
FEWEST_MATCHES = 25
"""Corners that agree on one pose, at least, for two keyframes to see the same place."""

_MIN_SHARE = 0.5
# The corners that agree are spread over this share of both images, or they may be one thing that
# is in two places, as a poster is.
_MIN_SPREAD = 0.04
# Poses by the depth of one and of the other keyframe agree to this: radians, and share of depth.
_MAX_TURN = float(np.radians(4.0))
_MAX_SHIFT = 0.12
_MAX_DEPTH_SPREAD = 0.35
# What no edge is surer of: radians, share of the depth, log of the scale. As depth is off for all
# corners together, both grow with the distance between the two: radians for a distance of the
# depth, and a share of the distance. On synthetic flights errors are about half of that.
_ANGLE, _ANGLE_SHARE = float(np.radians(0.2)), 0.04
_SHIFT, _SHIFT_SHARE, _SCALE = 0.005, 0.15, 0.1
# Two results are the same if they differ by no more: radians, share of depth, log of the scale.
_SAME_TURN, _SAME_SHIFT, _SAME_SCALE = float(np.radians(4.0)), 0.15, 0.2


@dataclass(frozen=True)
class Corners:
    """What a keyframe is recognised by.

    Attributes:
        features: N corners of its image, and what they look like.
        rays: (N, 2) x / z and y / z.
        depth: (N,) float32 in the map's unit at the keyframe; NaN where unknown.
        focal: pixels of the image per unit of `rays`.
        area: of the whole image, in units of `rays` squared.
    """

    features: Features
    rays: NDArray[np.float64]
    depth: NDArray[np.float32]
    focal: float
    area: float


@dataclass(frozen=True)
class Sameness:
    """What speaks for two keyframes seeing the same place.

    Attributes:
        first_from_second: (4, 4) similarity, with the scale of the second one's unit.
        covariance: (7, 7) of small motions in the second one's frame.
        agreeing: number of corners that agree.
    """

    first_from_second: NDArray[np.float64]
    covariance: NDArray[np.float64]
    agreeing: int


def compare(first: Corners, second: Corners) -> Sameness | str:
    """Return how a second keyframe lies to a first one, if both see the same place.

    Corners that look alike give the pose of each keyframe by the other one's depth. Both poses
    have to be the same up to the scale, which comes from the ratio of the depths.

    Returns:
        The one by the other; or why they do not see the same place, in a few words.
    """
    one, other = matched(first.features, second.features)
    if len(one) < FEWEST_MATCHES:
        return "few corners look alike"
    forward = _pose(first, one, second, other)
    backward = _pose(second, other, first, one)
    if forward is None or backward is None:
        return "corners agree on no pose"
    agrees = np.zeros(len(one), bool)
    agrees[forward.index[forward.found.agrees]] = True
    count = int(np.count_nonzero(agrees))
    if count < FEWEST_MATCHES or forward.found.share < _MIN_SHARE:
        return "few corners agree on a pose"
    if backward.found.share < _MIN_SHARE:
        return "few corners agree on the pose from the other side"
    if min(_spread(first, one[agrees]), _spread(second, other[agrees])) < _MIN_SPREAD:
        return "corners agree in a small part of the image only"
    second_from_first = forward.found.camera_from_map
    ratio, spread = _scale(first, one[agrees], second, other[agrees], second_from_first)
    if not spread < _MAX_DEPTH_SPREAD:
        return "the depths have no common ratio"
    first_from_second = inverse(second_from_first)
    other_way = backward.found.camera_from_map.copy()
    other_way[:3, 3] *= ratio
    usual = float(np.nanmedian(first.depth[one[agrees]]))
    apart = inverse(other_way) @ first_from_second
    if (
        rotation_angle(apart[:3, :3]) > _MAX_TURN
        or np.linalg.norm(apart[:3, 3]) > _MAX_SHIFT * usual
    ):
        return "the poses by both depths differ"
    relation = similarity(ratio, first_from_second[:3, :3], first_from_second[:3, 3])
    covariance = _covariance(forward.found, first_from_second, usual, ratio, spread / count**0.5)
    return Sameness(relation, covariance, count)


def are_the_same(apart: NDArray[np.float64], depth: float) -> bool:
    """Return whether a similarity (4, 4) between two results is within what results are off by.

    Args:
        apart: from one to the other, in a keyframe's frame.
        depth: usual one of that keyframe.
    """
    return bool(
        rotation_angle(rotation_of(apart)) < _SAME_TURN
        and np.linalg.norm(apart[:3, 3]) < _SAME_SHIFT * depth
        and abs(np.log(scale_of(apart))) < _SAME_SCALE
    )


@dataclass(frozen=True)
class _Located:
    """A pose by corners with depth, and which of the matches these are."""

    index: NDArray[np.int64]
    found: Resection


def _pose(
    first: Corners, one: NDArray[np.int64], second: Corners, other: NDArray[np.int64]
) -> _Located | None:
    """Return second_from_first by the first one's depth."""
    index = np.flatnonzero(np.isfinite(first.depth[one]))
    if len(index) < FEWEST_MATCHES:
        return None
    rays = first.rays[one[index]]
    directions = np.column_stack([rays, np.ones(len(rays))])
    positions = directions * first.depth[one[index], None].astype(np.float64)
    distance = np.linalg.norm(positions, axis=1)
    points = Points(
        ids=np.arange(len(index)),
        origins=np.zeros_like(positions),
        directions=positions / distance[:, None],
        inverse_distance=1.0 / distance,
        sigma=_DEPTH_SIGMA / distance,
        prior=1.0 / distance,
        prior_sigma=np.full(len(index), np.inf),
    )
    seen = second.rays[other[index]]
    start = _start(positions, seen, second.focal)
    if start is None:
        return None
    return _Located(index, resect(Sighting(points, seen, _PIXEL_SIGMA / second.focal), [start]))


def _start(
    positions: NDArray[np.float64], rays: NDArray[np.float64], focal: float
) -> NDArray[np.float64] | None:
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        positions,
        rays,
        np.eye(3),
        np.zeros(4),
        reprojectionError=_START_PIXELS / focal,
        iterationsCount=_START_ITERATIONS,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found or inliers is None or not np.isfinite([turn, shift]).all():
        return None
    return transform(Rotation.from_rotvec(turn.ravel()).as_matrix(), shift.ravel())


def _scale(
    first: Corners,
    one: NDArray[np.int64],
    second: Corners,
    other: NDArray[np.int64],
    second_from_first: NDArray[np.float64],
) -> tuple[float, float]:
    """Return units of the first keyframe per unit of the second, and the spread of its log."""
    directions = np.column_stack([first.rays[one], np.ones(len(one))])
    points = directions * first.depth[one, None]
    expected = points @ second_from_first[2, :3] + second_from_first[2, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.log(expected / second.depth[other])
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < FEWEST_MATCHES // 2:
        return 1.0, np.inf
    middle = float(np.median(ratios))
    return float(np.exp(middle)), 1.48 * float(np.median(np.abs(ratios - middle)))


def _covariance(
    found: Resection,
    first_from_second: NDArray[np.float64],
    usual_depth: float,
    scale: float,
    scale_sigma: float,
) -> NDArray[np.float64]:
    covariance = np.zeros((7, 7))
    covariance[:6, :6] = found.covariance
    distance = float(np.linalg.norm(first_from_second[:3, 3]))
    shift = _SHIFT * usual_depth + _SHIFT_SHARE * distance
    angle = _ANGLE + _ANGLE_SHARE * distance / usual_depth
    covariance[range(6), range(6)] += np.repeat([angle**2, shift**2], 3)
    # Lengths in the second keyframe's unit.
    unit = np.repeat([1.0, 1.0 / scale], 3)
    covariance[:6, :6] *= np.outer(unit, unit)
    covariance[6, 6] = _SCALE**2 + scale_sigma**2
    return covariance


def _spread(corners: Corners, index: NDArray[np.int64]) -> float:
    """Return the share of the image over which some corners are spread: 1 if evenly over all."""
    # The area of an even rectangle is 12 times the root of its covariance's determinant.
    spread = np.linalg.det(np.cov(corners.rays[index].T))
    return 12.0 * float(np.sqrt(max(spread, 0.0))) / corners.area
