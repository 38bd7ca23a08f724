"""Velocity and uncertainty of a pose that comes frame by frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse
from qvggt_ros.io.conversions import OdometryEstimate


class MotionEstimator:
    """Turns the poses of one map into odometry.

    Every window is placed with an error of its own on top of those before it, so the variance of
    the pose is the sum of what the windows added: it grows with the way, as odometry's does. The
    twist is the difference of two poses, and as uncertain as they are against each other.
    """

    def __init__(self) -> None:
        """Start a map."""
        self._window = np.zeros(6)
        self._variance = np.zeros(6)
        self._last: tuple[int, NDArray[np.float64]] | None = None

    def window(self, position_sigma: float, rotation_sigma: float) -> None:
        """Add the uncertainty of one more window, in metres and radians."""
        self._window = np.repeat([position_sigma**2, rotation_sigma**2], 3)
        self._variance = self._variance + self._window

    def estimate(self, stamp_ns: int, world_from_child: NDArray[np.float64]) -> OdometryEstimate:
        """Return the odometry at the next pose.

        Args:
            stamp_ns: of the pose; without an earlier pose the twist is zero, and its variance is
                that of something unknown.
            world_from_child: (4, 4).
        """
        twist, variance = np.zeros(6), np.full(6, 1e6)
        if self._last is not None and stamp_ns > self._last[0]:
            seconds = (stamp_ns - self._last[0]) * 1e-9
            step = inverse(self._last[1]) @ world_from_child
            turn = Rotation.from_matrix(step[:3, :3])
            # The twist is that of the child's frame as it is now, not as it was.
            twist[:3] = turn.inv().apply(step[:3, 3]) / seconds
            twist[3:] = turn.as_rotvec() / seconds
            variance = 2.0 * self._window / seconds**2
        self._last = (stamp_ns, world_from_child)
        return OdometryEstimate(world_from_child, twist, self._variance.copy(), variance)
