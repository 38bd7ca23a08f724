"""Which corners of keyframes are one and the same point: matches of pairs, joined to tracks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from qvggt_core.stream.image_features import matched
from qvggt_core.stream.loop_verification import Corners

# Pixels by which a corner may lie beside the epipolar line of its match, and matches of a pair,
# at least, that do not.
_EPIPOLAR_PIXELS, _CONFIDENCE, _FEWEST = 1.5, 0.999, 20


@dataclass(frozen=True)
class CornerTracks:
    """Points, and the corners by which keyframes see them: N observations.

    Attributes:
        keyframe: (N,) index of the keyframe, increasing.
        corner: (N,) index of the corner in it.
        point: (N,) number of the point, from 0 on without a gap; a keyframe sees it once.
    """

    keyframe: NDArray[np.int64]
    corner: NDArray[np.int64]
    point: NDArray[np.int64]

    @property
    def points(self) -> int:
        """Number of points."""
        return int(self.point.max(initial=-1)) + 1

    def thinned(self, most: int, linking: int) -> CornerTracks:
        """Return those points that most keyframes see, until each sees so many of them.

        More are kept where a keyframe, or one and the next that see a point, share too few.

        Args:
            most: points of a keyframe, from which on no more are needed.
            linking: points that two keyframes share, likewise.
        """
        seen, shared = Counter[int](), Counter[tuple[int, int]]()
        by_point = np.argsort(self.point, kind="stable")
        counts = np.bincount(self.point, minlength=self.points)
        seen_by = np.split(self.keyframe[by_point], np.cumsum(counts)[:-1])
        is_kept = np.zeros(self.points, bool)
        for number in np.argsort(-counts, kind="stable"):
            keyframes = seen_by[number].tolist()
            pairs = list(pairwise(keyframes))
            if min(seen[each] for each in keyframes) >= most and (
                min(shared[pair] for pair in pairs) >= linking
            ):
                continue
            is_kept[number] = True
            seen.update(keyframes)
            shared.update(pairs)
        kept, numbers = is_kept[self.point], np.cumsum(is_kept) - 1
        return CornerTracks(self.keyframe[kept], self.corner[kept], numbers[self.point[kept]])


def corner_tracks(corners: Sequence[Corners], pairs: Iterable[tuple[int, int]]) -> CornerTracks:
    """Return the points that two keyframes or more see.

    Args:
        corners: of K keyframes.
        pairs: of keyframes that may see the same points.
    """
    begins = np.cumsum([0, *(len(each.rays) for each in corners)])
    links = [np.empty((2, 0), np.int64)]
    for first, second in pairs:
        one, other = _consistent(corners[first], corners[second])
        links.append(np.stack([begins[first] + one, begins[second] + other]))
    row, column = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(len(row), bool), (row, column)), shape=(begins[-1], begins[-1]))
    _, point = connected_components(graph, directed=False)
    point = point.astype(np.int64)
    keyframe = np.repeat(np.arange(len(corners)), np.diff(begins))
    seen, count = np.unique(point * len(corners) + keyframe, return_counts=True)
    # A point that a keyframe would see in two places is two points that were mistaken for one.
    is_good = np.bincount(point) >= 2
    is_good[seen[count > 1] // len(corners)] = False
    kept = np.flatnonzero(is_good[point])
    numbers = np.cumsum(is_good) - 1
    return CornerTracks(keyframe[kept], kept - begins[keyframe[kept]], numbers[point[kept]])


def _consistent(first: Corners, second: Corners) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices (M,) in both of corners that look alike and lie as one motion has it."""
    one, other = matched(first.features, second.features)
    nothing = np.empty(0, np.int64)
    if len(one) < _FEWEST:
        return nothing, nothing
    cv2.setRNGSeed(0)
    limit = _EPIPOLAR_PIXELS / min(first.focal, second.focal)
    matrix, mask = cv2.findEssentialMat(
        first.rays[one], second.rays[other], np.eye(3), cv2.RANSAC, _CONFIDENCE, limit
    )
    if matrix is None or np.count_nonzero(mask) < _FEWEST:
        return nothing, nothing
    agrees = mask.ravel() > 0
    return one[agrees], other[agrees]
