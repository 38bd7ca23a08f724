"""True poses and true depth, as a result is compared with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvggt_core.evaluate.jumps import standstill, without_jumps
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import read_trajectory


@dataclass(frozen=True)
class GroundTruth:
    """True poses.

    Attributes:
        source: topic, `/tf:PARENT.CHILD`, or name of the file.
        kind: what that is.
        track: the poses, in order.
        frame: name of the frame that moves; empty if it is not named.
        moved_to_camera: whether a fixed transform was applied, so that they are the camera's.
        notes: sentences about what was assumed or left out.
        sample: returns the poses at some stamps, where they can be had between those of the track.
    """

    source: str
    kind: Literal["topic", "tf", "file"]
    track: Track
    frame: str = ""
    moved_to_camera: bool = False
    notes: tuple[str, ...] = ()
    sample: Callable[[Sequence[int]], Track] | None = None

    @classmethod
    def read(cls, path: Path, times: Path | None = None) -> GroundTruth:
        """Read the poses of a TUM, EuRoC or KITTI file.

        Raises:
            EvaluationError: the file cannot be read.
        """
        return cls(path.name, "file", read_trajectory(path, times))

    def steady(self) -> GroundTruth:
        """Return the truth without the poses that nothing could have moved to.

        Raises:
            EvaluationError: there are so many that no one knows which are the true ones.
        """
        found, sample = without_jumps(self.track), self.sample
        notes = [note for note in (found.note, standstill(found.track)) if note]
        return replace(
            self,
            track=found.track,
            notes=(*self.notes, *notes),
            sample=None if sample is None else lambda stamps: sample(found.holds(stamps)),
        )

    def at(self, stamps_ns: Sequence[int]) -> Track:
        """Return the poses at some stamps if they can be had there, else all there are."""
        return self.track if self.sample is None else self.sample(stamps_ns)


@dataclass(frozen=True)
class DepthPair:
    """A depth image and the true one in the same pixels.

    Attributes:
        stamp_ns: capture time of the frame.
        depth: (H, W) float32 in the map's unit, NaN where invalid.
        truth: (H, W) float32 in metres, NaN where unknown.
    """

    stamp_ns: int
    depth: NDArray[np.float32]
    truth: NDArray[np.float32]


@dataclass(frozen=True)
class DepthTruth:
    """True depth: the name of its source, and pairs in the order of time."""

    source: str
    pairs: Iterable[DepthPair]
