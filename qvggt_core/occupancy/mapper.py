"""From reconstructions to a floor plan: when one can be made, and anew when loops move the map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import rigid, scale_of
from qvggt_core.occupancy.grid import OccupancyGrid
from qvggt_core.occupancy.ground import Ground
from qvggt_core.occupancy.height_voxels import Band, DepthView, HeightVoxels
from qvggt_core.parameters import Parameters
from qvggt_core.stream.corrected_path import corrections_at
from qvggt_core.stream.frame import (
    FrameGeometry,
    KeyframeCorrections,
    Reconstruction,
    ScaleState,
)
from qvggt_core.stream.frame_cloud import on_depth_edge
from qvggt_core.stream.gravity import FIRST_CAMERA
from qvggt_core.util.thinning import ThinnedStream

# Frames kept to make the plan anew, and how many of them are taken in again with each new one.
_KEPT, _AGAIN = 300, 8
# Columns of a depth image that are taken at most: finer than cells are at the usual range.
_FINEST = 256
_PERIOD_NS = 500_000_000
"""A camera that stands still is no keyframe, and what moves before it is seen all the same."""


@dataclass(frozen=True)
class _Frame:
    """A view where odometry had it, before any loop."""

    stamp_ns: int
    segment: int
    view: DepthView

    def placed(self, correction: NDArray[np.float64]) -> DepthView:
        """Return its view in the map, by a similarity (4, 4) from odometry's world."""
        scale = float(scale_of(correction))
        pose = rigid((correction @ self.view.map_from_camera)[None])[0]
        # The camera stays as high over its ground.
        height = self.view.ground[:3] @ self.view.map_from_camera[:3, 3] + self.view.ground[3]
        turn = pose[:3, :3] @ self.view.map_from_camera[:3, :3].T
        normal = turn @ self.view.ground[:3]
        ground = np.append(normal, scale * height - normal @ pose[:3, 3])
        depth = np.float32(scale) * self.view.depth
        return replace(self.view, depth=depth, map_from_camera=pose, ground=ground)


class OccupancyMapper:
    """Gathers the floor plan of one map; another map needs another one.

    Attributes:
        missing: why there is no plan yet, in words; empty once there is one.
    """

    def __init__(self, parameters: Parameters) -> None:
        """Start with nothing seen."""
        self.missing = "no frame has got its geometry yet"
        self._parameters = parameters
        self._band = Band(
            parameters.grid_resolution,
            parameters.grid_min_height,
            parameters.grid_max_height,
            parameters.grid_max_range,
        )
        self._ground = Ground(parameters.camera_height)
        self._voxels = HeightVoxels(self._band)
        self._ground_z = 0.0
        self._newest_ns: int | None = None
        self._kept: ThinnedStream[_Frame] = ThinnedStream(_KEPT)
        self._corrections: tuple[KeyframeCorrections, int] | None = None
        self._anew: HeightVoxels | None = None
        self._queue: list[DepthView] = []

    def add(self, result: Reconstruction) -> None:
        """Take what one run of the network gave, in metres and upright; else note what is missing.

        All results have to be of one map: of one segment, unit and vertical.
        """
        reason = _reason(result)
        if reason:
            self.missing = self.missing and reason
            return
        for geometry in result.frames:
            self._add_frame(geometry, result)
        if result.corrections is not None:
            self._corrections = (result.corrections, result.segment)
        self._go_on()

    def grid(self) -> OccupancyGrid | None:
        """Return the floor plan so far; None while there is none."""
        grid = self._voxels.grid()
        return grid and replace(grid, origin=np.append(grid.origin[:2], self._ground_z))

    def _add_frame(self, geometry: FrameGeometry, result: Reconstruction) -> None:
        stamp = geometry.view.stamp_ns
        is_late = self._newest_ns is None or stamp - self._newest_ns >= _PERIOD_NS
        if geometry.is_lost or not (geometry.is_keyframe or is_late):
            return
        plane = self._ground.plane(geometry)
        if plane is None:
            self.missing = self.missing and (
                "the ground was not seen yet: tilt the camera to the floor, or set camera_height"
            )
            return
        view = self._view(geometry, plane)
        if self._anew is None:
            self._voxels.add(view)
        else:
            self._queue.append(view)
        self._newest_ns, self.missing = stamp, ""
        centre = geometry.map_from_camera[:2, 3]
        self._ground_z = float(-(plane[3] + plane[:2] @ centre) / plane[2])
        if result.loops is not None:
            self._keep(view, stamp, result)

    def _view(self, geometry: FrameGeometry, plane: NDArray[np.float64]) -> DepthView:
        """Return what is taken of a frame: without depth that is smeared, and not too fine."""
        edge = on_depth_edge(geometry.depth, self._parameters.max_depth_edge)
        depth = np.where(edge, np.float32(np.nan), geometry.depth)
        stride = -(-depth.shape[1] // _FINEST)
        intrinsics = geometry.intrinsics.copy()
        intrinsics[:2] /= stride
        return DepthView(depth[::stride, ::stride], intrinsics, geometry.map_from_camera, plane)

    def _keep(self, view: DepthView, stamp_ns: int, result: Reconstruction) -> None:
        """Keep a view as odometry has it."""
        back = inverse(result.map_from_odometry)
        normal = back[:3, :3] @ view.ground[:3]
        pose = back @ view.map_from_camera
        height = view.ground[:3] @ view.map_from_camera[:3, 3] + view.ground[3]
        ground = np.append(normal, height - normal @ pose[:3, 3])
        segment = result.odometry_segment
        segment = result.segment if segment is None else segment
        kept = replace(view, depth=view.depth.astype(np.float16), map_from_camera=pose)
        self._kept.add(_Frame(stamp_ns, segment, replace(kept, ground=ground)))

    def _go_on(self) -> None:
        """Take some frames in again after a correction; the new plan counts when it has all.

        What is corrected meanwhile waits: else a plan would never come to its end.
        """
        if self._anew is None:
            if self._corrections is None:
                return
            self._queue = self._placed(*self._corrections)
            self._corrections, self._anew = None, HeightVoxels(self._band)
        for view in self._queue[:_AGAIN]:
            self._anew.add(view)
        del self._queue[:_AGAIN]
        if not self._queue:
            self._voxels, self._anew = self._anew, None

    def _placed(self, corrections: KeyframeCorrections, world: int) -> list[DepthView]:
        kept = self._kept.kept
        stamps = np.array([frame.stamp_ns for frame in kept], np.int64)
        segments = np.array([frame.segment for frame in kept], np.int64)
        worlds, moves = corrections_at(stamps, segments, corrections)
        return [
            frame.placed(move)
            for frame, own, move in zip(kept, worlds, moves, strict=True)
            if own == world
        ]


def _reason(result: Reconstruction) -> str:
    """Return why a reconstruction is not fit for a floor plan; empty if it is."""
    if result.scale.metres_per_unit is None:
        return "the map is not in metres yet"
    if result.scale.state is ScaleState.STALE:
        return "the scale is stale"
    if result.up.source == FIRST_CAMERA:
        return (
            "nothing shows which way is up: give an IMU, or let the camera see the ground "
            "before metres are known"
        )
    return ""
