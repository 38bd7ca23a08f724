"""The logic of the node: messages in, messages out; no rclpy, no threads.

The drivers (a ROS node, a recording) bring messages and an `emit`; everything between is here, so
that what is tested on a recording is what runs on a robot.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qvggt_core.camera import Camera
from qvggt_core.cloud import frame_cloud
from qvggt_core.errors import QvggtError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame, FrameGeometry, Reconstruction, Scale
from qvggt_ros import conversions
from qvggt_ros.messages import Messages

logger = logging.getLogger(__name__)

OUTPUTS: dict[str, str] = {
    "pose": "PoseStamped",
    "depth/image": "Image",
    "depth/camera_info": "CameraInfo",
    "points": "PointCloud2",
    "path": "Path",
    "tf": "TFMessage",
}
"""What is published: relative topic and message type."""

MAX_PATH_POSES = 1000
"""Poses in a path message; a longer path is thinned evenly, its newest pose always kept."""

_CAMERA_INFOS_KEPT = 32
_ARRIVALS_KEPT = 1024
_LATENCIES_KEPT = 10_000
_EVENTS_KEPT = 200

Emit = Callable[[str, Any, int], None]
"""Takes a relative topic of `OUTPUTS`, a message, and its stamp in nanoseconds."""


class FrameReconstructor(Protocol):
    """What the server needs of a reconstructor.

    Attributes:
        gated: frames that got no geometry because they showed nothing new.
    """

    gated: int

    def add(self, frame: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame; return what became known."""

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come of the frames so far."""


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
        latencies: seconds from an image to its geometry, the newest last.
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


class ReconstructionServer:
    """Turns image messages into pose, depth, cloud, path and TF messages.

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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Connect a reconstructor to an output.

        Args:
            reconstructor: turns frames into geometry.
            parameters: names of frames and what goes into clouds.
            messages: message classes to publish with.
            emit: called with a topic of `OUTPUTS`, a message, and its stamp.
            wanted: whether anybody listens to a topic; work for the others is saved.
            rectified: whether the images are rectified already (`image_rect`).
            clock: seconds, for latencies only.
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
        self._clock = clock
        self._camera_infos: OrderedDict[int, Any] = OrderedDict()
        self._last_camera: Camera | None = None
        self._arrivals: OrderedDict[int, float] = OrderedDict()
        self._path: list[Any] = []
        self._segment: int | None = None

    def on_camera_info(self, message: Any) -> None:
        """Take a sensor_msgs/CameraInfo."""
        self._camera_infos[conversions.stamp_ns(message)] = message
        self._camera_infos.move_to_end(conversions.stamp_ns(message))
        while len(self._camera_infos) > _CAMERA_INFOS_KEPT:
            self._camera_infos.popitem(last=False)

    def on_image(self, message: Any) -> tuple[Reconstruction, ...]:
        """Take a sensor_msgs/Image or CompressedImage; publish and return what became known.

        A message that cannot be used is counted and named in the events, and costs only itself.
        """
        self.counters.received += 1
        arrival = self._clock()
        try:
            stamp = conversions.stamp_ns(message)
            image = conversions.decode_image(message)
        except QvggtError as error:
            self._reject(str(error))
            return ()
        self.counters.decoded += 1
        camera = self._camera(stamp, image.shape[1], image.shape[0])
        self.counters.uncalibrated += camera is None
        frame_id = message.header.frame_id or self._parameters.camera_frame
        self._arrivals[stamp] = arrival
        while len(self._arrivals) > _ARRIVALS_KEPT:
            self._arrivals.popitem(last=False)
        try:
            results = self._reconstructor.add(Frame(stamp, image, camera, frame_id))
        except QvggtError as error:
            self._reject(str(error))
            return ()
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
        return Status(
            level="WARN" if warnings else "OK",
            message=message,
            values={
                **self.deterministic_values(),
                "latency_s": latency_percentiles(self.counters.latencies),
            },
        )

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

    def _camera(self, stamp: int, width: int, height: int) -> Camera | None:
        """Return the calibration at a stamp: the message of the same stamp, else the newest.

        If that one is broken, the last good one for images of this size stays in use.
        """
        if not self._camera_infos:
            return None
        newest = next(reversed(self._camera_infos))
        info = self._camera_infos.get(stamp, self._camera_infos[newest])
        try:
            self._last_camera = conversions.camera_from_info(
                info, width, height, rectified=self._rectified
            )
        except QvggtError as error:
            self._reject(f"{error}; the last good calibration stays in use, if there was one")
            last = self._last_camera
            if last is not None and (last.width, last.height) != (width, height):
                self._last_camera = None
        return self._last_camera

    def _reject(self, reason: str) -> None:
        # One fault of a camera is one kind, whatever numbers it comes with.
        kinds = {_kind(known): known for known in self.counters.rejected}
        first = kinds.get(_kind(reason))
        self.counters.rejected[first or reason] += 1
        if first is None:
            logger.warning("%s", reason)
            self.events.append(reason)

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
        if result.segment != self._segment:
            self._segment = result.segment
            self._path = []
            self.counters.segments += 1
        world = conversions.world_frame(self._parameters, result.scale, result.segment)
        for geometry in result.frames:
            self._publish_frame(geometry, world)
        if self._wanted("path"):
            path = conversions.path_message(self._messages, _thinned(self._path))
            self._emit("path", path, result.frames[-1].view.stamp_ns)

    def _publish_frame(self, geometry: FrameGeometry, world: str) -> None:
        stamp = geometry.view.stamp_ns
        messages = self._messages
        self.counters.published += 1
        self.counters.keyframes += geometry.is_keyframe
        arrival = self._arrivals.pop(stamp, None)
        pose = conversions.pose_message(messages, geometry, world)
        self._path.append(pose)
        if self._wanted("pose"):
            self._emit("pose", pose, stamp)
        if self._wanted("tf"):
            self._emit("tf", conversions.transform_message(messages, geometry, world), stamp)
        if self._wanted("depth/image"):
            self._emit("depth/image", conversions.depth_message(messages, geometry), stamp)
        if self._wanted("depth/camera_info"):
            info = conversions.depth_info_message(messages, geometry)
            self._emit("depth/camera_info", info, stamp)
        if self._wanted("points"):
            cloud = frame_cloud(
                geometry, self._parameters.max_depth_edge, self._parameters.point_stride
            )
            points = conversions.cloud_message(messages, cloud, stamp, geometry.view.frame_id)
            self._emit("points", points, stamp)
        if arrival is not None:
            self.counters.latencies.append(self._clock() - arrival)


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
