"""What a reconstruction leaves beside its messages: trajectories, maps, samples and times."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.cloud import Cloud, VoxelMap, empty_cloud, frame_cloud
from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.trajectory import absolute_trajectory_error, align_sim3
from qvggt_core.geometry import quaternion
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Reconstruction

_SAMPLES_KEPT = 24
_MAX_STAMP_GAP_NS = 10_000_000
_MIN_COMPARED = 3


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


@dataclass(frozen=True)
class Comparison:
    """A trajectory beside a reference at the same stamps, aligned by a similarity.

    Attributes:
        topic: where the reference comes from.
        seconds: (M,) time of the compared poses since the trajectory began.
        reference_in_map: (M, 3) positions of the reference, brought into the map.
        ate: root mean square of the distances, in the reference's unit.
        reference_length: length of the reference's path, in its own unit.
    """

    topic: str
    seconds: NDArray[np.float64]
    reference_in_map: NDArray[np.float64]
    ate: float
    reference_length: float


def compare(topic: str, track: Track, reference: Track) -> Comparison | None:
    """Compare with the poses of a reference, or return None where that is not defined.

    Poses belong together when their stamps differ by at most 10 ms, as in evo.
    """
    own, other = _matches(np.array(track.stamps_ns), np.array(reference.stamps_ns))
    if len(own) < _MIN_COMPARED:
        return None
    estimate, truth = track.matrices[own], reference.matrices[other]
    try:
        error = absolute_trajectory_error(estimate, truth)
        scale, rotation, translation = align_sim3(estimate[:, :3, 3], truth[:, :3, 3])
    except EvaluationError:
        return None
    if scale <= 0.0:
        return None
    return Comparison(
        topic=topic,
        seconds=track.seconds[own],
        reference_in_map=(truth[:, :3, 3] - translation) @ rotation / scale,
        ate=error.rmse,
        reference_length=error.path_length,
    )


def _matches(
    own: NDArray[np.int64], other: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of stamps and of their nearest counterparts, where near enough."""
    order = np.argsort(other, kind="stable")
    after = np.clip(np.searchsorted(other[order], own), 1, len(other) - 1)
    candidates = order[np.stack([after - 1, after])]
    gaps = np.abs(other[candidates] - own)
    nearest = candidates[gaps.argmin(axis=0), np.arange(len(own))]
    near = gaps.min(axis=0) <= _MAX_STAMP_GAP_NS
    return np.nonzero(near)[0], nearest[near]


class Results:
    """Gathers reconstructions; memory is bounded but for one pose per frame.

    Attributes:
        tracks: camera poses per segment.
        seconds: wall time per step of the reconstruction.
    """

    def __init__(self, parameters: Parameters) -> None:
        """Start with nothing."""
        self.tracks: dict[int, Track] = {}
        self.seconds: Counter[str] = Counter()
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


def write_tum(path: Path, track: Track) -> None:
    """Write a trajectory in TUM's format: seconds x y z qx qy qz qw, stamps to the nanosecond."""
    rotations = quaternion(track.matrices[:, :3, :3]) if len(track) else np.empty((0, 4))
    lines = []
    for stamp, position, rotation in zip(track.stamps_ns, track.positions, rotations, strict=True):
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        numbers = " ".join(f"{value:.9f}" for value in (*position, *rotation))
        lines.append(f"{seconds}.{nanoseconds:09d} {numbers}\n")
    path.write_text("".join(lines), encoding="ascii")


def segment_file(name: str, segment: int) -> str:
    """Return the name of a file of one segment: `points.ply`, `points_1.ply`, ..."""
    stem, _, suffix = name.rpartition(".")
    return name if segment == 0 else f"{stem}_{segment}.{suffix}"
