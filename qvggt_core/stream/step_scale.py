"""A map's scale by the steps of a path, where the other source's errors add up along the way.

Odometry is off by more the further it went, so that its steps are independent of each other and
its positions are not. How noisy steps are is seen in what is left of them once both paths lie on
each other, most of it across the way, where the scale has no part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.path_alignment import AlignedPath, PathPiece
from qvggt_core.stream.scale_walk import WalkEstimate, walk_at

# After a way of the least distance odometry is off by so much of it at least.
_LEAST_NOISE = 0.0025
# Of neighbours, 0 where errors add up and -0.5 where each place is off by itself.
_LEAST_CORRELATION = -0.25
_OUTLIER = 4.0
_USUAL = 1.4826
# Median length of a vector of three normally distributed numbers of deviation 1.
_MEDIAN_LENGTH = 1.538
_FEWEST = 4


def step_scale(
    piece: PathPiece,
    aligned: AlignedPath,
    ways: NDArray[np.float64],
    min_distance: float,
) -> WalkEstimate | None:
    """Return the logarithm of metres per unit at the newest place.

    None with too few steps, or where each place is off by itself, as in a map that jitters: steps
    are the longer for it then, and long ways show the scale better.

    Args:
        piece: N places.
        aligned: the fit of the piece.
        ways: (N,) how far the camera had come in the map, in its unit.
        min_distance: metres along which the scale drifts by `DRIFT`.
    """
    metric = piece.positions + aligned.offset_s * piece.velocities
    metres = np.diff(metric, axis=0)
    scale = np.exp(aligned.log_scale)
    levers = piece.map_from_camera[:, :3, :3] @ aligned.lever
    placed = (scale * piece.map_from_camera[:, :3, 3] + levers) @ aligned.rotation.T
    steps = np.diff(placed, axis=0)
    length = np.linalg.norm(steps, axis=1)
    along = np.linalg.norm(metres, axis=1)
    usable = (length > 0.0) & (along > 0.0)
    if np.count_nonzero(usable) < _FEWEST:
        return None
    steps, metres, length, along = (each[usable] for each in (steps, metres, length, along))
    # The metres along a step of the map, by its length: a mean that noise does not make longer.
    values = aligned.log_scale + (steps * metres).sum(axis=1) / length**2 - 1.0
    left = metres - np.exp(np.median(values) - aligned.log_scale) * steps
    left /= np.sqrt(along * min_distance)[:, None]
    if _correlation(left) < _LEAST_CORRELATION:
        return None
    usual = float(np.median(np.linalg.norm(left, axis=1))) / _MEDIAN_LENGTH
    noise = max(usual, _LEAST_NOISE) * np.sqrt(along * min_distance) / length
    distance = np.abs(values - np.median(values)) / noise
    agrees = distance <= _OUTLIER * max(_USUAL * float(np.median(distance)), 1.0)
    unit = min_distance / scale
    middles = (0.5 * (ways[1:] + ways[:-1]))[usable] / unit
    return walk_at(float(ways[-1]) / unit, middles[agrees], values[agrees], noise[agrees])


def _correlation(left: NDArray[np.float64]) -> float:
    """Return how what is left of a step (N, 3) goes with what is left of the next, -1 to 1."""
    sizes = np.linalg.norm(left, axis=1, keepdims=True)
    limit = _OUTLIER * float(np.median(sizes))
    tamed = left * np.minimum(1.0, limit / np.maximum(sizes, 1e-12))
    return float((tamed[1:] * tamed[:-1]).sum() / max(float((tamed**2).sum()), 1e-30))
