"""How errors grow: relative pose error by distance, time or frames, and the scale over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError
from qvggt_core.geometry.poses import inverse, rotation_angle

Span = Literal["frames", "distance", "time"]
"""Distance between the two poses of a pair: in poses, length of the true path, or time."""

_MIN_WINDOW_POSES = 3


@dataclass(frozen=True)
class RelativeErrors:
    """Errors of relative motions, pair by pair.

    Attributes:
        first, second: (P,) indices of the pair's poses.
        translation: (P,) length of the wrong part of the motion, in the truth's unit.
        rotation: (P,) angle of the wrong part in degrees.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]


def progress(
    span: Span, positions: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance of poses from the first: (N,) frames, metres along the path, or seconds.

    Args:
        span: which of them.
        positions: (N, 3) of the true path.
        seconds: (N,) times.
    """
    if span == "frames":
        return np.arange(len(positions), dtype=np.float64)
    if span == "time":
        return np.asarray(seconds, dtype=np.float64)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def pairs_apart(
    way: NDArray[np.float64],
    delta: float,
    *,
    tolerance: float = 0.1,
    consecutive: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of poses that are `delta` apart.

    Args:
        way: (N,) progress of the poses; it never falls.
        delta: how far apart, in the unit of `way`.
        tolerance: by what share of `delta` a pair may miss it; of several the nearest is taken.
        consecutive: begin each pair where the last one ended, at the first pose that is at least
            `delta` further; otherwise a pair begins at every pose.

    Raises:
        EvaluationError: `delta` is not positive, or no two poses are that far apart.
    """
    way = np.asarray(way, dtype=np.float64)
    if not (np.isfinite(delta) and delta > 0.0):
        raise EvaluationError(f"poses cannot be {delta} apart: give a positive number")
    if not np.isfinite(way).all():
        raise EvaluationError("the times or positions of the poses are not finite")
    if consecutive:
        ends = [0]
        for index in range(1, len(way)):
            if way[index] - way[ends[-1]] >= delta:
                ends.append(index)
        first, second = np.array(ends[:-1], dtype=np.int64), np.array(ends[1:], dtype=np.int64)
    else:
        begin = np.arange(len(way) - 1)
        beyond = np.clip(np.searchsorted(way, way[:-1] + delta), begin + 1, len(way) - 1)
        # Of poses that stand still at one place the first is the pair's.
        before = np.searchsorted(way, way[np.maximum(beyond - 1, 0)])
        before = np.maximum(before, begin + 1)
        candidates = np.stack([before, beyond])
        misses = np.abs(way[candidates] - way[:-1] - delta)
        second = candidates[misses.argmin(axis=0), begin] if len(begin) else begin
        near = misses.min(axis=0, initial=np.inf) <= tolerance * delta if len(begin) else begin > 0
        first, second = begin[near], second[near]
    if len(first) == 0:
        reach = float(way[-1] - way[0]) if len(way) else 0.0
        raise EvaluationError(
            f"no two of {len(way)} poses are {delta:g} apart: the whole way is {reach:g}"
        )
    return first, second


def relative_errors(
    estimate_poses: NDArray,
    truth_poses: NDArray,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> RelativeErrors:
    """Compare the motions between pairs of poses (Sturm et al., TUM RGB-D, IROS 2012).

    Args:
        estimate_poses: (N, 4, 4) world_from_camera, in the truth's unit of length.
        truth_poses: (N, 4, 4) world_from_camera at the same stamps.
        pairs: indices of first and second poses.
    """
    estimate = np.asarray(estimate_poses, dtype=np.float64)
    truth = np.asarray(truth_poses, dtype=np.float64)
    first, second = pairs
    true_motion = inverse(truth[first]) @ truth[second]
    motion = inverse(estimate[first]) @ estimate[second]
    wrong = inverse(true_motion) @ motion
    return RelativeErrors(
        first=first,
        second=second,
        translation=np.linalg.norm(wrong[:, :3, 3], axis=1),
        rotation=np.degrees(rotation_angle(wrong[:, :3, :3])),
    )


@dataclass(frozen=True)
class ScaleOverTime:
    """The local scale of a trajectory, relative to its global one.

    Attributes:
        index: (W,) index of the pose in the middle of each window.
        ratio: (W,) local scale by global scale; above 1, the map is locally too small.
    """

    index: NDArray[np.int64]
    ratio: NDArray[np.float64]

    @property
    def spread(self) -> float:
        """Largest by smallest ratio."""
        return float(self.ratio.max() / self.ratio.min())

    @property
    def change(self) -> float:
        """The last ratio by the first, minus 1."""
        return float(self.ratio[-1] / self.ratio[0] - 1.0)


def scale_over_time(
    estimate_positions: NDArray, truth_positions: NDArray, window: float
) -> ScaleOverTime:
    """Return the scale of windows along the path, relative to that of the whole path.

    The scale of a set of positions is the root mean square distance from their mean, true by
    estimated (Horn, "Closed-form solution of absolute orientation", JOSA A 1987, the symmetric
    scale): it needs no alignment and does not shrink under noise.

    Args:
        estimate_positions: (N, 3).
        truth_positions: (N, 3) at the same stamps.
        window: length of the true path in a window, in its unit.

    Raises:
        EvaluationError: no window is full, or the positions of one do not move.
    """
    estimate = np.asarray(estimate_positions, dtype=np.float64)
    truth = np.asarray(truth_positions, dtype=np.float64)
    way = progress("distance", truth, np.zeros(len(truth)))
    begin = np.nonzero(way + window <= way[-1] * (1 + 1e-12))[0] if len(way) else np.empty(0, int)
    end = np.minimum(np.searchsorted(way, way[begin] + window * (1 - 1e-12)), len(way) - 1)
    full = end - begin + 1 >= _MIN_WINDOW_POSES
    begin, end = begin[full], end[full]
    if len(begin) == 0:
        length = float(way[-1]) if len(way) else 0.0
        raise EvaluationError(
            f"no stretch of {window:g} has {_MIN_WINDOW_POSES} of the {len(truth)} poses: the "
            f"path is {length:g} long"
        )
    everything = np.array([0]), np.array([len(truth) - 1])
    spreads = _spread(estimate, begin, end)
    if not (spreads > 0.0).all():
        raise EvaluationError(
            f"the scale is not defined: the estimate stands still on {int((spreads <= 0.0).sum())} "
            f"of {len(spreads)} stretches"
        )
    whole = _spread(truth, *everything) / _spread(estimate, *everything)
    return ScaleOverTime((begin + end) // 2, _spread(truth, begin, end) / spreads / whole)


def _spread(
    positions: NDArray[np.float64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the root mean square distance from the mean of positions begin ... end."""
    positions = positions - positions.mean(axis=0)
    zero = np.zeros((1, 3))
    sums = np.concatenate([zero, np.cumsum(positions, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((positions**2).sum(axis=1))])
    count = (end - begin + 1).astype(np.float64)
    mean = (sums[end + 1] - sums[begin]) / count[:, None]
    variance = (squares[end + 1] - squares[begin]) / count - (mean**2).sum(axis=1)
    return np.sqrt(np.maximum(variance, 0.0))
