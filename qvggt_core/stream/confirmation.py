"""Whether the images confirm a window: predicted geometry against points that were followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.frame import Confirmation, Verdict, WindowPrediction
from qvggt_core.stream.tracks import Tracks
from qvggt_core.stream.two_view import turn_between

# A prediction is confirmed if its points lie where they were seen up to this share of their
# motion, and contradicted from the second share on: no motion at all predicted gives 1. Synthetic
# flights that the network was trained for lie at 0.1 to 0.4.
CONFIRMED_BELOW = 0.45
CONTRADICTED_ABOVE = 0.65
# Shares of the image's width. Below the first, nothing can be learned from a motion; from the
# second on a predicted motion is wrong where there is none.
_MIN_MOTION = 0.01
_MIN_PARALLAX = 0.004
_FALSE_MOTION = 0.03
_FEWEST_POINTS = 20
_PAIRS_PER_VIEW = 3
# Flow is this precise, in shares of the width; a residual below it says nothing.
_PRECISION = 0.002


@dataclass(frozen=True)
class TrackedView:
    """The points of one view of a window.

    Attributes:
        stamp_ns: capture time.
        tracks: the points.
        pixels: (N, 2) where they are in the view.
        width: columns of the image in which they were followed.
    """

    stamp_ns: int
    tracks: Tracks
    pixels: NDArray[np.float64]
    width: float


def confirm(prediction: WindowPrediction, views: Sequence[TrackedView | None]) -> Confirmation:
    """Compare a window's prediction with the points that were followed through its views.

    Args:
        prediction: of S views.
        views: the S views' points; None for a view without.
    """
    if not _is_finite(prediction):
        return Confirmation(Verdict.CONTRADICTED, "the network's output is not finite")
    pairs = _pairs(prediction, views)
    if not pairs:
        return Confirmation(Verdict.UNDECIDED, "too few points could be followed: no texture?")
    moving = [pair for pair in pairs if pair.motion >= _MIN_MOTION] or pairs
    followed, motion, parallax, residual = np.median(
        [(pair.followed, pair.motion, pair.parallax, pair.residual) for pair in moving], axis=0
    )
    verdict, reason = _verdict(float(motion), float(parallax), float(residual))
    return Confirmation(
        verdict, reason, int(followed), float(motion), float(parallax), float(residual)
    )


def _is_finite(prediction: WindowPrediction) -> bool:
    return bool(
        np.isfinite(prediction.camera_from_world).all()
        and np.isfinite(prediction.depth).any()
        and np.isfinite(prediction.intrinsics).all()
    )


def _verdict(motion: float, parallax: float, residual: float) -> tuple[Verdict, str]:
    if motion < _MIN_MOTION:
        if residual > _FALSE_MOTION:
            return Verdict.CONTRADICTED, "the network sees motion where nothing moves"
        return Verdict.UNDECIDED, "the camera stands still"
    ratio = max(residual - _PRECISION, 0.0) / motion
    if ratio > CONTRADICTED_ABOVE:
        return Verdict.CONTRADICTED, "predicted depth and poses do not fit the image motion"
    if ratio > CONFIRMED_BELOW:
        return Verdict.UNDECIDED, "predicted depth and poses fit the image motion badly"
    if parallax < _MIN_PARALLAX:
        return Verdict.UNDECIDED, "the camera only turns: depth cannot be checked"
    return Verdict.CONFIRMED, "predicted depth and poses fit the image motion"


@dataclass(frozen=True)
class _Pair:
    followed: float
    motion: float
    parallax: float
    residual: float


def _pairs(prediction: WindowPrediction, views: Sequence[TrackedView | None]) -> list[_Pair]:
    without_depth = len(views) - len(prediction.depth)
    window_from_camera = inverse(prediction.camera_from_world)
    found = []
    for i, first in enumerate(views):
        if first is None or i < without_depth:
            continue
        depth = depth_at(prediction.depth[i - without_depth], first.pixels)
        others = [j for j, each in enumerate(views) if each is not None and j != i]
        # Near and far ones, evenly: a few pairs show as much as all.
        for j in others[:: max(1, len(others) // _PAIRS_PER_VIEW)]:
            second = views[j]
            assert second is not None
            second_from_first = prediction.camera_from_world[j] @ window_from_camera[i]
            pair = _pair(first, depth, second, second_from_first)
            if pair is not None:
                found.append(pair)
    return found


def _pair(
    first: TrackedView,
    depth: NDArray[np.float64],
    second: TrackedView,
    second_from_first: NDArray[np.float64],
) -> _Pair | None:
    _, one, other = np.intersect1d(
        first.tracks.ids, second.tracks.ids, assume_unique=True, return_indices=True
    )
    known = np.isfinite(depth[one]) & (depth[one] > 0)
    one, other = one[known], other[known]
    if len(one) < _FEWEST_POINTS:
        return None
    start, end = first.tracks.rays[one], second.tracks.rays[other]
    points = np.column_stack([start, np.ones(len(start))]) * depth[one, None]
    moved = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        there = moved[:, :2] / moved[:, 2:]
    share = first.tracks.focal / first.width
    off = share * np.linalg.norm(there - end, axis=1)
    # What comes to lie behind the camera is as wrong as can be.
    off = np.where((moved[:, 2] > 0) & np.isfinite(off), off, 1.0)
    motion = share * np.linalg.norm(end - start, axis=1)
    _, rest = turn_between(start, end)
    return _Pair(
        float(len(one)),
        float(np.median(motion)),
        share * float(np.median(rest)),
        float(np.median(np.minimum(off, 1.0))),
    )


def depth_at(depth: NDArray[np.float32], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the depth at the pixels next to some places (N, 2); NaN outside."""
    columns, rows = np.rint(pixels).astype(np.int64).reshape(-1, 2).T
    inside = (columns >= 0) & (rows >= 0) & (columns < depth.shape[1]) & (rows < depth.shape[0])
    result = np.full(len(pixels), np.nan)
    result[inside] = depth[rows[inside], columns[inside]]
    return result
