"""Where the patches of each view of a window are seen in its other views, to parts of a pixel.

The network's attention finds the patch, the images' gradients the place (Lucas and Kanade, IJCAI
1981; as detector-free matchers do it in two steps, LoFTR, Sun et al., CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
_MOST_APART = 1.0
"""Patches by which a patch, matched to another view and back, may miss itself."""

_WINDOW = 9
_MOST_AWAY = 1.25
"""Patches by which flow may move a match."""

_RETURNS_TO = 1.0
"""Pixels by which flow, forth and back, may miss where it began."""


@dataclass(frozen=True)
class ViewMatches:
    """Where the P patches of each of S views are seen in the others.

    Attributes:
        pixels: (P, 2) middles of the patches, column and row, centres of pixels at integers.
        places: (S, S, P, 2) where view j shows patch p of view i, at [i, j, p], likewise.
        is_found: (S, S, P) whether it does.
    """

    pixels: NDArray[np.float64]
    places: NDArray[np.float64]
    is_found: NDArray[np.bool_]


def match_views(
    images: Sequence[NDArray[np.uint8]],
    similarity: NDArray[np.float32],
    patch: int,
    first_host: int = 0,
) -> ViewMatches:
    """Return where the patches of views are seen in the other views.

    Args:
        images: S of (H, W, 3) RGB.
        similarity: (S, S, P, P) between patches, see `patch_similarity`.
        patch: side of a patch, pixels.
        first_host: number of the view from which on patches are looked for in the others: what is
            not asked for, the patches of earlier ones, is not found.
    """
    count, (height, width) = len(images), images[0].shape[:2]
    grid = (height // patch, width // patch)
    place = _peaks(similarity, grid)
    own = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)
    pixels = _pixels(own, patch)
    grey = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in images]
    places = np.tile(pixels, (count, count, 1, 1))
    is_found = np.zeros(places.shape[:3], bool)
    for i, j in ((i, j) for i in range(first_host, count) for j in range(count) if i != j):
        nearest = np.rint(place[i, j]).astype(int) @ [grid[1], 1]
        misses = np.abs(place[j, i][nearest] - own).max(axis=1)
        returns = np.flatnonzero(misses <= _MOST_APART)
        if len(returns) == 0:
            continue
        start = _pixels(place[i, j, returns], patch)
        found, is_good = _refined(grey[i], grey[j], pixels[returns], start, _MOST_AWAY * patch)
        places[i, j, returns], is_found[i, j, returns] = found, is_good
    return ViewMatches(pixels, places, is_found)


def _peaks(similarity: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return where attention peaks, (S, S, P, 2) row and column: mean of the peak's neighbours."""
    peak = similarity.argmax(axis=-1).ravel()
    row, column = np.divmod(peak, grid[1])
    flat, begin = similarity.ravel(), np.arange(len(peak)) * similarity.shape[-1]
    height = flat[begin + peak]
    total, moved = np.zeros(len(peak)), np.zeros((2, len(peak)))
    for down, right in _NEIGHBOURS:
        inside = (row + down >= 0) & (row + down < grid[0])
        inside &= (column + right >= 0) & (column + right < grid[1])
        index = begin + peak + np.where(inside, down * grid[1] + right, 0)
        weight = np.exp(flat[index] - height, dtype=np.float64) * inside
        total += weight
        moved += weight * [[down], [right]]
    place = np.stack([row, column]) + moved / total
    return place.T.reshape(*similarity.shape[:-1], 2)


def _pixels(place: NDArray, patch: int) -> NDArray[np.float64]:
    """Return the column and row in pixels of rows and columns (..., 2) of patches."""
    return (place[..., ::-1] + 0.5) * patch - 0.5


def _refined(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    pixels: NDArray[np.float64],
    start: NDArray[np.float64],
    most_away: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return where flow from a start (P, 2) ends, and where it is to be trusted."""
    found, is_good = _flow(first, second, pixels, start)
    limit = np.array(second.shape[::-1]) - 0.5
    is_good &= ((found > -0.5) & (found < limit)).all(axis=1)
    is_good &= np.linalg.norm(found - start, axis=1) < most_away
    # The way back is followed only of what may still be right.
    good = np.flatnonzero(is_good)
    if len(good):
        again, is_back = _flow(second, first, found[good], pixels[good])
        misses = np.linalg.norm(again - pixels[good], axis=1)
        is_good[good] = is_back & (misses < _RETURNS_TO)
    return found, is_good


def _flow(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    pixels: NDArray[np.float64],
    start: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return where the second image shows pixels (P, 2) of the first, and whether it does."""
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        first,
        second,
        np.array(pixels, np.float32, order="C").reshape(-1, 1, 2),
        np.array(start, np.float32, order="C").reshape(-1, 1, 2),
        winSize=(_WINDOW, _WINDOW),
        maxLevel=1,
        criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.02),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return found[:, 0].astype(np.float64), status[:, 0] > 0
