"""Trajectories and maps that follow every correction by loops, whenever it comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud, VoxelMap
from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import rigid
from qvggt_core.results.movable_points import MovablePoints
from qvggt_core.stream.corrected_path import KeyframeCorrections, bridged, corrections_at
from qvggt_core.stream.frame import Reconstruction

_MAX_POINTS = 6_000_000


class CorrectedMap:
    """What was reconstructed, where odometry had it, and what loops do to that.

    Memory is bounded but for one pose per frame; see `MovablePoints`.
    """

    def __init__(self, map_voxel: float, max_points: int = _MAX_POINTS) -> None:
        """Start with nothing; see `MovablePoints`."""
        self._odometry = Track()
        self._segments: list[int] = []
        self._lost: list[bool] = []
        self._points = MovablePoints(map_voxel, max_points)
        self._corrections: KeyframeCorrections | None = None

    def add(self, result: Reconstruction, clouds: Sequence[Cloud]) -> None:
        """Take what one run of the network gave, and its frames' clouds in their cameras."""
        if result.corrections is not None:
            self._corrections = result.corrections
            self._points.correct(result.corrections)
        odometry_from_map = inverse(result.map_from_odometry)
        segment = result.odometry_segment
        segment = result.segment if segment is None else segment
        for geometry, cloud in zip(result.frames, clouds, strict=True):
            pose = odometry_from_map @ geometry.map_from_camera
            self._odometry.add(geometry.view.stamp_ns, pose)
            self._segments.append(segment)
            self._lost.append(geometry.is_lost)
            self._points.add(geometry.view.stamp_ns, segment, cloud, pose)

    @property
    def tracks(self) -> dict[int, Track]:
        """Camera poses per segment, segments that loops joined as one.

        Where the camera was lost and found again in one world, poses lead from there to here.
        """
        stamps = np.array(self._odometry.stamps_ns, np.int64)
        worlds, corrections = corrections_at(stamps, np.array(self._segments), self._corrections)
        poses = rigid(corrections @ self._odometry.matrices)
        poses = bridged(stamps, worlds, poses, np.array(self._lost, bool))
        tracks: dict[int, Track] = {}
        for stamp, world, pose in zip(self._odometry.stamps_ns, worlds, poses, strict=True):
            tracks.setdefault(int(world), Track()).add(stamp, pose)
        return dict(sorted(tracks.items()))

    def map(self, segment: int) -> VoxelMap:
        """Return the map of a segment, and of those that loops joined to it."""
        return self._points.map(segment)
