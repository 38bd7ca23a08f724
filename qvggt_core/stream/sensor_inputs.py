"""Where samples of a robot's other sensors go in: to the scale, the vertical and the network."""

from __future__ import annotations

import numpy as np

from qvggt_core.stream.conditioning import Conditioning
from qvggt_core.stream.frame import Array64
from qvggt_core.stream.gravity import Gravity
from qvggt_core.stream.known_lengths import KnownLengths, RangeReading
from qvggt_core.stream.metric_scale import MetricScale
from qvggt_core.stream.stereo_rig import StereoRig


class SensorInputs:
    """Hands samples to those of a reconstruction who use them."""

    def __init__(
        self,
        scale: MetricScale,
        lengths: KnownLengths,
        gravity: Gravity,
        conditioning: Conditioning,
        rig: StereoRig,
    ) -> None:
        """Connect those who use samples."""
        self._scale = scale
        self._lengths = lengths
        self._gravity = gravity
        self._conditioning = conditioning
        self._rig = rig

    def add_odometry(
        self, stamp_ns: int, position: Array64, odom_from_camera: Array64 | None = None
    ) -> None:
        """Take where odometry has the camera.

        Args:
            stamp_ns: of the sample.
            position: (3,) metres, in a world of odometry's own.
            odom_from_camera: (4, 4), optical axes; None where the camera's mount is not known, so
                that windows cannot be conditioned on it.
        """
        self._scale.add_odometry(stamp_ns, position, of_camera=odom_from_camera is not None)
        if odom_from_camera is not None:
            self._conditioning.add_odometry(stamp_ns, odom_from_camera)

    def add_gps(self, stamp_ns: int, position: Array64, sigma: float) -> None:
        """Take a position (3,) of an antenna on the robot; see `MetricScale.add_gps`."""
        self._scale.add_gps(stamp_ns, position, sigma)

    def add_range(self, reading: RangeReading) -> None:
        """Take a distance along a known axis."""
        self._lengths.add_range(reading)

    def add_imu(self, stamp_ns: int, acceleration: Array64, turn_rate: Array64) -> None:
        """Take what an IMU shows along the camera's axes; see `Gravity.add_imu`."""
        self._gravity.add_imu(stamp_ns, acceleration, turn_rate)

    def set_baseline(self, source: str, metres: float) -> None:
        """Take how far a rig's camera is from its first one."""
        self._lengths.set_baseline(source, metres)

    def set_extrinsics(self, source: str, other_from_first: Array64) -> None:
        """Take where a rig's camera sits: (4, 4) in metres, from the first one's optical axes."""
        self._lengths.set_baseline(source, float(np.linalg.norm(other_from_first[:3, 3])))
        self._rig.set_extrinsics(source, other_from_first)
