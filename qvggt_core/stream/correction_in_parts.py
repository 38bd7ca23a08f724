"""The graph of keyframes solved in parts, a bounded one with each keyframe, while more come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.similarities import scale_of, similarity
from qvggt_core.stream.keyframe_chain import Chains, Correction, Loop, correction
from qvggt_core.stream.pose_graph import OUTLIER_SQUARE, Parts

MOST_LOOPS = 96
"""In one graph; a linear system of so many takes a keyframe's time."""

WORK_OF_A_KEYFRAME = 500.0
"""Edges that linear systems go through, with what each system costs beside them."""

# A linear system takes as long as so many more edges.
_OVERHEAD = 60


@dataclass(frozen=True)
class Corrected:
    """Where loops put the N keyframes that there were as the work began, and that are still there.

    Attributes:
        poses: (N, 4, 4) map_from_camera similarities, see `Correction`. The newest one's unit is
            its world's: lengths are right where the camera is, and odometry goes on as it was.
        worlds: (N,) the segments whose worlds they are in.
        contradicted: first and second keyframe of the loops that the others contradict.
    """

    poses: NDArray[np.float64]
    worlds: NDArray[np.int64]
    contradicted: tuple[tuple[int, int], ...]


class CorrectionInParts:
    """A correction in the making.

    Attributes:
        work: done so far, see `WORK_OF_A_KEYFRAME`.
    """

    def __init__(self, chains: Chains, loops: Sequence[Loop], scale_sigma: float) -> None:
        """Begin; what is added to the chains or left out of them from now on changes nothing."""
        self.work = 0
        self._numbers = np.arange(len(chains))
        self._ends = np.array([(loop.first, loop.second) for loop in loops])
        self._parts = _without_contradictions(replace(chains), list(loops), scale_sigma)

    @property
    def newest(self) -> tuple[int, int]:
        """First and second keyframe of the newest loop."""
        return _pair(self._ends[-1])

    def advance(self, limit: float = WORK_OF_A_KEYFRAME) -> Corrected | None:
        """Do one part, and more as long as they keep within a limit.

        Returns:
            The correction if that was the last part.

        Raises:
            LinAlgError, RuntimeError: the graph has no solution.
        """
        begin, last = self.work, 0
        while last == 0 or self.work - begin + last <= limit:
            try:
                last = _OVERHEAD + next(self._parts)
            except StopIteration as stop:
                return self._of_those_left(*stop.value)
            self.work += last
        return None

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Follow the keyframes' numbers where all but some are left out; `kept` has the former."""
        self._numbers = self._numbers[kept[kept < len(self._numbers)]]
        number = np.searchsorted(kept, self._ends)
        is_left = np.append(kept, -1)[number] == self._ends
        self._ends = np.where(is_left, number, -1)

    def _of_those_left(self, found: Correction, contradicted: NDArray[np.bool_]) -> Corrected:
        poses, worlds = found.poses[self._numbers], found.worlds[self._numbers]
        own = worlds == worlds[-1]
        centre = poses[np.flatnonzero(own)[0], :3, 3]
        factor = 1.0 / float(scale_of(poses[-1]))
        poses[own] = similarity(factor, np.eye(3), (1.0 - factor) * centre) @ poses[own]
        ends = self._ends[contradicted]
        return Corrected(poses, worlds, tuple(map(_pair, ends)))


def _pair(ends: NDArray[np.int64]) -> tuple[int, int]:
    return int(ends[0]), int(ends[1])


def _without_contradictions(
    chains: Chains, loops: list[Loop], scale_sigma: float
) -> Parts[tuple[Correction, NDArray[np.bool_]]]:
    """Solve; where loops contradict the others, solve again without them."""
    found = yield from correction(chains, loops, scale_sigma)
    agrees = found.square < OUTLIER_SQUARE
    if not agrees.all():
        left = [loop for loop, good in zip(loops, agrees, strict=True) if good]
        found = yield from correction(chains, left, scale_sigma)
    return found, ~agrees
