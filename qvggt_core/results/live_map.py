"""The points of a running reconstruction, for `save_map`: where the newest correction has them."""

from __future__ import annotations

import numpy as np

from qvggt_core.geometry.cloud import Cloud, VoxelMap
from qvggt_core.geometry.poses import inverse
from qvggt_core.results.movable_points import MovablePoints
from qvggt_core.stream.frame import FrameGeometry, Reconstruction

_MAX_POINTS = 2_000_000


class LiveMap:
    """Gathers points of the map in which the camera is now.

    While loops are looked for, points are kept where odometry had them, those of other segments
    too: a loop may move them, and join segments. Without, the map of a segment is all there is.
    """

    def __init__(self, map_voxel: float) -> None:
        """Start without points; voxels are a fraction of the median depth."""
        self._fixed = VoxelMap(map_voxel)
        self._movable = MovablePoints(map_voxel, _MAX_POINTS)
        self._map_voxel = map_voxel
        # Whether lengths are metres and what is up, by segment.
        self._gauges: dict[int, tuple[bool, str]] = {}
        self._segment, self._odometry_segment = 0, 0
        self._odometry_from_map = np.eye(4)
        self._has_loops = False

    def begin_world(self) -> None:
        """Go on in another segment, or in another unit of it."""
        self._fixed = VoxelMap(self._map_voxel)

    def begin(self, result: Reconstruction) -> None:
        """Take the segment of the frames that come next, and what loops do."""
        self._has_loops = result.loops is not None
        own = result.segment if result.odometry_segment is None else result.odometry_segment
        self._segment, self._odometry_segment = result.segment, own
        self._odometry_from_map = inverse(result.map_from_odometry)
        gauge = (result.scale.metres_per_unit is not None, result.up.source)
        if self._gauges.get(own, gauge) != gauge:
            self._movable.forget(own)
        self._gauges[own] = gauge
        self.correct(result)

    def correct(self, result: Reconstruction) -> None:
        """Take what loops do, of a result with or without frames."""
        if result.corrections is not None:
            self._movable.correct(result.corrections)

    def add(self, geometry: FrameGeometry, cloud: Cloud) -> None:
        """Take a frame's points, given in its camera."""
        pose = geometry.map_from_camera
        if not self._has_loops:
            self._fixed.add_frame(cloud, pose)
            return
        stamp, segment = geometry.view.stamp_ns, self._odometry_segment
        self._movable.add(stamp, segment, cloud, self._odometry_from_map @ pose)

    def cloud(self) -> Cloud:
        """Return the points of the map, one per voxel."""
        joined, fixed = self._movable.map(self._segment), self._fixed.cloud()
        if joined.voxel == 0.0:
            return fixed
        joined.add(fixed, self._fixed.voxel / self._map_voxel)
        return joined.cloud()
