"""What a reconstruction leaves beside its messages: trajectories, maps, samples and times."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.geometry.cloud import Cloud, VoxelMap, empty_cloud, frame_cloud
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Reconstruction

_SAMPLES_KEPT = 24
_MAX_SAMPLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Samples:
    """Some frames as the network saw them, with what it said, and the truth where it is known.

    Attributes:
        stamps_ns: (S,) capture times.
        images: (S, H, W, 3) uint8, RGB.
        depths: (S, H, W) float32 in the map's unit, NaN where invalid.
        confidences: (S, H, W) float32.
        intrinsics: (S, 3, 3) float64 in pixels.
        truths: (S, H, W) float32 in metres, NaN where unknown, or None.
    """

    stamps_ns: NDArray[np.int64]
    images: NDArray[np.uint8]
    depths: NDArray[np.float32]
    confidences: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    truths: NDArray[np.float32] | None = None

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
        )

    def write(self, path: Path) -> None:
        """Write to an .npz file."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        np.savez_compressed(path, **arrays)

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


class Results:
    """Gathers reconstructions; memory is bounded but for one pose per frame.

    Attributes:
        tracks: camera poses per segment.
        seconds: wall time per step of the reconstruction.
        valid_depth: share of valid pixels, summed over the frames.
    """

    def __init__(self, parameters: Parameters) -> None:
        """Start with nothing."""
        self.tracks: dict[int, Track] = {}
        self.seconds: Counter[str] = Counter()
        self.valid_depth = 0.0
        self._parameters = parameters
        self._maps: dict[int, VoxelMap] = {}
        self._samples: list[tuple[int, FrameGeometry]] = []
        self._sample_stride = 1
        self._seen = 0

    def add(self, result: Reconstruction) -> None:
        """Take what one run of the network gave."""
        self.seconds.update(result.seconds)
        if not result.frames:
            return
        track = self.tracks.setdefault(result.segment, Track())
        voxels = self._maps.setdefault(result.segment, VoxelMap(self._parameters.map_voxel))
        for geometry in result.frames:
            track.add(geometry.view.stamp_ns, geometry.map_from_camera)
            self.valid_depth += float(np.isfinite(geometry.depth).mean())
            self._sample(result.segment, geometry)
            cloud = frame_cloud(geometry, self._parameters.max_depth_edge)
            if len(cloud):
                median_depth = float(np.median(cloud.positions[:, 2]))
                voxels.add(cloud.moved(geometry.map_from_camera), median_depth)

    @property
    def main_segment(self) -> int:
        """The segment with the most poses."""
        return max(self.tracks, key=lambda segment: len(self.tracks[segment]))

    def cloud(self, segment: int) -> Cloud:
        """Return the map of a segment."""
        return self._maps[segment].cloud() if segment in self._maps else empty_cloud()

    def samples(self, count: int) -> list[FrameGeometry]:
        """Return up to `count` frames of the main segment (or any), spread evenly over it."""
        frames = [frame for segment, frame in self._samples if segment == self.main_segment]
        frames = frames or [frame for _, frame in self._samples]
        chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
        return [frames[index] for index in chosen]

    def _sample(self, segment: int, geometry: FrameGeometry) -> None:
        # How long the recording is shows only at its end: keep every n-th frame, and every
        # second one of those whenever there are too many.
        if self._seen % self._sample_stride == 0:
            self._samples.append((segment, geometry))
        self._seen += 1
        if len(self._samples) > _SAMPLES_KEPT:
            self._samples = self._samples[::2]
            self._sample_stride *= 2


def segment_file(name: str, segment: int) -> str:
    """Return the name of a file of one segment: `points.ply`, `points_1.ply`, ..."""
    stem, _, suffix = name.rpartition(".")
    return name if segment == 0 else f"{stem}_{segment}.{suffix}"


def read_tracks(directory: Path) -> dict[int, Track]:
    """Return the camera's poses of each segment of a result.

    Raises:
        RecordingError: there is no trajectory.
        EvaluationError: one cannot be read.
    """
    tracks = {}
    for path in directory.glob("trajectory*.tum"):
        if (name := re.fullmatch(r"trajectory(?:_(\d+))?\.tum", path.name)) is not None:
            tracks[int(name[1] or 0)] = read_trajectory(path)
    if not tracks:
        raise RecordingError(
            f"{directory} is no result of a reconstruction: it has no trajectory.tum"
        )
    return dict(sorted(tracks.items()))
