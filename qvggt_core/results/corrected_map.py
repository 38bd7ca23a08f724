"""Trajectories and maps that follow every correction by loops, whenever it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud, VoxelMap
from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import rigid, scale_of
from qvggt_core.stream.corrected_path import corrections_at
from qvggt_core.stream.frame import KeyframeCorrections, Reconstruction

# Frames whose points move together when the map is corrected.
_FRAMES_OF_A_PART = 5


@dataclass
class _Part:
    """Points of a few frames, where odometry had them."""

    stamp_ns: int
    segment: int
    points: VoxelMap
    frames: int = 0


@dataclass
class CorrectedMap:
    """What was reconstructed, where odometry had it, and what loops do to that.

    Attributes:
        map_voxel: voxel of maps, as a fraction of the median depth.
    """

    map_voxel: float
    _odometry: Track = field(default_factory=Track)
    _segments: list[int] = field(default_factory=list)
    _parts: list[_Part] = field(default_factory=list)
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
            parts = self._parts
            if not parts or parts[-1].segment != segment or parts[-1].frames >= _FRAMES_OF_A_PART:
                stamp = geometry.view.stamp_ns
                parts.append(_Part(stamp, segment, VoxelMap(self.map_voxel)))
            parts[-1].points.add_frame(cloud, pose)
            parts[-1].frames += 1

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
        stamps = np.array([part.stamp_ns for part in self._parts], np.int64)
        segments = np.array([part.segment for part in self._parts], np.int64)
        worlds, corrections = corrections_at(stamps, segments, self._corrections)
        result = VoxelMap(self.map_voxel)
        for part, world, correction in zip(self._parts, worlds, corrections, strict=True):
            if world == segment and part.points.voxel > 0.0:
                depth = part.points.voxel / self.map_voxel * float(scale_of(correction))
                result.add(part.points.cloud().moved(correction), depth)
        return result
