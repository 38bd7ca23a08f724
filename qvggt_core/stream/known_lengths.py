"""Lengths that are known in metres and that an image shows too: a ratio each for the map's unit.

A range sensor's reading, the height of the camera above the ground, and the distance between two
cameras of a rig.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import FrameGeometry
from qvggt_core.stream.level_ground import LevelGround

_READINGS_KEPT = 512
_MAX_APART_NS = 60_000_000
# Of a patch of depth that a range sensor sees: what it spreads over in logarithms at most, when it
# is all of one surface.
_MAX_PATCH_SPREAD = 0.15
_FEWEST_PIXELS = 5
# A sensor that looks down to this cosine gives a height.
_DOWN = 0.9
# In logarithms; the last is how far a network is off in the distance between cameras, for all
# windows alike.
_RANGE_SIGMA, _BASELINE_SIGMA, _BASELINE_COMMON = 0.03, 0.05, 0.1


@dataclass(frozen=True)
class RangeReading:
    """A distance along a known axis.

    Attributes:
        stamp_ns: of the reading.
        metres: from the sensor to what it sees.
        camera_from_sensor: (4, 4), camera optical; the sensor looks along its x axis (REP-117).
        half_angle: radians from the axis within which it sees.
    """

    stamp_ns: int
    metres: float
    camera_from_sensor: NDArray[np.float64]
    half_angle: float = 0.02

    @property
    def end(self) -> NDArray[np.float64]:
        """Where the axis ends, (3,) metres in the camera's frame."""
        mount = self.camera_from_sensor
        return mount[:3, 3] + self.metres * mount[:3, 0]


@dataclass(frozen=True)
class LengthRatio:
    """Length of a map unit by one image.

    Attributes:
        source: as in `Scale`.
        metres: per unit.
        sigma: standard deviation of its logarithm, of this ratio's own.
        common: the same, of what this and other ratios of the source are off by alike.
    """

    source: str
    metres: float
    sigma: float
    common: float = 0.0


class KnownLengths:
    """What is known in metres, and what frames show of it.

    Attributes:
        camera_height: of the first camera above the ground, metres; 0 if unknown.
    """

    def __init__(self, camera_height: float = 0.0) -> None:
        self.camera_height = camera_height
        self._readings: deque[RangeReading] = deque(maxlen=_READINGS_KEPT)
        self._baselines: dict[str, float] = {}

    def add_range(self, reading: RangeReading) -> None:
        """Take a reading; what is no distance is left out."""
        if np.isfinite(reading.metres) and reading.metres > 0.0:
            self._readings.append(reading)

    def set_baseline(self, source: str, metres: float) -> None:
        """Take how far a rig's camera is from its first one."""
        if np.isfinite(metres) and metres > 0.0:
            self._baselines[source] = metres

    def altitude(self, stamp_ns: int, map_from_camera: NDArray[np.float64]) -> float | None:
        """Return how high the camera is above what a sensor that looks down sees, metres."""
        reading = self._reading(stamp_ns)
        if reading is None:
            return None
        rotation = map_from_camera[:3, :3]
        if -(rotation @ reading.camera_from_sensor[:3, 0])[2] < _DOWN:
            return None
        return -float((rotation @ reading.end)[2])

    def ratios(
        self, frames: Sequence[FrameGeometry], *, rig_holds: bool = True
    ) -> list[tuple[int, LengthRatio]]:
        """Return what new frames give, with their stamps.

        Args:
            frames: in map units, a rig's of one time next to each other, its first camera first.
            rig_holds: whether how the network relates a rig's cameras is believed.
        """
        found: list[tuple[int, LengthRatio | None]] = []
        first = frames[0].view.source if frames else ""
        head: FrameGeometry | None = None
        for frame in frames:
            stamp = frame.view.stamp_ns
            if frame.view.source == first:
                head = frame
                reading = self._reading(stamp)
                if reading is not None:
                    found.append((stamp, range_ratio(reading, frame)))
            elif head is not None and rig_holds:
                found.append((stamp, self._baseline_ratio(head, frame)))
        return [(stamp, ratio) for stamp, ratio in found if ratio is not None]

    def _reading(self, stamp_ns: int) -> RangeReading | None:
        near = min(self._readings, key=lambda each: abs(each.stamp_ns - stamp_ns), default=None)
        if near is None or abs(near.stamp_ns - stamp_ns) > _MAX_APART_NS:
            return None
        return near

    def _baseline_ratio(self, head: FrameGeometry, frame: FrameGeometry) -> LengthRatio | None:
        metres = self._baselines.get(frame.view.source)
        units = float(np.linalg.norm(frame.map_from_camera[:3, 3] - head.map_from_camera[:3, 3]))
        # By followed points, a rig is placed as it is known to be: that says nothing new of it.
        if metres is None or units <= 0.0 or head.followed is not None:
            return None
        return LengthRatio("baseline", metres / units, _BASELINE_SIGMA, _BASELINE_COMMON)


def range_ratio(reading: RangeReading, frame: FrameGeometry) -> LengthRatio | None:
    """Return a map unit's length by a reading within the image; None where depth has no answer."""
    end = reading.end
    if end[2] <= 0.0:
        return None
    column, row, _ = frame.intrinsics @ (end / end[2])
    height, width = frame.depth.shape
    reach = np.tan(reading.half_angle) * reading.metres / end[2] * frame.intrinsics[0, 0]
    reach = max(1, min(round(reach), width // 8))
    if not (reach <= column < width - reach and reach <= row < height - reach):
        return None
    rows = slice(round(row) - reach, round(row) + reach + 1)
    columns = slice(round(column) - reach, round(column) + reach + 1)
    seen = frame.depth[rows, columns]
    seen = seen[np.isfinite(seen)].astype(np.float64)
    if len(seen) < _FEWEST_PIXELS:
        return None
    low, middle, high = np.percentile(np.log(seen), (10, 50, 90))
    if high - low > _MAX_PATCH_SPREAD:
        return None
    return LengthRatio("range", float(end[2] / np.exp(middle)), _RANGE_SIGMA)


def height_ratio(camera_height: float, ground: LevelGround) -> LengthRatio:
    """Return a map unit's length by the camera's height, metres, above a ground in map units."""
    return LengthRatio("camera height", camera_height / ground.height, ground.sigma, ground.common)
