"""Messages of sensors that know metres, as sources of the map's scale: all optional."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qvggt_core.errors import QvggtError
from qvggt_core.geometry.geodetic import LocalTangentPlane
from qvggt_core.geometry.poses import transform
from qvggt_core.stream.frame import Array64, Frame
from qvggt_core.stream.known_lengths import RangeReading
from qvggt_core.stream.sensor_inputs import SensorInputs
from qvggt_ros.counters import Counters
from qvggt_ros.io.conversions import frames_of, read_pose, stamp_ns
from qvggt_ros.steps import Steps

# Of a fix whose covariance is not known: a good receiver under an open sky.
_USUAL_GPS_SIGMA = 1.5
_LEAST_BASELINE_M = 1e-3
_LARGEST_LONGITUDE = 360.0
# Of a satellite's orbit: no receiver is higher.
_HIGHEST_M = 1e6


class MetricSensors:
    """Gives what messages know in metres to a reconstruction.

    Attributes:
        camera_frame: optical frame of the first camera; None before its first image, and until
            then nothing is given on that needs to know where the camera sits.
    """

    def __init__(
        self,
        inputs: SensorInputs,
        lookup: Callable[[str, str, int], Array64 | None],
        counters: Counters,
    ) -> None:
        """Connect messages to a reconstruction.

        Args:
            inputs: of the reconstruction.
            lookup: returns transforms; see `Driver`.
            counters: counts what cannot be used.
        """
        self.camera_frame: str | None = None
        self._inputs = inputs
        self._lookup = lookup
        self._counters = counters
        self._tangent: LocalTangentPlane | None = None
        self._projections: dict[str, tuple[Array64, Array64]] = {}
        self._known_places: set[str] = set()
        self._odometry_steps, self._gps_steps = Steps(), Steps()
        # An IMU that is screwed to the camera: hundreds of messages a second need one look-up.
        self._mounts: dict[str, Array64] = {}

    def on_odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry of the robot."""
        try:
            odom_from_base = read_pose(message)
            stamp = stamp_ns(message)
        except QvggtError as error:
            self._counters.reject(f"odometry: {error}")
            return
        if problem := self._odometry_steps.refusal(stamp, odom_from_base[:3, 3]):
            self._counters.reject(f"odometry: {problem}")
            return
        if self.camera_frame is None:
            return
        base = frames_of(message)[1]
        base_from_camera = self._lookup(base, self.camera_frame, stamp)
        if base_from_camera is None:
            self._counters.warn(
                f"no transform from {base} to {self.camera_frame}: where the camera sits on the "
                "robot is estimated while it turns, which makes the scale less certain"
            )
            self._inputs.add_odometry(stamp, odom_from_base[:3, 3])
            return
        odom_from_camera = odom_from_base @ base_from_camera
        self._inputs.add_odometry(stamp, odom_from_camera[:3, 3], odom_from_camera)

    def _stamp(self, message: Any, kind: str) -> int | None:
        try:
            return stamp_ns(message)
        except QvggtError as error:
            self._counters.reject(f"{kind}: {error}")
            return None

    def on_fix(self, message: Any) -> None:
        """Take a sensor_msgs/NavSatFix; one without a position is left out."""
        stamp = self._stamp(message, "GPS")
        if stamp is None:
            return
        place = (message.latitude, message.longitude, message.altitude)
        if message.status.status < 0 or not all(map(math.isfinite, place)):
            return
        if abs(message.latitude) > 90.0 or abs(message.longitude) > _LARGEST_LONGITUDE:
            self._counters.reject(
                f"GPS: a latitude of {message.latitude:g} and a longitude of "
                f"{message.longitude:g} degrees are none"
            )
            return
        if abs(message.altitude) > _HIGHEST_M:
            self._counters.reject(f"GPS: an altitude of {message.altitude:g} m is none")
            return
        if self._tangent is None:
            self._tangent = LocalTangentPlane(*place)
        if problem := self._gps_steps.refusal(stamp, self._tangent.position(*place)):
            self._counters.reject(f"GPS: {problem}")
            return
        variance = float(
            np.mean(np.array(message.position_covariance, dtype=np.float64)[[0, 4, 8]])
        )
        known = message.position_covariance_type > 0 and math.isfinite(variance) and variance > 0.0
        sigma = math.sqrt(variance) if known else _USUAL_GPS_SIGMA
        self._inputs.add_gps(stamp, self._tangent.position(*place), sigma)

    def on_range(self, message: Any) -> None:
        """Take a sensor_msgs/Range; what is out of the sensor's reach is left out (REP-117)."""
        stamp = self._stamp(message, "range")
        if stamp is None:
            return
        metres = float(message.range)
        least, most = float(message.min_range), float(message.max_range)
        if not math.isfinite(metres) or metres <= 0.0 or metres < least or 0.0 < most <= metres:
            return
        if self.camera_frame is None:
            return
        sensor = frames_of(message)[0]
        camera_from_sensor = self._lookup(self.camera_frame, sensor, stamp)
        if camera_from_sensor is None:
            self._counters.warn(
                f"no transform from {self.camera_frame} to {sensor}: its range gives no scale"
            )
            return
        angle = float(message.field_of_view)
        half = 0.5 * angle if math.isfinite(angle) and 0.0 < angle < math.pi else 0.02
        self._inputs.add_range(RangeReading(stamp, metres, camera_from_sensor, half))

    def on_imu(self, message: Any) -> None:
        """Take a sensor_msgs/Imu; its orientation is not used, only what it measures."""
        stamp = self._stamp(message, "IMU")
        if stamp is None:
            return
        # REP-145: a covariance of -1 marks what the sensor does not have.
        lacks = -1.0 in (
            message.linear_acceleration_covariance[0],
            message.angular_velocity_covariance[0],
        )
        if self.camera_frame is None or lacks:
            return
        sensor = frames_of(message)[0]
        turned = self._mounts.get(sensor)
        if turned is None:
            found = self._lookup(self.camera_frame, sensor, stamp)
            if found is None:
                self._counters.warn(
                    f"no transform from {self.camera_frame} to {sensor}: its IMU does not show "
                    "which way is up"
                )
                return
            turned = self._mounts[sensor] = found[:3, :3]
        force, rate = message.linear_acceleration, message.angular_velocity
        self._inputs.add_imu(
            stamp,
            turned @ np.array([force.x, force.y, force.z]),
            turned @ np.array([rate.x, rate.y, rate.z]),
        )

    def on_projection(self, camera: str, projection: Array64, turn: Array64) -> None:
        """Take what a stereo calibration knows of a camera.

        Args:
            camera: name of it.
            projection: P (3, 4); the last column of a pair's second camera has the baseline.
            turn: R (3, 3) from the axes of its images to those that the pair has in common; all
                zeros where the driver left it empty.
        """
        if projection[0, 0] > 0.0 and np.isfinite(projection).all() and np.isfinite(turn).all():
            self._projections[camera] = (projection, turn if turn.any() else np.eye(3))

    def on_rig(self, frames: Mapping[str, Frame]) -> None:
        """Take the frames of a rig's cameras: a stereo calibration or TF may know their places."""
        first, *others = frames.values()
        for frame in others:
            if frame.source in self._known_places:
                continue
            found = self._by_projections(first.source, frame.source)
            if found is None and first.frame_id != frame.frame_id:
                found = self._lookup(frame.frame_id, first.frame_id, frame.stamp_ns)
            if found is not None and np.linalg.norm(found[:3, 3]) >= _LEAST_BASELINE_M:
                self._known_places.add(frame.source)
                self._inputs.set_extrinsics(frame.source, found)

    def _by_projections(self, first: str, other: str) -> Array64 | None:
        """Return other_from_first (4, 4) by the P and R of both; None where P has no baseline."""
        if first not in self._projections or other not in self._projections:
            return None
        (own, own_turn), (its, its_turn) = self._projections[first], self._projections[other]
        apart = its[:, 3] / its[0, 0] - own[:, 3] / own[0, 0]
        if np.linalg.norm(apart) < _LEAST_BASELINE_M:
            return None
        return transform(its_turn.T @ own_turn, its_turn.T @ apart)
