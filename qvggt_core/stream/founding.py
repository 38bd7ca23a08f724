"""How a map gets its distances: views with parallax that may found it, and how well a map fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.map_keyframes import MIN_SHARED, Keyframe, bundle_of, ray_sigma, shared
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.resection import OUTLIER, OUTLIER_SCALE
from qvggt_core.stream.two_view import relate, relate_by_plane, turn_between

# Two views found the map once they see its points from angles that differ by a degree.
_MIN_PARALLAX = float(np.radians(1.0))
_MIN_AGREEING = 0.6
_FEWEST_TO_FOUND = 4
_PARALLAX_TO_FOUND = 2.0


@dataclass(frozen=True)
class FoundingViews:
    """Two keyframes whose parallax gives the distances of points.

    Attributes:
        first: index of the earlier one; the later one is the newest keyframe.
        ids: (N,) numbers of the points.
        points: (N, 3) in the earlier one's camera, in units of the distance between the two.
    """

    first: int
    ids: NDArray[np.int64]
    points: NDArray[np.float64]


def founding_views(keyframes: Sequence[Keyframe]) -> list[FoundingViews]:
    """Return how the newest keyframe and the oldest that shares enough with it may found a map.

    There is more than one way where points may lie in a plane, and none without parallax.
    """
    newest = keyframes[-1].tracks
    enough = (
        number
        for number, keyframe in enumerate(keyframes[: 1 - _FEWEST_TO_FOUND])
        if len(shared(keyframe.tracks, newest)[0]) >= MIN_SHARED
    )
    number = next(enough, None)
    if number is None:
        return []
    oldest = keyframes[number].tracks
    one, other = shared(oldest, newest)
    first, second = oldest.rays[one], newest.rays[other]
    _, rest = turn_between(first, second)
    if float(np.median(rest)) * newest.focal < _PARALLAX_TO_FOUND:
        return []
    sigma = ray_sigma(newest.focal)
    by_any_points = relate(first, second, sigma)
    ways = [] if by_any_points is None else [by_any_points]
    return [
        FoundingViews(number, oldest.ids[one][views.agrees], views.points[views.agrees])
        for views in ways + relate_by_plane(first, second, sigma)
        if views.share >= _MIN_AGREEING and views.parallax >= _MIN_PARALLAX
    ]


def misfit(points: Points, keyframes: Sequence[Keyframe], sigma: float | None = None) -> float:
    """Return the mean robust cost of what keyframes see of points that two of them share.

    It is 1 where all are outliers. What is expected of distances has no part in it, and a point
    that the map lacks, because it did not agree or for want of parallax, counts as one.

    Args:
        points: of the map.
        keyframes: that saw them.
        sigma: standard deviation of rays, that of tracks if not given.
    """
    _, bundle = bundle_of(points, keyframes, np.ones(len(keyframes), bool))
    if sigma is not None:
        bundle = replace(bundle, sigma=sigma)
    square = (bundle.residuals() ** 2).sum(axis=1)
    _, count = np.unique(
        np.concatenate([each.tracks.ids for each in keyframes]), return_counts=True
    )
    total = int(count[count >= 2].sum())
    worst = float(np.log1p(OUTLIER**2 / OUTLIER_SCALE**2))
    known = np.minimum(np.log1p(square / OUTLIER_SCALE**2), worst)
    return (float(known.sum()) / worst + total - len(square)) / max(total, 1)


def path_length(keyframes: Sequence[Keyframe]) -> float:
    """Return the length of the path through keyframes."""
    centres = np.stack([inverse(keyframe.camera_from_map)[:3, 3] for keyframe in keyframes])
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
