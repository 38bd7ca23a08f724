"""Poses over time: of an estimate or of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DEFAULT_TOLERANCE_S = 0.01
"""Largest difference between stamps that belong together, in seconds, as evo has it."""


@dataclass
class Track:
    """Poses over time, in one world.

    Attributes:
        stamps_ns: capture times in integer nanoseconds.
        poses: (4, 4) float64 each, the world from the thing that moves.
    """

    stamps_ns: list[int] = field(default_factory=list)
    poses: list[NDArray[np.float64]] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of poses."""
        return len(self.poses)

    def add(self, stamp_ns: int, pose: NDArray[np.float64]) -> None:
        """Append a pose."""
        self.stamps_ns.append(stamp_ns)
        self.poses.append(pose)

    def at(self, indices: Sequence[int] | NDArray[np.int64]) -> Track:
        """Return some of the poses, in the order of the indices."""
        return Track([self.stamps_ns[i] for i in indices], [self.poses[i] for i in indices])

    def in_order(self) -> Track:
        """Return the poses in the order of time, the first of several at one time."""
        _, first = np.unique(np.array(self.stamps_ns, dtype=np.int64), return_index=True)
        return self.at(first)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(N,) seconds since the first pose."""
        return np.array([stamp - self.stamps_ns[0] for stamp in self.stamps_ns]) * 1e-9

    @property
    def matrices(self) -> NDArray[np.float64]:
        """(N, 4, 4) poses."""
        return np.array(self.poses).reshape(-1, 4, 4)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(N, 3) positions."""
        return self.matrices[:, :3, 3]

    @property
    def length(self) -> float:
        """Length of the path in the world's unit."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())
