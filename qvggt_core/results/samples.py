"""Sample frames of a reconstruction, as arrays and as an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.stream.frame import FrameGeometry
from qvggt_core.util.files import atomic_path

_MAX_SAMPLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Samples:
    """Some frames as the network saw them, its predictions, and the truth where it is known.

    Attributes:
        stamps_ns: (S,) capture times.
        images: (S, H, W, 3) uint8, RGB.
        depths: (S, H, W) float32 in the map's unit, NaN where invalid.
        confidences: (S, H, W) float32.
        intrinsics: (S, 3, 3) float64 in pixels.
        truths: (S, H, W) float32 in metres, NaN where unknown, or None.
        followed: (P, 5) float32: points that were followed, each with the index of its sample,
            column and row where it was seen, and column and row where map and pose put it.
    """

    stamps_ns: NDArray[np.int64]
    images: NDArray[np.uint8]
    depths: NDArray[np.float32]
    confidences: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    truths: NDArray[np.float32] | None = None
    followed: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.stamps_ns)

    @classmethod
    def of(cls, frames: Sequence[FrameGeometry]) -> Samples:
        """Return the samples of some frames, all of the size of the first."""
        frames = [frame for frame in frames if frame.depth.shape == frames[0].depth.shape]
        return cls(
            np.array([frame.view.stamp_ns for frame in frames], dtype=np.int64),
            np.stack([frame.view.image for frame in frames]),
            np.stack([np.asarray(frame.depth, dtype=np.float32) for frame in frames]),
            np.stack([np.asarray(frame.confidence, dtype=np.float32) for frame in frames]),
            np.stack([np.asarray(frame.intrinsics, dtype=np.float64) for frame in frames]),
            followed=_followed(frames),
        )

    def points(self, index: int) -> NDArray[np.float32]:
        """Return the followed points (P, 4) of a sample: where seen, and where expected."""
        if self.followed is None:
            return np.empty((0, 4), np.float32)
        return self.followed[self.followed[:, 0] == index, 1:]

    def write(self, path: Path) -> None:
        """Write to an .npz file."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, path: Path) -> Samples | None:
        """Read from an .npz file; None if there is none.

        Raises:
            RecordingError: the file is not what `write` made.
        """
        if not path.exists():
            return None
        try:
            with ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _MAX_SAMPLE_BYTES:
                raise ValueError(f"{size} bytes are too many")
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, TypeError, KeyError, BadZipFile) as error:
            raise RecordingError(f"cannot read the sample frames {path}: {error}") from error


def _followed(frames: Sequence[FrameGeometry]) -> NDArray[np.float32] | None:
    rows = [
        np.column_stack(
            [
                np.full(len(frame.followed.pixels), index, np.float32),
                frame.followed.pixels,
                frame.followed.expected,
            ]
        )
        for index, frame in enumerate(frames)
        if frame.followed is not None
    ]
    return np.concatenate(rows) if rows else None
