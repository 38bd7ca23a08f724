"""What the robot knows of a window's cameras before the network runs, as input for it.

Depth Anything 3 takes known cameras (section 3.3 of its paper). Poses come from odometry,
interpolated at the images' stamps, intrinsics from the camera's calibration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.stream.frame import View

ConditionOn = Literal["none", "intrinsics", "odometry"]

_POSES_KEPT = 4096
_MAX_GAP_NS = 500_000_000
"""Between two samples the velocity is taken as constant; over a longer gap nothing is known."""
_MAX_AHEAD_NS = 100_000_000
"""How far the last two samples are extrapolated: odometry often comes after the image."""


@dataclass(frozen=True)
class KnownCameras:
    """Cameras of a window's S views.

    Attributes:
        intrinsics: (S, 3, 3) float64 in pixels.
        camera_from_world: (S, 4, 4) float64, lengths in metres, in a world of its own; None where
            poses are not known.
    """

    intrinsics: NDArray[np.float64]
    camera_from_world: NDArray[np.float64] | None = None


class OdometryPoses:
    """Poses of a camera by odometry, at any time between samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=_POSES_KEPT)

    def add(self, stamp_ns: int, odom_from_camera: NDArray[np.float64]) -> None:
        """Take a sample (4, 4); one that is older than the last begins anew."""
        if self._samples and stamp_ns <= self._samples[-1][0]:
            if stamp_ns == self._samples[-1][0]:
                return
            self._samples.clear()
        self._samples.append((stamp_ns, np.asarray(odom_from_camera, dtype=np.float64)))

    def at(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """Return the pose (4, 4) at a stamp, None where it is not known."""
        if not self._samples:
            return None
        stamps = np.array([stamp for stamp, _ in self._samples], dtype=np.int64)
        after = int(np.searchsorted(stamps, stamp_ns))
        if after < len(stamps) and stamps[after] == stamp_ns:
            return self._samples[after][1]
        if after == 0 or len(stamps) < 2:
            return None
        after = min(after, len(stamps) - 1)
        first_stamp, first = self._samples[after - 1]
        second_stamp, second = self._samples[after]
        span = second_stamp - first_stamp
        if span > _MAX_GAP_NS or stamp_ns - second_stamp > _MAX_AHEAD_NS:
            return None
        return _moved(first, second, (stamp_ns - first_stamp) / span)


def _moved(
    first: NDArray[np.float64], second: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Return the pose at a share of the way between two, beyond the second for more than one."""
    turn = Rotation.from_matrix(first[:3, :3].T @ second[:3, :3]).as_rotvec()
    rotation = first[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    return transform(rotation, first[:3, 3] + share * (second[:3, 3] - first[:3, 3]))


class Conditioning:
    """Gathers the known cameras of a window, as far as the parameter `condition_on` wants them.

    Attributes:
        shortfall: why the last window could not be conditioned; empty if it was, or if nothing is
            wanted.
    """

    def __init__(self, condition_on: ConditionOn) -> None:
        self.shortfall = ""
        self._condition_on = condition_on
        self._odometry = OdometryPoses()

    def add_odometry(self, stamp_ns: int, odom_from_camera: NDArray[np.float64]) -> None:
        """Take where odometry has the camera: (4, 4), optical axes, metres."""
        if self._condition_on == "odometry":
            self._odometry.add(stamp_ns, odom_from_camera)

    def cameras(self, views: Sequence[View]) -> KnownCameras | None:
        """Return the known cameras of a window's views, None to run without."""
        self.shortfall = ""
        if self._condition_on == "none":
            return None
        intrinsics = [view.intrinsics for view in views if view.intrinsics is not None]
        if len(intrinsics) < len(views):
            self.shortfall = "images came without a calibration (CameraInfo)"
            return None
        if self._condition_on == "intrinsics":
            return KnownCameras(np.stack(intrinsics))
        poses = [self._odometry.at(view.stamp_ns) for view in views]
        known = [pose for pose in poses if pose is not None]
        if len(known) < len(views):
            missing = views[next(i for i, pose in enumerate(poses) if pose is None)]
            self.shortfall = f"there is no odometry at {missing.stamp_ns} ns, the time of an image"
            return None
        if len({view.source for view in views}) > 1:
            self.shortfall = "odometry is followed for one camera alone, the rig has several"
            return None
        return KnownCameras(np.stack(intrinsics), inverse(np.stack(known)))


def similarity_scale(source: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Return the scale of the similarity that takes points (S, 3) to others (Umeyama 1991).

    NaN where all source points are one.
    """
    centred_source, centred_target = source - source.mean(axis=0), target - target.mean(axis=0)
    spread = float((centred_source**2).sum())
    if spread == 0.0:
        return float("nan")
    u, values, vt = np.linalg.svd(centred_target.T @ centred_source)
    values[-1] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    return float(values.sum() / spread)
