"""How long a map unit is in metres: from a parameter, from odometry, or from metric depth."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from qvggt_core.stream.depth_scale import weighted_median
from qvggt_core.stream.frame import Scale

_ODOMETRY_KEPT = 4096
_PENDING_KEPT = 256
# Odometry between two samples is taken as straight; over a longer gap it is unknown.
_MAX_ODOMETRY_GAP_NS = 500_000_000
# Fixes are this share of the distance apart, and are kept over ten times the distance: one window
# of a network may well be 20 % off in its lengths.
_SPACING = 1 / 8
_KEPT = 10.0
# Pairs of fixes give the scale: over a shorter baseline the map's own noise adds to its lengths.
_BASELINE = 1 / 2
_MIN_PAIRS = 4
# A step by so many times the usual is odometry that was reset, not a robot that moved.
_JUMP = 5.0
# A scale that changes with every window is worse for a map than one that is off by less.
_TOLERANCE = 0.1
# Units that single windows or images give; their median is the scale.
_UNITS_KEPT = 9


@dataclass(frozen=True)
class _Fix:
    in_metres: NDArray[np.float64]
    in_units: NDArray[np.float64]


class MetricScale:
    """The similarity from a map segment's units to metres.

    A monocular map has a unit of its own, and drifts in it. Where odometry of the same robot is
    known, distances between the same places are compared; the scale is the weighted median of
    their ratios over the last part of the way. Once it is known it is held until the newest part
    disagrees by more than 10 %; then it changes, without a jump of the pose, from where the camera
    is.
    """

    def __init__(self, metres_per_unit: float = 0.0, min_distance: float = 1.0) -> None:
        """Start a segment.

        Args:
            metres_per_unit: known scale, which odometry then does not touch; 0 if unknown.
            min_distance: metres of odometry after which a scale is trusted.
        """
        self.min_distance = min_distance
        self._parameter = metres_per_unit
        self._stamps: deque[int] = deque(maxlen=_ODOMETRY_KEPT)
        self._positions: deque[NDArray[np.float64]] = deque(maxlen=_ODOMETRY_KEPT)
        self._last: NDArray[np.float64] = np.zeros(3)
        self._fixes: list[_Fix] = []
        self.reset()

    @property
    def scale(self) -> Scale:
        """What is known of the scale."""
        return self._scale

    def set_parameter(self, metres_per_unit: float) -> None:
        """Replace the known scale; 0 leaves it to odometry again."""
        if metres_per_unit == self._parameter:
            return
        self._parameter = metres_per_unit
        self._change(Scale(metres_per_unit, "parameter") if metres_per_unit else Scale())
        self._fixes = []

    def reset(self) -> None:
        """Begin a segment with a unit of its own."""
        self._scale = Scale(self._parameter, "parameter") if self._parameter else Scale()
        self._offset = np.zeros(3)
        self._last = np.zeros(3)
        self._pending: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=_PENDING_KEPT)
        self._fixes = []
        self._units: deque[float] = deque(maxlen=_UNITS_KEPT)

    def add_odometry(self, stamp_ns: int, position: NDArray[np.float64]) -> None:
        """Take a position of the camera, (3,) metres, in the odometry's own world."""
        if self._stamps and stamp_ns <= self._stamps[-1]:
            if stamp_ns == self._stamps[-1]:
                return
            # Time went back: a recording began anew.
            self._stamps.clear()
            self._positions.clear()
            self._pending.clear()
            self._fixes = []
        self._stamps.append(stamp_ns)
        self._positions.append(np.asarray(position, dtype=np.float64))

    def observe(self, stamp_ns: int, position: NDArray[np.float64]) -> str | None:
        """Take where the map says that the camera was, (3,) map units; return what changed."""
        self._last = np.asarray(position, dtype=np.float64)
        if self._parameter:
            return None
        self._pending.append((stamp_ns, self._last))
        # Odometry of an image's time may come after the image's geometry.
        is_news = False
        while self._pending and self._stamps and self._pending[0][0] <= self._stamps[-1]:
            is_news |= self._compare(*self._pending.popleft())
        return self._decide(stamp_ns) if is_news else None

    def observe_unit(self, stamp_ns: int, metres_per_unit: float, source: str) -> str | None:
        """Take the length of a map unit as one window or one image gives it.

        The median of the last nine is the scale, held as that of odometry is. Where the distances
        of odometry have given a scale, metric depth does not change it.

        Args:
            stamp_ns: of the image.
            metres_per_unit: in the unit of this segment's map.
            source: see `Scale`.

        Returns:
            What changed, in words.
        """
        if self._parameter or (self._scale.source == "odometry" and source != "odometry"):
            return None
        self._units.append(metres_per_unit)
        found, known = float(np.median(self._units)), self._scale.metres_per_unit
        if known is not None and abs(np.log(found / known)) <= _TOLERANCE:
            self._scale = Scale(known, self._scale.source, stamp_ns)
            return None
        self._change(Scale(found, source, stamp_ns))
        if known is None:
            return f"the scale is known by {source}: {found:.4g} m per unit"
        return f"the scale changed from {known:.4g} to {found:.4g} m per unit, by {source}"

    def place(self, map_from_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a pose (4, 4) of the map with its position in metres, once the scale is known."""
        placed = map_from_camera.copy()
        placed[:3, 3] = self.factor * placed[:3, 3] + self._offset
        return placed

    @property
    def factor(self) -> float:
        """Metres per unit, or 1 while unknown."""
        return self._scale.metres_per_unit or 1.0

    def _compare(self, stamp_ns: int, in_units: NDArray[np.float64]) -> bool:
        """Keep a place as a fix, if it is far enough from the last one; return whether it is."""
        in_metres = self._odometry_at(stamp_ns)
        if in_metres is None:
            self._fixes = []
            return False
        fix = _Fix(in_metres, in_units)
        if self._fixes:
            step = _distance(self._fixes[-1].in_metres, in_metres)
            if step < _SPACING * self.min_distance:
                return False
            steps = self._steps()
            if steps and step > _JUMP * float(np.median(steps)):
                self._fixes = []
        self._fixes.append(fix)
        while sum(self._steps()) > _KEPT * self.min_distance:
            self._fixes.pop(0)
        return True

    def _steps(self) -> list[float]:
        return [_distance(one.in_metres, other.in_metres) for one, other in pairwise(self._fixes)]

    def _odometry_at(self, stamp_ns: int) -> NDArray[np.float64] | None:
        stamps = np.array(self._stamps, dtype=np.int64)
        after = int(np.searchsorted(stamps, stamp_ns))
        if after == len(stamps):
            return None
        if stamps[after] == stamp_ns:
            return self._positions[after]
        if after == 0 or stamps[after] - stamps[after - 1] > _MAX_ODOMETRY_GAP_NS:
            return None
        share = float(stamp_ns - stamps[after - 1]) / float(stamps[after] - stamps[after - 1])
        return (1.0 - share) * self._positions[after - 1] + share * self._positions[after]

    def _decide(self, stamp_ns: int) -> str | None:
        way = sum(self._steps())
        if way < self.min_distance:
            return None
        metres = pdist(np.stack([fix.in_metres for fix in self._fixes]))
        units = pdist(np.stack([fix.in_units for fix in self._fixes]))
        far = (metres >= _BASELINE * self.min_distance) & (units > 0)
        if np.count_nonzero(far) < _MIN_PAIRS:
            return None
        found = float(np.exp(weighted_median(np.log(metres[far] / units[far]), metres[far])))
        known = self._scale.metres_per_unit
        if known is not None and abs(np.log(found / known)) <= _TOLERANCE:
            self._scale = Scale(known, "odometry", stamp_ns)
            return None
        self._change(Scale(found, "odometry", stamp_ns))
        if known is None:
            return f"the scale is known from {way:.2f} m of odometry: {found:.4g} m per unit"
        return f"the scale changed from {known:.4g} to {found:.4g} m per unit, by odometry"

    def _change(self, scale: Scale) -> None:
        if self._scale.metres_per_unit is not None and scale.metres_per_unit is not None:
            change = self._scale.metres_per_unit - scale.metres_per_unit
            self._offset = self._offset + change * self._last
        else:
            self._offset = np.zeros(3)
        self._scale = scale


def _distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(other - one))
