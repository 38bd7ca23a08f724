"""How many map units a window's unit is, from two depths of the same pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import AlignmentError

_MIN_VALID_SHARE = 0.01
# A median of this many pixels is steady to a fraction of a per cent; sorting more takes longer.
_PIXELS_PER_VIEW = 20_000


@dataclass(frozen=True)
class DepthScale:
    """The scale between two reconstructions of the same views.

    Attributes:
        ratio: map units per window unit.
        spread: largest over smallest of the views' own ratios, 1 when they agree.
    """

    ratio: float
    spread: float


def valid_depth(
    depth: NDArray[np.float32], confidence: NDArray[np.float32], percentile: float
) -> NDArray[np.float32]:
    """Return a copy of a depth image with NaN where it is not to be trusted.

    Args:
        depth: (H, W), any unit.
        confidence: (H, W); it has no absolute meaning, so the threshold is relative.
        percentile: pixels below this percentile of the confidence are not trusted.

    Returns:
        (H, W) float32; NaN also where depth or confidence is not finite or depth not positive.
    """
    valid = np.isfinite(depth) & (depth > 0) & np.isfinite(confidence)
    if valid.any():
        valid &= confidence >= np.percentile(confidence[valid], percentile)
    return np.where(valid, depth, np.float32(np.nan)).astype(np.float32)


def depth_scale(
    map_depth: NDArray[np.float32],
    window_depth: NDArray[np.float32],
    confidence: NDArray[np.float32],
) -> DepthScale:
    """Return the scale as the median ratio of depths, over the pixels of all shared views.

    The median is weighted by confidence: VGGT's training weighs the absolute error of a pixel by
    it, and the estimate that is most likely under such errors is the weighted median.

    Args:
        map_depth: (S, H, W) in map units, NaN where invalid.
        window_depth: (S, H, W) of the same pixels in window units, NaN where invalid.
        confidence: (S, H, W) of `window_depth`.

    Raises:
        AlignmentError: in no view are enough pixels valid on both sides.
    """
    step = max(1, int(np.sqrt(map_depth[0].size / _PIXELS_PER_VIEW)))
    ratios, weights, medians = [], [], []
    for placed, seen, sure in zip(map_depth, window_depth, confidence, strict=True):
        both = np.isfinite(placed) & np.isfinite(seen)
        if np.count_nonzero(both) < _MIN_VALID_SHARE * both.size:
            continue
        both[np.arange(both.shape[0]) % step != 0] = False
        both[:, np.arange(both.shape[1]) % step != 0] = False
        ratio = np.log(placed[both].astype(np.float64) / seen[both])
        ratios.append(ratio)
        weights.append(sure[both].astype(np.float64))
        medians.append(weighted_median(ratio, weights[-1]))
    if not medians:
        raise AlignmentError(
            f"none of the {len(map_depth)} views that the window shares with the map has valid "
            f"depth on {_MIN_VALID_SHARE:.0%} of its pixels in both"
        )
    ratio = weighted_median(np.concatenate(ratios), np.concatenate(weights))
    return DepthScale(float(np.exp(ratio)), float(np.exp(max(medians) - min(medians))))


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the value below which half of the weight lies."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, 0.5 * total[-1])]])
