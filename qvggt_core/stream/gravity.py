"""Which way is up in a map: by an accelerometer, else by the ground, else as the first camera was.

At rest an accelerometer shows what holds it up. In motion it shows the camera's acceleration too,
which is nothing in the mean over seconds: a camera does not get faster for ever. The mean is taken
in the map, along whose axes the camera's own turns have been undone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from qvggt_core.stream.frame import Up

STANDARD_GRAVITY = 9.806_65

IMU, GROUND, FIRST_CAMERA = "imu", "ground plane", "first camera"

_SAMPLES_KEPT = 8192
_UPS_KEPT = 600
_GROUNDS_KEPT = 12
_FEWEST_GROUNDS = 3
# An acceleration that differs from gravity by more is that of a push, m/s^2.
_PUSH = 2.5
# A sensor at rest shows gravity to a few per cent.
_CALIBRATED = 0.06
_LEAST_S = 2.0
# Gyroscope and images may differ by this share of a turn, and by this angle, until one is wrong.
_TURN_SHARE, _TURN_ANGLE = 0.3, float(np.radians(1.5))
_MAX_CONTRADICTED = 0.3
_MAX_PUSHED = 0.5
_FEWEST_STEPS = 20
_MAX_SIGMA = float(np.radians(3.0))
_MAX_GROUND_SPREAD = float(np.radians(3.0))
# Speed that a camera may have gained over the time of a mean, m/s.
_GAIN = 0.3
_MAX_FRAME_GAP_S = 1.0


@dataclass(frozen=True)
class _Sample:
    acceleration: NDArray[np.float64]
    turn_rate: NDArray[np.float64]


class Gravity:
    """Gathers what shows the vertical of one map segment.

    Attributes:
        problem: why the accelerometer is not believed, for an operator; empty if it is, or if
            there is none.
    """

    def __init__(self) -> None:
        """Begin without any sensor."""
        self._stamps: list[int] = []
        self._samples: list[_Sample] = []
        self.begin_map()

    def begin_map(self) -> None:
        """Begin a segment: its map is turned in a way of its own."""
        self.problem = ""
        self._ups: deque[NDArray[np.float64]] = deque(maxlen=_UPS_KEPT)
        self._grounds: deque[NDArray[np.float64]] = deque(maxlen=_GROUNDS_KEPT)
        self._ground_sigma = 0.0
        self._seconds = 0.0
        self._steps, self._contradicted, self._pushed = 0, 0, 0
        self._last: tuple[int, NDArray[np.float64]] | None = None

    def add_imu(
        self,
        stamp_ns: int,
        acceleration: NDArray[np.float64],
        turn_rate: NDArray[np.float64],
    ) -> None:
        """Take a sample; what is not finite, or older than the last one, is left out.

        Args:
            stamp_ns: of the sample.
            acceleration: (3,) m/s^2 along the camera's optical axes; at rest it points up.
            turn_rate: (3,) rad/s about the same.
        """
        sample = _Sample(np.asarray(acceleration, float), np.asarray(turn_rate, float))
        if not (np.isfinite(sample.acceleration).all() and np.isfinite(sample.turn_rate).all()):
            return
        if self._stamps and stamp_ns <= self._stamps[-1]:
            if self._stamps[-1] - stamp_ns < 1_000_000_000:
                return
            self._stamps, self._samples = [], []
        self._stamps.append(stamp_ns)
        self._samples.append(sample)
        if len(self._stamps) > 2 * _SAMPLES_KEPT:
            del self._stamps[:_SAMPLES_KEPT], self._samples[:_SAMPLES_KEPT]

    def observe(self, stamp_ns: int, map_from_camera: NDArray[np.float64]) -> None:
        """Take where the map has the camera (4, 4): samples since the last time count."""
        rotation = map_from_camera[:3, :3].copy()
        last, self._last = self._last, (stamp_ns, rotation)
        if last is None or not self._stamps or stamp_ns <= last[0]:
            return
        seconds = (stamp_ns - last[0]) * 1e-9
        first, end = bisect_left(self._stamps, last[0]), bisect_left(self._stamps, stamp_ns)
        if end - first < 2 or seconds > _MAX_FRAME_GAP_S:
            return
        samples = self._samples[first:end]
        if self._contradicts(samples, seconds, last[1], rotation):
            return
        times = np.array(self._stamps[first:end], dtype=np.int64)
        between = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([last[1], rotation])))
        turned = between((times - last[0]) / (stamp_ns - last[0]))
        force = turned.apply(np.stack([each.acceleration for each in samples])).mean(axis=0)
        if abs(float(np.linalg.norm(force)) - STANDARD_GRAVITY) > _PUSH:
            self._pushed += 1
            return
        self._ups.append(force)
        self._seconds += seconds

    def _contradicts(
        self,
        samples: list[_Sample],
        seconds: float,
        before: NDArray[np.float64],
        after: NDArray[np.float64],
    ) -> bool:
        """Return whether the gyroscope has the camera turn in another way than the images do."""
        mean = np.mean([each.turn_rate for each in samples], axis=0)
        turn = Rotation.from_matrix(before.T @ after).as_rotvec()
        off = float(np.linalg.norm(mean * seconds - turn))
        wrong = off > _TURN_ANGLE + _TURN_SHARE * float(np.linalg.norm(turn))
        self._steps += 1
        self._contradicted += wrong
        return wrong

    def observe_ground(self, up: NDArray[np.float64], sigma: float) -> None:
        """Take the normal (3,) of the ground in the map, and its standard deviation in radians."""
        self._grounds.append(up)
        self._ground_sigma = sigma

    @property
    def up(self) -> Up:
        """What is known: by the best source that has enough to go by."""
        found = self._by_imu()
        return found or self._by_ground() or Up()

    def _by_imu(self) -> Up | None:
        self.problem = self._sensor_problem()
        if self.problem or self._seconds < _LEAST_S:
            return None
        forces = np.stack(self._ups)
        force, spread = _robust_mean(forces)
        length = float(np.linalg.norm(force))
        if abs(length / STANDARD_GRAVITY - 1.0) > _CALIBRATED:
            self.problem = _not_gravity(f"{length:.2f} m/s^2 in the mean")
            return None
        # Neighbours have their accelerations in common; about four a second are independent.
        count = max(1.0, min(float(len(forces)), 4.0 * self._seconds))
        sigma = np.hypot(spread / np.sqrt(count), _GAIN / self._seconds) / length
        return Up(force / length, IMU, float(sigma)) if sigma <= _MAX_SIGMA else None

    def _sensor_problem(self) -> str:
        if self._steps < _FEWEST_STEPS:
            return ""
        if self._contradicted > _MAX_CONTRADICTED * self._steps:
            return (
                "the IMU turns in another way than the images: is its transform to the camera "
                "right, and is its clock the images'?"
            )
        if self._pushed > _MAX_PUSHED * self._steps:
            return _not_gravity("other forces most of the time")
        return ""

    def _by_ground(self) -> Up | None:
        if len(self._grounds) < _FEWEST_GROUNDS:
            return None
        normal, spread = _robust_mean(np.stack(self._grounds))
        length = float(np.linalg.norm(normal))
        if length <= 0.0 or spread > _MAX_GROUND_SPREAD:
            return None
        # Floors are level to half a degree; a slope is taken for level all the same. Grounds that
        # follow each other are of the same views, by and large.
        sigma = float(np.hypot(max(spread, self._ground_sigma), np.radians(0.5)))
        return Up(normal / length, GROUND, sigma) if sigma <= _MAX_SIGMA else None


def _not_gravity(what: str) -> str:
    return (
        f"the accelerometer shows {what}, not gravity's {STANDARD_GRAVITY:.2f} m/s^2: is it "
        "calibrated, and was gravity taken out of it?"
    )


def _robust_mean(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the mean of vectors (N, 3) with less weight far off, and their usual deviation."""
    middle = np.median(vectors, axis=0)
    usual = 0.0
    for _ in range(3):
        distance = np.linalg.norm(vectors - middle, axis=1)
        usual = max(float(np.median(distance)), 1e-9)
        weights = 1.0 / np.maximum(1.0, distance / (2.0 * usual))
        middle = weights @ vectors / weights.sum()
    return middle, usual


def levelling(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smallest rotation (3, 3) that takes a direction (3,) to z; heading stays."""
    up = up / np.linalg.norm(up)
    axis = np.cross(up, [0.0, 0.0, 1.0])
    sine, cosine = float(np.linalg.norm(axis)), float(up[2])
    if sine < 1e-12:
        return np.eye(3) if cosine > 0 else np.diag([1.0, -1.0, -1.0])
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, cosine)).as_matrix()
