"""Trajectories and maps that follow every correction by loops, whenever it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud, VoxelMap
from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import rigid, scale_of
from qvggt_core.stream.corrected_path import KeyframeCorrections, corrections_at
from qvggt_core.stream.frame import Reconstruction

# Frames whose points move together when the map is corrected.
_FRAMES_OF_A_PART = 5


@dataclass(frozen=True)
class _Part:
    """Points of a few frames, where odometry had them, one per voxel."""

    stamp_ns: int
    segment: int
    points: Cloud
    voxel: float

    def coarser(self) -> _Part:
        """Return it with voxels twice as large."""
        return _part(self.stamp_ns, self.segment, [self.points], 2.0 * self.voxel)


def _part(stamp_ns: int, segment: int, clouds: Sequence[Cloud], voxel: float) -> _Part:
    joined = VoxelMap(1.0)
    for cloud in clouds:
        joined.add(cloud, voxel)
    return _Part(stamp_ns, segment, joined.cloud(), voxel)


@dataclass
class CorrectedMap:
    """What was reconstructed, where odometry had it, and what loops do to that.

    Memory is bounded but for one pose per frame: points beyond `max_points` double the voxels,
    the smallest first.

    Attributes:
        map_voxel: voxel of maps, as a fraction of the median depth.
        max_points: points that are kept.
    """

    map_voxel: float
    max_points: int = 6_000_000
    _odometry: Track = field(default_factory=Track)
    _segments: list[int] = field(default_factory=list)
    _parts: list[_Part] = field(default_factory=list)
    _newest: list[Cloud] = field(default_factory=list)
    _newest_segment: int = 0
    _newest_stamp: int = 0
    _voxel: float = 0.0
    _corrections: KeyframeCorrections | None = None

    def add(self, result: Reconstruction, clouds: Sequence[Cloud]) -> None:
        """Take what one run of the network gave, and its frames' clouds in their cameras."""
        self._corrections = result.corrections or self._corrections
        odometry_from_map = inverse(result.map_from_odometry)
        segment = result.odometry_segment
        segment = result.segment if segment is None else segment
        for geometry, cloud in zip(result.frames, clouds, strict=True):
            pose = odometry_from_map @ geometry.map_from_camera
            self._odometry.add(geometry.view.stamp_ns, pose)
            self._segments.append(segment)
            if self._newest_segment != segment or len(self._newest) >= _FRAMES_OF_A_PART:
                self._end_part()
            if not len(cloud):
                continue
            if not self._newest:
                self._newest_segment, self._newest_stamp = segment, geometry.view.stamp_ns
                self._voxel = self.map_voxel * float(np.median(cloud.positions[:, 2]))
            self._newest.append(cloud.moved(pose))

    def _end_part(self) -> None:
        """Join the newest frames' points."""
        if self._newest:
            part = _part(self._newest_stamp, self._newest_segment, self._newest, self._voxel)
            self._parts.append(part)
        self._newest = []
        while sum(len(part.points) for part in self._parts) > self.max_points:
            finest = 1.5 * min(part.voxel for part in self._parts)
            self._parts = [part.coarser() if part.voxel < finest else part for part in self._parts]

    @property
    def tracks(self) -> dict[int, Track]:
        """Camera poses per segment, segments that loops joined as one."""
        stamps = np.array(self._odometry.stamps_ns, np.int64)
        worlds, corrections = corrections_at(stamps, np.array(self._segments), self._corrections)
        poses = rigid(corrections @ self._odometry.matrices)
        tracks: dict[int, Track] = {}
        for stamp, world, pose in zip(self._odometry.stamps_ns, worlds, poses, strict=True):
            tracks.setdefault(int(world), Track()).add(stamp, pose)
        return dict(sorted(tracks.items()))

    def map(self, segment: int) -> VoxelMap:
        """Return the map of a segment, and of those that loops joined to it."""
        self._end_part()
        stamps = np.array([part.stamp_ns for part in self._parts], np.int64)
        segments = np.array([part.segment for part in self._parts], np.int64)
        worlds, corrections = corrections_at(stamps, segments, self._corrections)
        result = VoxelMap(self.map_voxel)
        for part, world, correction in zip(self._parts, worlds, corrections, strict=True):
            if world == segment:
                depth = part.voxel / self.map_voxel * float(scale_of(correction))
                result.add(part.points.moved(correction), depth)
        return result
