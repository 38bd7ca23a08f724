"""The core of every driver: messages in, messages out; no rclpy, no threads.

The drivers (a ROS node, a DDS participant, a recording) bring messages and a `Driver`; everything
between is here, so that what is tested on a recording is what runs on a robot.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qvggt_core.errors import QvggtError
from qvggt_core.geometry.camera import Camera
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame, LoopStatus, Losses, Reconstruction, Scale, Up
from qvggt_core.stream.sensor_inputs import SensorInputs
from qvggt_ros.calibrations import Calibrations
from qvggt_ros.counters import Counters, Status
from qvggt_ros.io.conversions import frames_of, stamp_ns
from qvggt_ros.io.images import PictureDecoder
from qvggt_ros.masks import Masks
from qvggt_ros.metric_sensors import MetricSensors
from qvggt_ros.publishing import Driver, Publishing

logger = logging.getLogger(__name__)

_ARRIVALS_KEPT = 1024
# Older than its predecessor by less is late on its way; by more, time itself went back.
_LATE_NS = 1_000_000_000
_WARNING_HOLDS_S = 10.0


class FrameReconstructor(Protocol):
    """What a session needs of a reconstructor."""

    @property
    def sensors(self) -> SensorInputs:
        """Where samples of other sensors go in."""

    @property
    def losses(self) -> Losses:
        """What has no geometry so far."""

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame of each camera; return what became known."""

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come of the frames so far."""

    def reset(self, reason: str) -> None:
        """Forget all maps."""

    def set_parameters(self, parameters: Parameters) -> None:
        """Take changed parameters."""


class ReconstructionSession:
    """Turns image messages into pose, odometry, depth, cloud, path and TF messages.

    Attributes:
        counters: what happened so far.
    """

    def __init__(
        self,
        reconstructor: FrameReconstructor,
        parameters: Parameters,
        driver: Driver,
        *,
        rectified: Collection[str] = (),
        live: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Connect a reconstructor to a driver.

        Args:
            reconstructor: turns frames into geometry.
            parameters: names of frames and what goes into clouds.
            driver: where messages go.
            rectified: names of the cameras whose images are rectified already (`image_rect`).
            live: whether a map is kept for `save_map`, an image that comes late is left out, and
                time that goes back (a recording that is played in a loop) resets everything.
            clock: seconds, for latencies only.
        """
        self.counters = Counters(
            losses=reconstructor.losses, warning_holds_s=_WARNING_HOLDS_S if live else math.inf
        )
        self._reconstructor = reconstructor
        self._parameters = parameters
        self._driver = driver
        self._live = live
        self._clock = clock
        self._rectified = frozenset(rectified)
        self._publishing = Publishing(driver, parameters, self.counters.warn, keep_map=live)
        self._calibrations = {
            camera: Calibrations(
                self.counters.reject, self.counters.warn, rectified=camera in rectified
            )
            for camera in parameters.cameras
        }
        self._assumed: dict[str, Camera] = {}
        self._masks = {camera: Masks(self.counters.reject) for camera in parameters.cameras}
        self._pictures = {
            camera: PictureDecoder(self.counters.warn) for camera in parameters.cameras
        }
        self._arrivals: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._newest_ns: int | None = None
        self._sensors = MetricSensors(reconstructor.sensors, driver.lookup, self.counters)

    @property
    def scale(self) -> Scale:
        """The unit of the newest geometry."""
        return self._publishing.scale

    @property
    def up_values(self) -> dict[str, Any]:
        """What the map's vertical stands on, and its standard deviation in degrees."""
        up = self._publishing.up
        sigma = None if up.sigma is None else math.degrees(up.sigma)
        return {"up_source": up.source, "up_sigma_deg": sigma}

    @property
    def loop_values(self) -> dict[str, Any]:
        """What has become of places that are seen again."""
        loops = self._publishing.loops
        return {
            "loops_accepted": loops.accepted,
            "loops_rejected": dict(loops.rejected),
            "loop_shift": loops.shift if loops.accepted else None,
            "localisation": loops.localisation or None,
        }

    def assume(self, calibration: Camera, camera: str = "") -> None:
        """Take a calibration for the images of a camera that come without one."""
        self._assumed[camera] = calibration

    def on_camera_info(self, message: Any, camera: str = "") -> None:
        """Take a sensor_msgs/CameraInfo."""
        try:
            self._calibrations[camera].add(message)
        except QvggtError as error:
            self.counters.reject(f"calibration: {error}")
            return
        if len(self._parameters.cameras) > 1:
            # What is rectified already has the axes that the pair has in common.
            turn = np.eye(3) if camera in self._rectified else np.reshape(message.r, (3, 3))
            projection = np.array(message.p, np.float64).reshape(3, 4)
            self._sensors.on_projection(camera, projection, np.array(turn, np.float64))

    def on_mask(self, message: Any, camera: str = "") -> None:
        """Take a sensor_msgs/Image of mono8, non-zero where the image shows what stands still."""
        self._masks[camera].add(message)

    def on_odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry of the robot, a source of the scale."""
        self._sensors.on_odometry(message)

    def on_fix(self, message: Any) -> None:
        """Take a sensor_msgs/NavSatFix, a source of the scale."""
        self._sensors.on_fix(message)

    def on_range(self, message: Any) -> None:
        """Take a sensor_msgs/Range, a source of the scale."""
        self._sensors.on_range(message)

    def on_imu(self, message: Any) -> None:
        """Take a sensor_msgs/Imu, which shows which way is up."""
        self._sensors.on_imu(message)

    def on_image(self, message: Any) -> tuple[Reconstruction, ...]:
        """Take a sensor_msgs/Image or CompressedImage; publish and return what became known.

        A message that cannot be used is counted and is an event; nothing else is lost.
        """
        return self.on_images({self._parameters.cameras[0]: message})

    def on_images(self, images: Mapping[str, Any]) -> tuple[Reconstruction, ...]:
        """Take the images of a rig's cameras at one time, by the cameras' names.

        An image that cannot be used is lost alone, and with its set if it is the first camera's.
        """
        self.counters.received += len(images)
        arrival = self._clock()
        frames = [
            frame
            for camera in self._parameters.cameras
            if camera in images and (frame := self._frame(camera, images[camera])) is not None
        ]
        if frames and frames[0].source != self._parameters.cameras[0]:
            self._reject_set(frames, "an image came without one of the first camera")
            return ()
        if not frames or not self._is_in_time(frames):
            return ()
        self._sensors.camera_frame = frames[0].frame_id
        self._sensors.on_rig({frame.source: frame for frame in frames})
        for frame in frames:
            self._arrivals[frame.source, frame.stamp_ns] = arrival
        while len(self._arrivals) > _ARRIVALS_KEPT:
            self._arrivals.popitem(last=False)
        now_ns = self._driver.now_ns
        age = None if now_ns is None else (now_ns() - frames[0].stamp_ns) * 1e-9
        try:
            results = self._reconstructor.add(*frames)
        except QvggtError as error:
            self._reject_set(frames, str(error))
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
            self.counters.reject(str(error))
            return ()
        self._publish_all(results)
        self._publishing.finish_grid()
        return results

    def reset(self, reason: str = "reset on request") -> None:
        """Forget the map, the path and the views that wait."""
        self._reconstructor.reset(reason)
        self.counters.forget_warnings()
        self._driver.forget()
        self._newest_ns = None
        self._publishing.scale, self._publishing.up = Scale(), Up()
        self._publishing.loops = LoopStatus()
        self._publishing.forget_map()

    def set_parameters(self, parameters: Parameters) -> None:
        """Take parameters that differ from the former in what may change while running."""
        self._parameters = self._publishing.parameters = parameters
        self._reconstructor.set_parameters(parameters)

    def save_map(self) -> tuple[Path, int]:
        """Write the map of the current segment into `map_directory`; see `Publishing.save_map`.

        Raises:
            RecordingError: there is no map yet, or the file cannot be written.
        """
        return self._publishing.save_map()

    def reject(self, reason: str, *, is_image: bool) -> None:
        """Count a message that the driver could not even hand over."""
        self.counters.received += is_image
        self.counters.reject(reason)

    def status(self) -> Status:
        """Return the state: WARN while the scale is unknown or messages were rejected."""
        has_clock = self._driver.now_ns is not None
        status = Status.of(self.counters, self.scale, self._newest_ns, ages=has_clock)
        values = {**status.values, **self.up_values, **self.loop_values}
        plan = self._publishing.floor_plan
        if plan is None:
            return replace(status, values=values)
        values["map_grid"] = plan.missing or "published"
        if plan.missing and self.counters.published:
            return status.with_warning(f"no map_grid: {plan.missing}", values)
        return replace(status, values=values)

    def _frame(self, camera: str, message: Any) -> Frame | None:
        try:
            stamp = stamp_ns(message)
            image = self._pictures[camera].decode(message)
        except QvggtError as error:
            self.counters.reject(f"{camera}: {error}" if camera else str(error))
            return None
        self.counters.decoded += 1
        frame_id = frames_of(message)[0]
        height, width = image.shape[:2]
        calibration = self._calibrations[camera].at(stamp, width, height, frame_id)
        mask = self._masks[camera].at(stamp, width, height)
        self.counters.uncalibrated += calibration is None
        if calibration is None:
            assumed = self._assumed.get(camera)
            fits = assumed is not None and (assumed.width, assumed.height) == (width, height)
            calibration = assumed if fits else None
        frame_id = frame_id or self._parameters.camera_frame
        return Frame(stamp, image, calibration, frame_id, camera, mask)

    def _is_in_time(self, frames: Sequence[Frame]) -> bool:
        stamp, newest = frames[0].stamp_ns, self._newest_ns
        if newest is not None and stamp == newest:
            self._reject_set(frames, "an image has the stamp of its predecessor")
            return False
        if self._live and newest is not None and stamp < newest:
            seconds = (newest - stamp) * 1e-9
            if newest - stamp < _LATE_NS:
                self._reject_set(
                    frames, f"an image came late: {seconds:.3f} s older than its predecessor"
                )
                return False
            self.reset(f"time went back by {seconds:.3f} s")
        self._newest_ns = stamp
        return True

    def _reject_set(self, frames: Sequence[Frame], reason: str) -> None:
        """Count each of the images that are left out together."""
        for _ in frames:
            self.counters.reject(reason)

    def _publish_all(self, results: tuple[Reconstruction, ...]) -> None:
        for result in results:
            self._publish(result)

    def _publish(self, result: Reconstruction) -> None:
        counters = self.counters
        counters.windows += result.window_size > 0
        if result.confirmation is not None:
            counters.confirmation = result.confirmation
            counters.verdicts[result.confirmation.verdict.value] += 1
        for event in result.events:
            logger.info("%s", event)
            counters.events.append(event)
        if not result.frames:
            self._publishing.correct(result)
            return
        # A segment that a loop joins to another is none more.
        is_new = result.segment != self._publishing.segment and result.odometry_segment is None
        counters.segments += is_new
        self._publishing.begin(result)
        for geometry in result.frames:
            counters.published += 1
            counters.keyframes += geometry.is_keyframe
            counters.lost += geometry.is_lost
            arrival = self._arrivals.pop((geometry.view.source, geometry.view.stamp_ns), None)
            self._publishing.frame(geometry)
            if arrival is not None:
                counters.latencies.append(self._clock() - arrival)
        self._publishing.path(result.frames[-1].view.stamp_ns)
        self._publishing.grid(result)
