"""Points of a map that loops may move: where odometry had them, in parts that move as one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.cloud import Cloud, VoxelMap
from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.geometry.similarities import scale_of
from qvggt_core.stream.corrected_path import KeyframeCorrections, corrections_at

# A part ends where the camera has moved by a share of the depth, or radians, as far as keyframes of
# loops are apart: these may move away from each other.
_SHIFT, _TURN = 0.05, float(np.radians(5.0))
# What is left after points that newer ones cover are gone, as a share of the bound, at most.
_ENOUGH = 0.75
_CELL_BITS = 21


@dataclass(frozen=True)
class _Part:
    """Points of a few frames, where odometry had them, one per voxel."""

    stamp_ns: int
    segment: int
    points: Cloud
    voxel: float

    def coarser(self) -> _Part:
        """Return it with voxels twice as large."""
        joined = VoxelMap(1.0)
        joined.add(self.points, 2.0 * self.voxel)
        return replace(self, points=joined.cloud(), voxel=2.0 * self.voxel)


@dataclass
class _Newest:
    """A part that frames are still added to, and where its first camera was."""

    stamp_ns: int
    segment: int
    voxel: float
    depth: float
    odometry_from_camera: NDArray[np.float64]
    points: VoxelMap

    def ends_before(self, segment: int, pose: NDArray[np.float64]) -> bool:
        """Return whether a frame belongs to another part."""
        between = inverse(self.odometry_from_camera) @ pose
        has_moved = float(np.linalg.norm(between[:3, 3])) > _SHIFT * self.depth
        has_moved = has_moved or bool(rotation_angle(between[:3, :3]) > _TURN)
        return segment != self.segment or has_moved


class MovablePoints:
    """Points where odometry had them, and where loops put them.

    Memory is bounded: beyond `max_points`, older points that newer ones cover are left out, and if
    these are not enough, voxels double, the smallest first.
    """

    def __init__(self, map_voxel: float, max_points: int) -> None:
        """Start without points.

        Args:
            map_voxel: voxel of maps, as a fraction of the median depth.
            max_points: points that are kept.
        """
        self.map_voxel, self.max_points = map_voxel, max_points
        self._parts: list[_Part] = []
        self._newest: _Newest | None = None
        self._corrections: KeyframeCorrections | None = None

    def add(
        self, stamp_ns: int, segment: int, cloud: Cloud, odometry_from_camera: NDArray[np.float64]
    ) -> None:
        """Take a frame.

        Args:
            stamp_ns: its capture time.
            segment: its number, before any loop joined it to another.
            cloud: points in the camera's frame.
            odometry_from_camera: (4, 4), without loops.
        """
        pose = odometry_from_camera
        if self._newest is not None and self._newest.ends_before(segment, pose):
            self._end_part()
        if not len(cloud):
            return
        if self._newest is None:
            depth = float(np.median(cloud.positions[:, 2]))
            voxel = self.map_voxel * depth
            self._newest = _Newest(stamp_ns, segment, voxel, depth, pose.copy(), VoxelMap(1.0))
        self._newest.points.add(cloud.moved(pose), self._newest.voxel)

    def correct(self, corrections: KeyframeCorrections) -> None:
        """Take what loops do to the keyframes."""
        self._corrections = corrections

    def forget(self, segment: int) -> None:
        """Forget a segment's points: its odometry has got another unit, or other axes."""
        self._end_part()
        self._parts = [part for part in self._parts if part.segment != segment]
        self._corrections = None

    def map(self, segment: int) -> VoxelMap:
        """Return the map of a segment, and of those that loops joined to it."""
        self._end_part()
        worlds, corrections = self._placed()
        result = VoxelMap(self.map_voxel)
        for part, world, correction in zip(self._parts, worlds, corrections, strict=True):
            if world == segment:
                depth = part.voxel / self.map_voxel * float(scale_of(correction))
                result.add(part.points.moved(correction), depth)
        return result

    def _placed(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        stamps = np.array([part.stamp_ns for part in self._parts], np.int64)
        segments = np.array([part.segment for part in self._parts], np.int64)
        return corrections_at(stamps, segments, self._corrections)

    def _end_part(self) -> None:
        """Let a new part begin with the next frame, and keep the bound."""
        newest, self._newest = self._newest, None
        if newest is None:
            return
        cloud = newest.points.cloud()
        self._parts.append(_Part(newest.stamp_ns, newest.segment, cloud, newest.voxel))
        if self._count() <= self.max_points:
            return
        self._leave_out_covered()
        while self._count() > _ENOUGH * self.max_points:
            finest = 1.5 * min(part.voxel for part in self._parts)
            self._parts = [part.coarser() if part.voxel < finest else part for part in self._parts]

    def _count(self) -> int:
        return sum(len(part.points) for part in self._parts)

    def _leave_out_covered(self) -> None:
        """Leave out points in whose voxel of the map there is one that came later."""
        worlds, corrections = self._placed()
        voxel = float(np.median([part.voxel for part in self._parts]))
        for world in np.unique(worlds):
            own = np.flatnonzero(worlds == world)[::-1]
            moved = [self._parts[i].points.moved(corrections[i]).positions for i in own]
            _, first = np.unique(_cells(np.concatenate(moved), voxel), return_index=True)
            ends = np.cumsum([len(each) for each in moved])
            part_of = np.searchsorted(ends, first, side="right")
            for place, number in enumerate(own):
                chosen = np.sort(first[part_of == place]) - (ends[place] - len(moved[place]))
                part = self._parts[number]
                self._parts[number] = replace(part, points=_chosen(part.points, chosen))
        self._parts = [part for part in self._parts if len(part.points)]


def _cells(positions: NDArray[np.float32], voxel: float) -> NDArray[np.int64]:
    """Return a number (N,) for each point's voxel."""
    half = 1 << (_CELL_BITS - 1)
    cells = np.clip(np.floor(positions / voxel), -half, half - 1).astype(np.int64) + half
    return (cells[:, 0] << (2 * _CELL_BITS)) | (cells[:, 1] << _CELL_BITS) | cells[:, 2]


def _chosen(cloud: Cloud, index: NDArray[np.int64]) -> Cloud:
    return Cloud(cloud.positions[index], cloud.colors[index], cloud.confidence[index])
