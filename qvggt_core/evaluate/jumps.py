"""True poses that nothing could have moved to: left out if few, no score if many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.track import Track

# Faster than anything that films its surroundings; where a path is fast itself, this many times
# its usual speed.
_FASTEST_M_S = 50.0
_TIMES_USUAL = 20.0
# A tracker that loses its target for a moment; more, and no one knows which poses are the true.
_MOST_LEFT_OUT = 0.1
# A path that goes on is twice as far after two steps, one that trembles as far as after one.
_GOES_BACK = 0.3
_LEAST_STEP_M = 1e-3
_LEAST_POSES = 4
_LEAST_STILL = 5


@dataclass(frozen=True)
class Steady:
    """A path without the poses that lie where nothing gets to in the time.

    Attributes:
        track: the others.
        gaps_ns: (K, 2) stamps before and after each run of poses that were left out.
        note: a sentence about them; empty if there are none.
    """

    track: Track
    gaps_ns: NDArray[np.int64]
    note: str = ""

    def holds(self, stamps_ns: Sequence[int]) -> list[int]:
        """Return the stamps that lie in no gap."""
        return [
            stamp
            for stamp in stamps_ns
            if not any(first < stamp < last for first, last in self.gaps_ns)
        ]


def without_jumps(track: Track) -> Steady:
    """Leave out the poses of a true path that it jumps to and back from.

    Args:
        track: in the order of time, in metres.

    Raises:
        EvaluationError: more than a tenth would be left out, as where a path jumps and stays, or
            every second pose goes back, as where two things are tracked under one name.
    """
    if len(track) < _LEAST_POSES:
        return Steady(track, np.empty((0, 2), np.int64))
    positions, seconds = track.positions, track.seconds
    _must_go_on(positions)
    usual_s = float(np.median(np.diff(seconds)))
    limit = max(_FASTEST_M_S, _TIMES_USUAL * float(np.median(_speeds(positions, seconds, usual_s))))
    kept = _reachable(positions, seconds, usual_s, limit)
    left_out = np.setdiff1d(np.arange(len(track)), kept)
    if len(left_out) == 0:
        return Steady(track, np.empty((0, 2), np.int64))
    far = np.linalg.norm(positions[left_out] - np.median(positions[kept], axis=0), axis=1)
    worst = left_out[int(far.argmax())]
    what = (
        f"{len(left_out)} of {len(track)} true poses lie where nothing gets to in the time (more "
        f"than {limit:.3g} m/s), up to {far.max():.3g} m away, there at "
        f"{track.stamps_ns[worst] * 1e-9:.3f} s"
    )
    if len(left_out) > max(1, _MOST_LEFT_OUT * len(track)):
        raise EvaluationError(
            f"{what}: which of them are the true ones is not known, so there is no score"
        )
    return Steady(track.at(kept), _gaps(track, left_out), f"{what}: they are left out")


def standstill(track: Track) -> str:
    """Return a sentence if a path that moves has the very same numbers for long, else nothing.

    So it is where a tracker that lost its target goes on giving the last pose.

    Args:
        track: in the order of time.
    """
    if len(track) < _LEAST_POSES:
        return ""
    same = (np.diff(track.matrices.reshape(len(track), 16), axis=0) == 0.0).all(axis=1)
    runs = np.split(np.arange(len(same)), np.flatnonzero(np.diff(same.astype(int))) + 1)
    still = [run for run in runs if same[run[0]] and len(run) >= _LEAST_STILL]
    if same.all() or not still:
        return ""
    longest = max(still, key=len)
    first, last = (track.stamps_ns[i] * 1e-9 for i in (longest[0], longest[-1] + 1))
    return (
        f"{len(longest) + 1} true poses from {first:.3f} s to {last:.3f} s are the same to the "
        "last digit: unless it stood still, the tracker had lost it, and errors there mean nothing"
    )


def _must_go_on(positions: NDArray[np.float64]) -> None:
    """Raise EvaluationError if every second position goes back to the one before the last."""
    one = float(np.median(np.linalg.norm(positions[1:] - positions[:-1], axis=1)))
    two = float(np.median(np.linalg.norm(positions[2:] - positions[:-2], axis=1)))
    if one > _LEAST_STEP_M and two < _GOES_BACK * one:
        raise EvaluationError(
            f"the true path goes forth and back with every pose (by {one:.3g} m, and after two by "
            f"{two:.3g} m): two things are tracked under one name, so there is no score"
        )


def _speeds(
    positions: NDArray[np.float64], seconds: NDArray[np.float64], usual_s: float
) -> NDArray[np.float64]:
    """Return the speed (N - 1,) of each step; stamps that come in bursts make none faster."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return np.asarray(steps / np.maximum(np.diff(seconds), max(usual_s, 1e-9)))


def _reachable(
    positions: NDArray[np.float64], seconds: NDArray[np.float64], usual_s: float, limit: float
) -> NDArray[np.int64]:
    """Return the longest run without a jump, and what can be reached from its ends."""
    jumps = np.flatnonzero(_speeds(positions, seconds, usual_s) > limit) + 1
    runs = np.split(np.arange(len(positions)), jumps)
    base = max(range(len(runs)), key=lambda index: len(runs[index]))
    kept = runs[base]

    def reaches(near: int, other: int) -> bool:
        apart = float(np.linalg.norm(positions[other] - positions[near]))
        return apart <= limit * max(abs(seconds[other] - seconds[near]), usual_s)

    for run in runs[base + 1 :]:
        if reaches(kept[-1], run[0]):
            kept = np.concatenate([kept, run])
    for run in reversed(runs[:base]):
        if reaches(kept[0], run[-1]):
            kept = np.concatenate([run, kept])
    return kept


def _gaps(track: Track, left_out: NDArray[np.int64]) -> NDArray[np.int64]:
    stamps = np.array(track.stamps_ns, dtype=np.int64)
    bounds = np.concatenate([[stamps[0] - 1], stamps, [stamps[-1] + 1]])
    runs = np.split(left_out, np.flatnonzero(np.diff(left_out) > 1) + 1)
    return np.array([(bounds[run[0]], bounds[run[-1] + 2]) for run in runs])
