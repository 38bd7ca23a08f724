"""The logic of the node: messages in, messages out; no rclpy, no threads.

The drivers (a ROS node, a DDS participant, a recording) bring messages and an `emit`; everything
between is here, so that what is tested on a recording is what runs on a robot.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.cloud import VoxelMap, frame_cloud, write_ply
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame, FrameGeometry, Reconstruction, Scale
from qvggt_ros.io import conversions
from qvggt_ros.io.messages import Messages
from qvggt_ros.odometry import MotionEstimator

logger = logging.getLogger(__name__)

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

CAMERA_OUTPUTS = ("depth/image", "depth/camera_info", "confidence", "points")
"""Those of `OUTPUTS` that each camera of a rig has; those of the second and later cameras come
below the camera's name, such as `left/points`."""

MAX_PATH_POSES = 1000
"""Poses in a path message; a longer path is thinned evenly, its newest pose always kept."""

_CAMERA_INFOS_KEPT = 32
_ARRIVALS_KEPT = 1024
_LATENCIES_KEPT = 10_000
_EVENTS_KEPT = 200
# Older than its predecessor by less is late on its way; by more, time itself went back.
_LATE_NS = 1_000_000_000

Emit = Callable[[str, Any, int], None]
"""Takes a relative topic of `outputs_of`, a message, and its stamp in nanoseconds."""

Lookup = Callable[[str, str, int], "NDArray[np.float64] | None"]
"""Takes the names of a target and a source frame and a stamp in nanoseconds; returns
`target_from_source`, (4, 4), or None where it is not known."""


def outputs_of(parameters: Parameters) -> dict[str, str]:
    """Return the relative topics that a server publishes, and their message types."""
    others = {
        f"{camera}/{topic}": OUTPUTS[topic]
        for camera in parameters.cameras[1:]
        for topic in CAMERA_OUTPUTS
    }
    return {**OUTPUTS, **others}


class FrameReconstructor(Protocol):
    """What the server needs of a reconstructor."""

    @property
    def gated(self) -> int:
        """Frames that got no geometry because they showed nothing new."""

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame of each camera; return what became known."""

    def add_odometry(
        self,
        stamp_ns: int,
        position: NDArray[np.float64],
        odom_from_camera: NDArray[np.float64] | None = None,
    ) -> None:
        """Take where odometry has the camera."""

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come of the frames so far."""

    def reset(self, reason: str) -> None:
        """Forget all maps."""

    def set_parameters(self, parameters: Parameters) -> None:
        """Take changed parameters."""


@dataclass
class Counters:
    """What happened so far.

    Attributes:
        received: image messages.
        decoded: images that became frames.
        rejected: messages that could not be used, per reason.
        uncalibrated: frames without a calibration.
        windows: runs of the network.
        published: frames with geometry.
        gated: frames that got no geometry because they showed nothing new.
        keyframes: published frames that stayed in the window.
        segments: maps begun.
        latencies: seconds from an image's arrival to its geometry, the newest last.
        ages: seconds from the stamp of the newest image to the run of the network that it
            started, the newest last; only where the driver has a clock.
    """

    received: int = 0
    decoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    uncalibrated: int = 0
    windows: int = 0
    published: int = 0
    gated: int = 0
    keyframes: int = 0
    segments: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))


@dataclass(frozen=True)
class Status:
    """The state in one line for an operator, and in numbers.

    Attributes:
        level: "OK" or "WARN".
        message: one sentence.
        values: names and numbers, JSON-able.
    """

    level: str
    message: str
    values: dict[str, Any]


@dataclass
class _Calibrations:
    """The CameraInfo messages of one camera."""

    messages: OrderedDict[int, Any] = field(default_factory=OrderedDict)
    last: Camera | None = None


class ReconstructionServer:
    """Turns image messages into pose, odometry, depth, cloud, path and TF messages.

    Attributes:
        counters: what happened so far.
        events: sentences for the operator, the newest last.
        scale: the unit of the newest geometry.
    """

    def __init__(
        self,
        reconstructor: FrameReconstructor,
        parameters: Parameters,
        messages: Messages,
        emit: Emit,
        *,
        wanted: Callable[[str], bool] = lambda topic: True,
        rectified: bool = False,
        live: bool = False,
        keep_map: bool = False,
        transform_mode: str | None = None,
        lookup: Lookup = lambda target, source, stamp_ns: None,
        clock: Callable[[], float] = time.perf_counter,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        """Connect a reconstructor to an output.

        Args:
            reconstructor: turns frames into geometry.
            parameters: names of frames and what goes into clouds.
            messages: message classes to publish with.
            emit: called with a topic of `outputs_of`, a message, and its stamp.
            wanted: whether anybody listens to a topic; work for the others is saved.
            rectified: whether the images are rectified already (`image_rect`).
            live: whether an image that comes late is left out, and time that goes back (a
                recording that is played in a loop) resets everything.
            keep_map: gather a map for `save_map`.
            transform_mode: what goes to `tf`, in place of the parameter `publish_tf`.
            lookup: knows the transforms between other frames.
            clock: seconds, for latencies only.
            now_ns: the time that stamps are compared with; None leaves ages unknown.
        """
        self.counters = Counters()
        self.events: deque[str] = deque(maxlen=_EVENTS_KEPT)
        self.scale = Scale()
        self._reconstructor = reconstructor
        self._parameters = parameters
        self._messages = messages
        self._emit = emit
        self._wanted = wanted
        self._rectified = rectified
        self._live = live
        self._keeps_map = keep_map
        self._transforms = transform_mode or parameters.publish_tf
        self._lookup = lookup
        self._clock = clock
        self._now_ns = now_ns
        self._calibrations = {camera: _Calibrations() for camera in parameters.cameras}
        self._arrivals: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._newest_ns: int | None = None
        self._camera_frame: str | None = None
        self._forget_map()

    def on_camera_info(self, message: Any, camera: str = "") -> None:
        """Take a sensor_msgs/CameraInfo."""
        kept = self._calibrations[camera].messages
        kept[conversions.stamp_ns(message)] = message
        kept.move_to_end(conversions.stamp_ns(message))
        while len(kept) > _CAMERA_INFOS_KEPT:
            kept.popitem(last=False)

    def on_odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry of the robot, which tells the scale."""
        try:
            odom_from_base = conversions.read_pose(message)
            stamp = conversions.stamp_ns(message)
        except QvggtError as error:
            self._reject(f"odometry: {error}")
            return
        if self._camera_frame is None:
            return
        base_from_camera = self._lookup(message.child_frame_id, self._camera_frame, stamp)
        if base_from_camera is None:
            self._tell(
                f"no transform from {message.child_frame_id} to {self._camera_frame}: the camera "
                "is taken to move as the base does, which is wrong while it turns"
            )
            self._reconstructor.add_odometry(stamp, odom_from_base[:3, 3])
            return
        odom_from_camera = odom_from_base @ base_from_camera
        self._reconstructor.add_odometry(stamp, odom_from_camera[:3, 3], odom_from_camera)

    def on_image(self, message: Any) -> tuple[Reconstruction, ...]:
        """Take a sensor_msgs/Image or CompressedImage; publish and return what became known.

        A message that cannot be used is counted and named in the events, and costs only itself.
        """
        return self.on_images({self._parameters.cameras[0]: message})

    def on_images(self, images: Mapping[str, Any]) -> tuple[Reconstruction, ...]:
        """Take the images of a rig's cameras at one time, by the cameras' names.

        An image that cannot be used costs itself, and if it is the first camera's, its set.
        """
        self.counters.received += len(images)
        arrival = self._clock()
        frames = [
            frame
            for camera in self._parameters.cameras
            if camera in images and (frame := self._frame(camera, images[camera])) is not None
        ]
        if not frames or frames[0].source != self._parameters.cameras[0]:
            return ()
        if not self._is_in_time(frames[0].stamp_ns):
            return ()
        self._camera_frame = frames[0].frame_id
        for frame in frames:
            self._arrivals[frame.source, frame.stamp_ns] = arrival
        while len(self._arrivals) > _ARRIVALS_KEPT:
            self._arrivals.popitem(last=False)
        age = None if self._now_ns is None else (self._now_ns() - frames[0].stamp_ns) * 1e-9
        try:
            results = self._reconstructor.add(*frames)
        except QvggtError as error:
            self._reject(str(error))
            return ()
        if age is not None and any(result.window_size for result in results):
            self.counters.ages.append(age)
        self._publish_all(results)
        return results

    def finish(self) -> tuple[Reconstruction, ...]:
        """Publish and return what is still to come of the images so far."""
        try:
            results = self._reconstructor.flush()
        except QvggtError as error:
            self._reject(str(error))
            return ()
        self._publish_all(results)
        return results

    def reset(self, reason: str = "reset on request") -> None:
        """Forget the map, the path and the views that wait."""
        self._reconstructor.reset(reason)
        self._newest_ns = None
        self.scale = Scale()
        self._forget_map()

    def set_parameters(self, parameters: Parameters) -> None:
        """Take parameters that differ from the former in what may change while running."""
        self._parameters = parameters
        self._reconstructor.set_parameters(parameters)

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
        directory = Path(self._parameters.map_directory).expanduser()
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S_%f")
        path = directory / f"{self._world or 'map'}_{now}.ply".replace("/", "_")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_ply(path, cloud)
        except OSError as error:
            raise RecordingError(f"the map cannot be written to {path}: {error}") from error
        return path, len(cloud)

    def reject(self, reason: str, *, is_image: bool) -> None:
        """Count a message that the driver could not even hand over."""
        self.counters.received += is_image
        self._reject(reason)

    def status(self) -> Status:
        """Return the state: WARN while the scale is unknown or messages were rejected."""
        rejected = sum(self.counters.rejected.values())
        warnings = []
        if self.counters.published and self.scale.metres_per_unit is None:
            warnings.append(
                "the scale is unknown: lengths are in the network's units, not in metres"
            )
        if rejected:
            reason, _ = self.counters.rejected.most_common(1)[0]
            warnings.append(f"{rejected} messages could not be used, most often: {reason}")
        message = "; ".join(warnings) or (
            "reconstructing" if self.counters.published else "waiting for images"
        )
        values = {
            **self.deterministic_values(),
            "scale_age_s": self._scale_age(),
            "latency_s": latency_percentiles(self.counters.latencies),
        }
        if self._now_ns is not None:
            values["age_s"] = latency_percentiles(self.counters.ages)
        return Status("WARN" if warnings else "OK", message, values)

    def deterministic_values(self) -> dict[str, Any]:
        """Return the counters and the scale: the same for the same messages."""
        counters = self.counters
        return {
            "received": counters.received,
            "decoded": counters.decoded,
            "rejected": dict(counters.rejected),
            "uncalibrated": counters.uncalibrated,
            "windows": counters.windows,
            "published": counters.published,
            "keyframes": counters.keyframes,
            "gated": counters.gated,
            "segments": counters.segments,
            "metres_per_unit": self.scale.metres_per_unit,
            "scale_source": self.scale.source,
        }

    def _frame(self, camera: str, message: Any) -> Frame | None:
        try:
            stamp = conversions.stamp_ns(message)
            image = conversions.decode_image(message)
        except QvggtError as error:
            self._reject(f"{camera}: {error}" if camera else str(error))
            return None
        self.counters.decoded += 1
        calibration = self._camera(camera, stamp, image.shape[1], image.shape[0])
        self.counters.uncalibrated += calibration is None
        frame_id = message.header.frame_id or self._parameters.camera_frame
        return Frame(stamp, image, calibration, frame_id, camera)

    def _is_in_time(self, stamp_ns: int) -> bool:
        newest = self._newest_ns
        if self._live and newest is not None and stamp_ns < newest:
            if newest - stamp_ns < _LATE_NS:
                self._reject(
                    f"an image came late: {(newest - stamp_ns) * 1e-9:.3f} s older than its "
                    "predecessor"
                )
                return False
            self.reset(f"time went back by {(newest - stamp_ns) * 1e-9:.3f} s")
        self._newest_ns = stamp_ns
        return True

    def _scale_age(self) -> float | None:
        if self.scale.stamp_ns is None or self._newest_ns is None:
            return None
        return (self._newest_ns - self.scale.stamp_ns) * 1e-9

    def _camera(self, name: str, stamp: int, width: int, height: int) -> Camera | None:
        """Return the calibration at a stamp: the message of the same stamp, else the newest.

        If that one is broken, the last good one for images of this size stays in use.
        """
        calibrations = self._calibrations[name]
        if not calibrations.messages:
            return None
        newest = next(reversed(calibrations.messages))
        info = calibrations.messages.get(stamp, calibrations.messages[newest])
        try:
            calibrations.last = conversions.camera_from_info(
                info, width, height, rectified=self._rectified
            )
        except QvggtError as error:
            self._reject(f"{error}; the last good calibration stays in use, if there was one")
            last = calibrations.last
            if last is not None and (last.width, last.height) != (width, height):
                calibrations.last = None
        return calibrations.last

    def _reject(self, reason: str) -> None:
        # One fault of a camera is one kind, whatever numbers it comes with.
        kinds = {_kind(known): known for known in self.counters.rejected}
        first = kinds.get(_kind(reason))
        self.counters.rejected[first or reason] += 1
        if first is None:
            logger.warning("%s", reason)
            self.events.append(reason)

    def _tell(self, event: str) -> None:
        """Say something once."""
        if event not in self.events:
            logger.warning("%s", event)
            self.events.append(event)

    def _forget_map(self) -> None:
        self._path: list[Any] = []
        self._segment: int | None = None
        self._world = ""
        self._motion = MotionEstimator()
        self._map = VoxelMap(self._parameters.map_voxel) if self._keeps_map else None

    def _publish_all(self, results: tuple[Reconstruction, ...]) -> None:
        for result in results:
            self._publish(result)
        self.counters.gated = self._reconstructor.gated

    def _publish(self, result: Reconstruction) -> None:
        self.counters.windows += result.window_size > 0
        for event in result.events:
            logger.info("%s", event)
            self.events.append(event)
        if not result.frames:
            return
        self.scale = result.scale
        world = conversions.world_frame(self._parameters, result.scale, result.segment)
        self.counters.segments += result.segment != self._segment
        if (result.segment, world) != (self._segment, self._world):
            # Also when the scale becomes known: lengths before and after do not mix.
            self._forget_map()
            self._segment, self._world = result.segment, world
        self._motion.window(result.position_sigma, result.rotation_sigma)
        for geometry in result.frames:
            self._publish_frame(geometry, world)
        if self._wanted("path"):
            path = conversions.path_message(self._messages, _thinned(self._path))
            self._emit("path", path, result.frames[-1].view.stamp_ns)

    def _publish_frame(self, geometry: FrameGeometry, world: str) -> None:
        view = geometry.view
        self.counters.published += 1
        self.counters.keyframes += geometry.is_keyframe
        arrival = self._arrivals.pop((view.source, view.stamp_ns), None)
        if view.source == self._parameters.cameras[0]:
            self._publish_motion(geometry, world)
        self._publish_geometry(geometry, world)
        if arrival is not None:
            self.counters.latencies.append(self._clock() - arrival)

    def _publish_motion(self, geometry: FrameGeometry, world: str) -> None:
        stamp = geometry.view.stamp_ns
        pose = conversions.pose_message(self._messages, geometry, world)
        self._path.append(pose)
        if self._wanted("pose"):
            self._emit("pose", pose, stamp)
        self._publish_odometry(geometry, world)
        if self._wanted("tf"):
            self._publish_transform(geometry, world)

    def _publish_odometry(self, geometry: FrameGeometry, world: str) -> None:
        stamp, child = geometry.view.stamp_ns, geometry.view.frame_id
        camera_from_base = self._lookup(child, self._parameters.base_frame, stamp)
        pose = geometry.map_from_camera
        if camera_from_base is not None:
            pose, child = pose @ camera_from_base, self._parameters.base_frame
        # Also while nobody listens, so that the first twist is not that of a long time.
        estimate = self._motion.estimate(stamp, pose)
        if not self._wanted("odometry"):
            return
        message = conversions.odometry_message(self._messages, estimate, world, child, stamp)
        self._emit("odometry", message, stamp)

    def _publish_transform(self, geometry: FrameGeometry, world: str) -> None:
        parameters, view = self._parameters, geometry.view
        if self._transforms == "none":
            return
        pose, child = geometry.map_from_camera, view.frame_id
        if self._transforms != "world_to_camera":
            # A tree in metres stays one: nothing of an unknown unit is hung into it.
            if self.scale.metres_per_unit is None:
                return
            to_odom = self._transforms == "map_to_odom"
            child = parameters.odom_frame if to_odom else parameters.base_frame
            other = self._lookup(view.frame_id, child, view.stamp_ns)
            if other is None:
                self._tell(
                    f"no transform from {child} to {view.frame_id}: nothing is published to tf; "
                    "the robot's description and its odometry have to give it"
                )
                return
            pose = pose @ other
        message = conversions.transform_message(self._messages, pose, world, child, view.stamp_ns)
        self._emit("tf", message, view.stamp_ns)

    def _publish_geometry(self, geometry: FrameGeometry, world: str) -> None:
        view, messages = geometry.view, self._messages
        stamp = view.stamp_ns
        first = view.source == self._parameters.cameras[0]
        prefix = "" if first else f"{view.source}/"
        if self._wanted(f"{prefix}depth/image"):
            depth = conversions.depth_message(messages, geometry)
            self._emit(f"{prefix}depth/image", depth, stamp)
        if self._wanted(f"{prefix}depth/camera_info"):
            info = conversions.depth_info_message(messages, geometry)
            self._emit(f"{prefix}depth/camera_info", info, stamp)
        if self._wanted(f"{prefix}confidence"):
            confidence = conversions.confidence_message(messages, geometry)
            self._emit(f"{prefix}confidence", confidence, stamp)
        wants_points = self._wanted(f"{prefix}points")
        if not wants_points and self._map is None:
            return
        parameters = self._parameters
        cloud = frame_cloud(geometry, parameters.max_depth_edge, parameters.point_stride)
        in_world = parameters.points_frame == "world"
        moved = cloud
        if in_world or self._map is not None:
            moved = cloud.moved(geometry.map_from_camera)
        if wants_points:
            frame_id = world if in_world else view.frame_id
            points = conversions.cloud_message(
                messages, moved if in_world else cloud, stamp, frame_id
            )
            self._emit(f"{prefix}points", points, stamp)
        if self._map is not None and len(cloud):
            self._map.add(moved, float(np.median(cloud.positions[:, 2])))


def latency_percentiles(latencies: deque[float]) -> dict[str, float]:
    """Return the median, 95th percentile and maximum in seconds; empty without latencies."""
    if not latencies:
        return {}
    values = np.array(latencies)
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _kind(reason: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", reason)


def _thinned(poses: list[Any]) -> list[Any]:
    stride = -(-len(poses) // MAX_PATH_POSES)
    return poses[(len(poses) - 1) % stride :: stride]
