"""Poses of all frames as the last correction has them, from those of the keyframes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import inverse_similarity, motion_of, moved_by


@dataclass(frozen=True)
class KeyframeCorrections:
    """What loops do to the keyframes: where the map has them, given where odometry had them.

    Attributes:
        stamps_ns: (N,) of the keyframes, in the order in which they came.
        segments: (N,) their segments.
        worlds: (N,) the segments whose worlds they are in: another one where a loop joins two.
        map_from_odometry: (N, 4, 4) similarities [s R, t; 0, 1].
    """

    stamps_ns: NDArray[np.int64]
    segments: NDArray[np.int64]
    worlds: NDArray[np.int64]
    map_from_odometry: NDArray[np.float64]


def corrections_at(
    stamps_ns: NDArray[np.int64],
    segments: NDArray[np.int64],
    keyframes: KeyframeCorrections | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the worlds (N,) and the corrections (N, 4, 4), map from odometry, of frames.

    Between two keyframes of a segment a correction goes evenly from one to the other.

    Args:
        stamps_ns: (N,) of frames.
        segments: (N,) their segments, before any loop joined them.
        keyframes: what loops do to keyframes; frames of segments without any are left alone.
    """
    corrections = np.tile(np.eye(4), (len(stamps_ns), 1, 1))
    if keyframes is None:
        return segments.copy(), corrections
    count = len(keyframes.stamps_ns)
    last = np.searchsorted(keyframes.stamps_ns, stamps_ns, side="right").clip(1) - 1
    following = np.minimum(last + 1, count - 1)
    goes_on = keyframes.segments[following] == keyframes.segments[last]
    following = np.where(goes_on, following, last)
    gap = keyframes.stamps_ns[following] - keyframes.stamps_ns[last]
    share = ((stamps_ns - keyframes.stamps_ns[last]) / np.maximum(gap, 1)).clip(0.0, 1.0)
    here = keyframes.map_from_odometry[last]
    step = motion_of(inverse_similarity(here) @ keyframes.map_from_odometry[following])
    known = keyframes.segments[last] == segments
    corrections[known] = (here @ moved_by(share[:, None] * step))[known]
    return np.where(known, keyframes.worlds[last], segments), corrections


def bridged(
    stamps: NDArray[np.int64],
    worlds: NDArray[np.int64],
    poses: NDArray[np.float64],
    is_lost: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return poses (N, 4, 4), those of lost frames evenly between the known ones on both sides.

    Args:
        stamps: (N,) of frames, nanoseconds, increasing.
        worlds: (N,) that their poses are in; nothing leads from one to another.
        poses: (N, 4, 4) rigid; those of lost frames are the last that were known.
        is_lost: (N,) in which frames the camera was lost.
    """
    known = np.flatnonzero(~is_lost)
    after = np.searchsorted(known, np.flatnonzero(is_lost))
    inside = (after > 0) & (after < len(known))
    lost, after = np.flatnonzero(is_lost)[inside], after[inside]
    last, following = known[after - 1], known[after]
    same = (worlds[last] == worlds[lost]) & (worlds[following] == worlds[lost])
    lost, last, following = lost[same], last[same], following[same]
    share = (stamps[lost] - stamps[last]) / (stamps[following] - stamps[last])
    step = motion_of(inverse(poses[last]) @ poses[following])
    result = poses.copy()
    result[lost] = poses[last] @ moved_by(share[:, None] * step)
    return result
