"""Which poses of two trajectories belong together: by time, across clocks that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.track import DEFAULT_TOLERANCE_S, Track
from qvggt_core.evaluate.trajectory import align_sim3

_GRID = 400
_MIN_OVERLAP = 0.5
_MIN_POSES = 4
# The error at the best offset must be this much below that of a typical one.
_CLEAR = 0.5
# A path that fits this well at any offset, by its extent, determines none.
_FITS_ANYWAY = 1e-3


@dataclass(frozen=True)
class Association:
    """Indices of poses that belong together.

    Attributes:
        own: (M,) indices into the trajectory, growing.
        truth: (M,) indices into the truth.
        gaps_s: (M,) truth's stamp plus the clock offset, minus own stamp, in seconds.
        offset_s: what was added to the truth's stamps.
    """

    own: NDArray[np.int64]
    truth: NDArray[np.int64]
    gaps_s: NDArray[np.float64]
    offset_s: float


def associate(
    track: Track,
    truth: Track,
    tolerance_s: float = DEFAULT_TOLERANCE_S,
    offset_s: float = 0.0,
) -> Association:
    """Match each pose with the true pose nearest in time; each true pose is used once at most.

    Args:
        track: the trajectory.
        truth: the true one; any order.
        tolerance_s: largest difference of stamps.
        offset_s: seconds to add to the truth's stamps.

    Raises:
        EvaluationError: one of them is empty, or nothing is near enough; the message gives the
            range of both times.
    """
    if not 0.0 <= tolerance_s < 1e6 or not np.isfinite(offset_s):
        raise EvaluationError(
            f"a tolerance of {tolerance_s} s and a clock offset of {offset_s} s cannot be used"
        )
    for name, poses in (("trajectory", track), ("ground truth", truth)):
        if len(poses) == 0:
            raise EvaluationError(f"the {name} has no pose")
    own_ns = np.array(track.stamps_ns, dtype=np.int64)
    truth_ns = np.array(truth.stamps_ns, dtype=np.int64) + round(offset_s * 1e9)
    order = np.argsort(truth_ns, kind="stable")
    after = np.searchsorted(truth_ns[order], own_ns)
    candidates = order[np.clip(np.stack([after - 1, after]), 0, len(truth_ns) - 1)]
    gaps = truth_ns[candidates] - own_ns
    choice = np.abs(gaps).argmin(axis=0)
    columns = np.arange(len(own_ns))
    nearest, gap = candidates[choice, columns], gaps[choice, columns]
    # Nearest first, so that of several poses that want one true pose the nearest gets it.
    closest_first = np.lexsort((columns, np.abs(gap)))
    _, first = np.unique(nearest[closest_first], return_index=True)
    own = np.sort(closest_first[first])
    own = own[np.abs(gap[own]) <= round(tolerance_s * 1e9)]
    if len(own) == 0:
        raise EvaluationError(_no_match(own_ns, truth_ns, float(np.abs(gap).min()), tolerance_s))
    return Association(own, nearest[own], gap[own] * 1e-9, offset_s)


def _no_match(own: NDArray, truth: NDArray, gap_ns: float, tolerance_s: float) -> str:
    spans = " and ".join(
        f"{name} from {times.min() * 1e-9:.3f} s to {times.max() * 1e-9:.3f} s"
        for name, times in (("the trajectory runs", own), ("the ground truth", truth))
    )
    return (
        f"no pose has a true pose within {tolerance_s:g} s: the nearest is {gap_ns * 1e-9:.3f} s "
        f"away; {spans}. Give a clock offset, have it estimated, or allow a larger tolerance"
    )


def first_to_first(track: Track, truth: Track) -> float:
    """Return the clock offset in seconds that makes both begin at once."""
    return (min(track.stamps_ns) - min(truth.stamps_ns)) * 1e-9


def estimate_offset(track: Track, truth: Track, reach_s: float = 5.0) -> float:
    """Return the seconds to add to the truth's stamps so that both paths fit best.

    The error after a Sim(3) alignment, relative to the extent of the true path, is least at the
    right offset; it is searched on a grid and then between its points. The truth is interpolated
    linearly. Offsets that leave less than half of the poses inside the truth are not considered.

    Args:
        track: the trajectory, in any unit.
        truth: the true one.
        reach_s: how far on both sides of zero to search; where the two do not overlap at zero,
            of the offset that makes both begin at once.

    Raises:
        EvaluationError: the motion does not determine the offset, as in straight and even flight.
    """
    track, truth = track.in_order(), truth.in_order()
    if min(len(track), len(truth)) < _MIN_POSES:
        raise EvaluationError(
            f"a clock offset cannot be estimated from {len(track)} poses and {len(truth)} true "
            f"ones: {_MIN_POSES} of each are the least"
        )
    base_ns = track.stamps_ns[0]
    own = (np.array(track.stamps_ns) - base_ns) * 1e-9
    true = (np.array(truth.stamps_ns) - base_ns) * 1e-9
    overlaps = true[0] < own[-1] and own[0] < true[-1]
    middle = 0.0 if overlaps else float(own[0] - true[0])
    positions, true_positions = track.positions, truth.positions

    def misfit(offset: float) -> float:
        inside = (own - offset >= true[0]) & (own - offset <= true[-1])
        if inside.sum() < max(_MIN_POSES, _MIN_OVERLAP * len(own)):
            return np.inf
        at = own[inside] - offset
        moved = np.stack([np.interp(at, true, axis) for axis in true_positions.T], axis=1)
        try:
            scale, rotation, translation = align_sim3(positions[inside], moved)
        except EvaluationError:
            return np.inf
        errors = scale * positions[inside] @ rotation.T + translation - moved
        return float(np.sqrt((errors**2).sum() / ((moved - moved.mean(axis=0)) ** 2).sum()))

    step = reach_s / (_GRID // 2)
    offsets = middle + step * np.arange(-(_GRID // 2), _GRID // 2 + 1)
    misfits = np.array([misfit(offset) for offset in offsets])
    known = np.isfinite(misfits)
    if not known.any():
        raise EvaluationError(
            f"no clock offset within {reach_s:g} s of {middle:.3f} s lets the trajectory "
            f"({own[-1]:.1f} s) and the ground truth ({true[-1] - true[0]:.1f} s) overlap and move"
        )
    best = int(np.argmin(misfits))
    typical = float(np.median(misfits[known]))
    if misfits[best] > _CLEAR * typical or typical < _FITS_ANYWAY:
        raise EvaluationError(
            "the motion does not determine the clock offset: the path fits to "
            f"{misfits[best]:.2%} of its extent at the best one and to {typical:.2%} at a typical "
            "one; give the offset"
        )
    around = (offsets[best] - step, offsets[best] + step)
    found = minimize_scalar(misfit, bounds=around, method="bounded", options={"xatol": 1e-6})
    return float(found.x) if found.fun <= misfits[best] else float(offsets[best])
