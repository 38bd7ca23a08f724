"""Geometry out: the messages of each frame, the path, the transform, and the map that is saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.geometry.cloud import write_ply
from qvggt_core.geometry.poses import inverse
from qvggt_core.occupancy.mapper import OccupancyMapper
from qvggt_core.parameters import Parameters
from qvggt_core.results.live_map import LiveMap
from qvggt_core.stream.frame import FrameGeometry, LoopStatus, Reconstruction, Scale, Up
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_core.util.files import atomic_path
from qvggt_core.util.thinning import ThinnedStream
from qvggt_ros.io import conversions
from qvggt_ros.io.compressed_depth import compressed_depth_message
from qvggt_ros.io.messages import Messages
from qvggt_ros.odometry import MotionEstimator

OUTPUTS: dict[str, str] = {
    "pose": "PoseStamped",
    "odometry": "Odometry",
    "depth/image": "Image",
    "depth/camera_info": "CameraInfo",
    "confidence": "Image",
    "points": "PointCloud2",
    "path": "Path",
    "tf": "TFMessage",
}
"""What is published: relative topic and message type."""

GRID_OUTPUT = {"map_grid": "OccupancyGrid"}
"""What is published beside `OUTPUTS` where the parameter `occupancy_grid` is set."""

COMPRESSED_OUTPUT = {"depth/image/compressedDepth": "CompressedImage"}
"""What is published beside `OUTPUTS` where the parameter `compressed_depth` is set."""

LATCHED_OUTPUTS = ("path", *GRID_OUTPUT)
"""Those of which late subscribers get the last message."""

CAMERA_OUTPUTS = ("depth/image", "depth/camera_info", "confidence", "points", *COMPRESSED_OUTPUT)
"""Those that each camera of a rig has; those of the second and later cameras come
below the camera's name, such as `left/points`."""

MAX_PATH_POSES = 1000
"""Poses in a path message; a longer path is thinned evenly, its newest pose always kept."""

Emit = Callable[[str, Any, int], None]
"""Takes a relative topic of `outputs_of`, a message, and its stamp in nanoseconds."""

Lookup = Callable[[str, str, int], "NDArray[np.float64] | None"]
"""Takes the names of a target and a source frame and a stamp in nanoseconds; returns
`target_from_source`, (4, 4), or None where it is not known."""


def new_map_path(directory: str, name: str, suffix: str = "") -> Path:
    """Return a path of now's in a directory, whose name may hold `~` and variables."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S_%f")
    place = Path(os.path.expandvars(directory)).expanduser().absolute()
    return place / f"{name}_{now}{suffix}".replace("/", "_")


def outputs_of(parameters: Parameters) -> dict[str, str]:
    """Return the relative topics that a session publishes, and their message types."""
    own = {
        **OUTPUTS,
        **(GRID_OUTPUT if parameters.occupancy_grid else {}),
        **(COMPRESSED_OUTPUT if parameters.compressed_depth else {}),
    }
    others = {
        f"{camera}/{topic}": own[topic]
        for camera in parameters.cameras[1:]
        for topic in CAMERA_OUTPUTS
        if topic in own
    }
    return own | others


@dataclass(frozen=True)
class Driver:
    """What a driver gives to a session.

    Attributes:
        messages: message classes to publish with.
        emit: called with a topic of `outputs_of`, a message, and its stamp.
        wanted: whether a topic has subscribers; work for the others is saved.
        lookup: returns transforms between other frames.
        now_ns: the time that stamps are compared with; None leaves ages unknown.
        forget: called when everything begins anew, on request or as time went back: transforms
            of before do not hold.
        new_map: called when another map begins: the transform of the former one does not hold.
    """

    messages: Messages
    emit: Emit
    wanted: Callable[[str], bool] = lambda topic: True
    lookup: Lookup = lambda target, source, stamp_ns: None
    now_ns: Callable[[], int] | None = None
    forget: Callable[[], None] = lambda: None
    new_map: Callable[[], None] = lambda: None


class Publishing:
    """Publishes the frames of one map after the other.

    Attributes:
        parameters: names of frames, and what goes into clouds.
        scale: the unit of the newest geometry.
        up: which way is up in its map.
        loops: what has become of places that are seen again.
        segment: number of the map segment, None before the first frame.
        world: name of the map's frame.
        floor_plan: None where none is wanted.
    """

    floor_plan: OccupancyMapper | None

    def __init__(
        self,
        driver: Driver,
        parameters: Parameters,
        warn: Callable[[str], None],
        *,
        keep_map: bool,
    ) -> None:
        """Start without a map.

        Args:
            driver: where messages go.
            parameters: names of frames, and what goes into clouds.
            warn: called with what an operator should know, as often as it happens.
            keep_map: gather a map for `save_map`.
        """
        self.parameters = parameters
        self.scale = Scale()
        self.up = Up()
        self.loops = LoopStatus()
        self._driver = driver
        self._warn = warn
        self._keep_map = keep_map
        self.forget_map()

    def forget_map(self) -> None:
        """Begin anew with the path, the motion and the map."""
        self._map = LiveMap(self.parameters.map_voxel) if self._keep_map else None
        self._begin_world()

    def _begin_world(self) -> None:
        """Begin anew where the world is another one; a loop may bring the former one back."""
        self._driver.new_map()
        self.segment: int | None = None
        self.world = ""
        self._map_from_odometry, self._odometry_world = np.eye(4), ""
        self._path = PathPoses()
        self._motion = MotionEstimator()
        if self._map is not None:
            self._map.begin_world()
        wants_grid = self.parameters.occupancy_grid
        self.floor_plan = OccupancyMapper(self.parameters) if wants_grid else None
        self._grid_ns: int | None = None
        self._late_grid_ns: int | None = None

    def begin(self, result: Reconstruction) -> None:
        """Take the scale and the segment of the frames that come next."""
        self.scale = result.scale
        world = conversions.world_frame(self.parameters, result.scale, result.segment)
        if (result.segment, world, result.up.source) != (self.segment, self.world, self.up.source):
            # Also when the scale or the vertical becomes known: what was before does not fit.
            self._begin_world()
            self.segment, self.world = result.segment, world
        self.up, self.loops = result.up, result.loops or LoopStatus()
        self._map_from_odometry = result.map_from_odometry
        self._odometry_world = conversions.odometry_frame(
            self.parameters, result.scale, result.segment
        )
        self._motion.window(result)
        if self._map is not None:
            self._map.begin(result)

    def correct(self, result: Reconstruction) -> None:
        """Take what loops do to the map, of a result without frames."""
        if self._map is not None:
            self._map.correct(result)
        if self.floor_plan is not None and self.segment is not None:
            self.floor_plan.add(result)

    def frame(self, geometry: FrameGeometry) -> None:
        """Publish what there is of a frame."""
        if geometry.view.source == self.parameters.cameras[0]:
            self._publish_motion(geometry)
        self._publish_depth(geometry)
        self._publish_points(geometry)

    def path(self, stamp_ns: int) -> None:
        """Publish the path of the map so far."""
        if self._driver.wanted("path"):
            path = conversions.path_message(self._driver.messages, self._path.poses)
            self._driver.emit("path", path, stamp_ns)

    def grid(self, result: Reconstruction) -> None:
        """Take what was reconstructed into the floor plan; publish it when that is due."""
        if self.floor_plan is None:
            return
        self.floor_plan.add(result)
        stamp = result.frames[-1].view.stamp_ns
        period_ns = round(1e9 * self.parameters.grid_period_s)
        if self._grid_ns is not None and 0 <= stamp - self._grid_ns < period_ns:
            self._late_grid_ns = stamp
            return
        self._publish_grid(stamp)

    def finish_grid(self) -> None:
        """Publish the floor plan of the last frames, if it was not due yet."""
        if self._late_grid_ns is not None:
            self._publish_grid(self._late_grid_ns)

    def save_map(self) -> tuple[Path, int]:
        """Write the map of the current segment into `map_directory`.

        Returns:
            The PLY file and its number of points.

        Raises:
            RecordingError: there is no map yet, or the file cannot be written.
        """
        cloud = None if self._map is None else self._map.cloud()
        if cloud is None or len(cloud) == 0:
            raise RecordingError("there is no map yet: no frame has got its geometry")
        path = new_map_path(self.parameters.map_directory, self.world or "map", ".ply")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                write_ply(partial, cloud)
        except OSError as error:
            raise RecordingError(f"the map cannot be written to {path}: {error}") from error
        return path, len(cloud)

    def _publish_grid(self, stamp_ns: int) -> None:
        grid = None if self.floor_plan is None else self.floor_plan.grid()
        if grid is None:
            return
        self._grid_ns, self._late_grid_ns = stamp_ns, None
        message = conversions.grid_message(self._driver.messages, grid, stamp_ns, self.world)
        # Also without subscribers: late ones get it.
        self._driver.emit("map_grid", message, stamp_ns)

    def _emit(self, topic: str, stamp: int, make: Callable[[], Any]) -> None:
        if self._driver.wanted(topic):
            self._driver.emit(topic, make(), stamp)

    def _publish_motion(self, geometry: FrameGeometry) -> None:
        stamp = geometry.view.stamp_ns
        pose = conversions.pose_message(self._driver.messages, geometry, self.world)
        self._path.add(pose)
        self._emit("pose", stamp, lambda: pose)
        self._publish_odometry(geometry)
        if self._driver.wanted("tf"):
            self._publish_transform(geometry)

    def _publish_odometry(self, geometry: FrameGeometry) -> None:
        stamp, child = geometry.view.stamp_ns, geometry.view.frame_id
        camera_from_base = self._driver.lookup(child, self.parameters.base_frame, stamp)
        if camera_from_base is not None:
            child = self.parameters.base_frame
        # Also without subscribers, so that the first twist is not that of a long time.
        estimate = self._motion.estimate(self._continuous(geometry), camera_from_base)
        self._emit(
            "odometry",
            stamp,
            lambda: conversions.odometry_message(
                self._driver.messages, estimate, self._odometry_world, child, stamp
            ),
        )

    def _continuous(self, geometry: FrameGeometry) -> FrameGeometry:
        """Return a frame as it is in odometry: corrections of the map are no motion."""
        if not self.parameters.loop_closure:
            return geometry
        return geometry.moved(inverse(self._map_from_odometry))

    def _publish_transform(self, geometry: FrameGeometry) -> None:
        parameters, view = self.parameters, geometry.view
        if parameters.publish_tf == "none":
            return
        pose, world, child = geometry.map_from_camera, self.world, view.frame_id
        if parameters.publish_tf != "world_to_camera":
            # A tree in metres stays one: nothing of an unknown unit is hung into it.
            if self.scale.metres_per_unit is None:
                return
            to_odom = parameters.publish_tf == "map_to_odom"
            child = parameters.odom_frame if to_odom else parameters.base_frame
            other = self._driver.lookup(view.frame_id, child, view.stamp_ns)
            if other is None:
                self._warn(
                    f"no transform from {child} to {view.frame_id}: nothing is published to tf; "
                    "the robot's description and its odometry have to give it"
                )
                return
            if not to_odom:
                pose, world = self._continuous(geometry).map_from_camera, self._odometry_world
            pose = pose @ other
        self._emit_transform(pose, world, child, view.stamp_ns)
        if parameters.loop_closure:
            self._emit_transform(
                self._map_from_odometry, self.world, self._odometry_world, view.stamp_ns
            )

    def _emit_transform(
        self, parent_from_child: NDArray[np.float64], parent: str, child: str, stamp_ns: int
    ) -> None:
        message = conversions.transform_message(
            self._driver.messages, parent_from_child, parent, child, stamp_ns
        )
        self._driver.emit("tf", message, stamp_ns)

    def _publish_depth(self, geometry: FrameGeometry) -> None:
        makers = {
            "depth/image": conversions.depth_message,
            "depth/camera_info": conversions.depth_info_message,
            "confidence": conversions.confidence_message,
        }
        if self.parameters.compressed_depth:
            makers |= dict.fromkeys(COMPRESSED_OUTPUT, compressed_depth_message)
        for topic, make in makers.items():
            self._emit(
                self._prefix(geometry) + topic,
                geometry.view.stamp_ns,
                partial(make, self._driver.messages, geometry),
            )

    def _publish_points(self, geometry: FrameGeometry) -> None:
        topic, parameters = self._prefix(geometry) + "points", self.parameters
        wanted = self._driver.wanted(topic)
        if not wanted and self._map is None:
            return
        cloud = frame_cloud(geometry, parameters.max_depth_edge, parameters.point_stride)
        if self._map is not None:
            self._map.add(geometry, cloud)
        if not wanted:
            return
        frame_id, stamp = geometry.view.frame_id, geometry.view.stamp_ns
        if parameters.points_frame == "world":
            frame_id, cloud = self.world, cloud.moved(geometry.map_from_camera)
        points = conversions.cloud_message(self._driver.messages, cloud, stamp, frame_id)
        self._driver.emit(topic, points, stamp)

    def _prefix(self, geometry: FrameGeometry) -> str:
        first = geometry.view.source == self.parameters.cameras[0]
        return "" if first else f"{geometry.view.source}/"


class PathPoses:
    """The poses of a path message: thinned evenly, so that an hour takes no more than a minute."""

    def __init__(self) -> None:
        self._thinned: ThinnedStream[Any] = ThinnedStream(MAX_PATH_POSES - 1)
        self._newest: Any = None

    def add(self, pose: Any) -> None:
        """Append a pose."""
        self._thinned.add(pose)
        self._newest = pose

    @property
    def poses(self) -> list[Any]:
        """Poses in order, the newest always among them."""
        kept = self._thinned.kept
        return kept if kept[-1] is self._newest else [*kept, self._newest]
