"""How long a map unit is in metres: what all sources give, fused, followed, and its state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import Scale, ScaleState
from qvggt_core.stream.path_alignment import Freedom
from qvggt_core.stream.position_scale import PositionKind, PositionScale
from qvggt_core.stream.ratio_scale import RatioScale
from qvggt_core.stream.scale_estimate import FusedScale, ScaleEstimate, fuse
from qvggt_core.stream.scale_history import ScaleHistory

METRIC_SIGMA = 0.08
"""Standard deviation of the scale's logarithm, by what was measured, at which it becomes known."""

STALE_SIGMA = 0.12
"""The same, grown without any new measurement, from which it is stale."""

_MAX_TOTAL_SIGMA = 0.15
# A change by more is believed when so many estimates in a row give it.
_JUMP = 0.1
_TO_CONFIRM = 4
_EVENT_CHANGE = 0.1

ODOMETRY, GPS, RANGE, ALTITUDE = "odometry", "gps", "range", "altitude"
BASELINE, CAMERA_HEIGHT, METRIC_DEPTH = "baseline", "camera height", "metric depth"
CONDITIONING, SAVED_MAP = "odometry as input", "saved map"

_ALTITUDE_AXIS = np.array([0.0, 0.0, 1.0])
# Odometry of the base, where the camera's mount on it is not known, and GPS of an antenna.
_LEVER = Freedom(noise=0.005, offset_s=0.1, lever=0.3)
_GPS = Freedom(noise=0.5, lever=0.3, correlated=1.5)
_POSITIONS = {
    ODOMETRY: PositionKind(
        ODOMETRY, Freedom(noise=0.005, offset_s=0.1), systematic=0.01, adds_up=True
    ),
    GPS: PositionKind(GPS, _GPS, systematic=0.005, max_gap_s=2.5),
    # One number of a position, and noisy: what all images say of it is used.
    ALTITUDE: PositionKind(
        ALTITUDE,
        Freedom(noise=0.03, axis=_ALTITUDE_AXIS),
        systematic=0.03,
        spacing=1 / 12,
        averaged=16,
        least=0.5,
    ),
}
_RATIOS = {
    RANGE: 0.01,
    BASELINE: 0.01,
    CAMERA_HEIGHT: 0.02,
    METRIC_DEPTH: 0.07,
    CONDITIONING: 0.02,
    SAVED_MAP: 0.02,
}
# Ratios that an estimate needs: fewer where each is of many points.
_FEWEST = {BASELINE: 3, CAMERA_HEIGHT: 3, METRIC_DEPTH: 3, CONDITIONING: 1, SAVED_MAP: 3}


class MetricScale:
    """The similarity from a map segment's units to metres.

    A monocular map has a unit of its own, and drifts in it. Sources compare lengths of the map
    with metres; what they give is fused with its variance, and followed: the scale changes with
    the map's drift, without a jump of the pose, from where the camera is. It becomes metric when
    it is known to `METRIC_SIGMA`, and stale when the camera has gone on for so long without a
    measurement that it may have drifted by `STALE_SIGMA`. What contradicts the map's path, or the
    other sources, has no part in it.

    Attributes:
        history: of the segment, to see its scale from both sides.
        noise: standard deviation of the scale's logarithm by what was measured, without what a
            source gets wrong all the time; infinite where no source gives it.
    """

    def __init__(self, metres_per_unit: float = 0.0, min_distance: float = 1.0) -> None:
        """Start a segment.

        Args:
            metres_per_unit: known scale, which no source then touches; 0 if unknown.
            min_distance: metres of positions after which their scale is trusted.
        """
        self._parameter = metres_per_unit
        self._positions = {
            name: PositionScale(kind, min_distance) for name, kind in _POSITIONS.items()
        }
        self._ratios = {
            name: RatioScale(name, sigma, _FEWEST.get(name, 5)) for name, sigma in _RATIOS.items()
        }
        self.reset()

    @property
    def scale(self) -> Scale:
        """What is known of the scale."""
        return self._scale

    @property
    def min_distance(self) -> float:
        """Metres of positions after which their scale is trusted."""
        return self._positions[ODOMETRY].min_distance

    @min_distance.setter
    def min_distance(self, metres: float) -> None:
        for source in self._positions.values():
            source.min_distance = metres

    @property
    def way(self) -> float:
        """How far the camera has come in this segment, map units."""
        return self._way

    @property
    def odometry_offset_s(self) -> float:
        """What is added to an image's stamp for the same instant's of odometry, as estimated."""
        return self._positions[ODOMETRY].offset_s

    def set_parameter(self, metres_per_unit: float) -> None:
        """Replace the known scale; 0 leaves it to the sources again."""
        if metres_per_unit == self._parameter:
            return
        self._parameter = metres_per_unit
        self._change(Scale(metres_per_unit, "parameter") if metres_per_unit else Scale())
        self.noise = 0.0 if metres_per_unit else np.inf
        self._begin_sources()

    def reset(self) -> None:
        """Begin a segment with a unit of its own."""
        self._scale = Scale(self._parameter, "parameter") if self._parameter else Scale()
        self._offset = np.zeros(3)
        self._last_given = np.zeros(3)
        self._last_seen: NDArray[np.float64] | None = None
        self._way = 0.0
        self._waiting: list[float] = []
        self.noise = 0.0 if self._parameter else np.inf
        self._begin_sources()

    def _begin_sources(self) -> None:
        for source in self._sources():
            source.begin_map()
        self.history = ScaleHistory(self._positions, self._ratios)

    def _sources(self) -> Iterator[PositionScale | RatioScale]:
        yield from self._positions.values()
        yield from self._ratios.values()

    def add_odometry(
        self, stamp_ns: int, position: NDArray[np.float64], *, of_camera: bool = True
    ) -> None:
        """Take a position of the camera, (3,) metres, in the odometry's own world.

        Args:
            stamp_ns: of the sample.
            position: where odometry has the camera, or the robot's base.
            of_camera: whether it is the camera's; else where it sits on the base is estimated.
        """
        source = self._positions[ODOMETRY]
        kind = _POSITIONS[ODOMETRY]
        source.kind = kind if of_camera else replace(kind, freedom=_LEVER)
        source.add(stamp_ns, position)

    def add_gps(self, stamp_ns: int, position: NDArray[np.float64], sigma: float) -> None:
        """Take a position of the antenna.

        Args:
            stamp_ns: of the fix.
            position: (3,) metres east, north and up of some place.
            sigma: standard deviation of it per axis, metres.
        """
        source, kind = self._positions[GPS], _POSITIONS[GPS]
        if np.isfinite(sigma) and sigma > 0.0:
            freedom = replace(kind.freedom, noise=max(0.02, sigma))
            source.kind = PositionKind(GPS, freedom, kind.systematic, kind.max_gap_s)
        source.add(stamp_ns, position)

    def add_altitude(self, stamp_ns: int, metres: float) -> None:
        """Take how high the camera is above a level ground, or above some height."""
        self._positions[ALTITUDE].add(stamp_ns, metres * _ALTITUDE_AXIS)

    def observe(self, stamp_ns: int, map_from_camera: NDArray[np.float64]) -> str | None:
        """Take where the map has the camera; return what changed, in words.

        Args:
            stamp_ns: capture time.
            map_from_camera: (4, 4), map units.
        """
        where = map_from_camera[:3, 3].copy()
        if self._last_seen is not None:
            self._way += float(np.linalg.norm(where - self._last_seen))
        self._last_seen = where
        if self._parameter:
            return None
        self.history.observe(stamp_ns, self._way)
        is_news = False
        for source in self._positions.values():
            is_news |= source.observe(stamp_ns, map_from_camera.copy(), self._way)
        return self._decide(stamp_ns, is_news)

    def observe_ratio(
        self,
        stamp_ns: int,
        metres_per_unit: float,
        sigma: float,
        source: str,
        common: float = 0.0,
    ) -> str | None:
        """Take the length of a map unit as one image or window gives it.

        Args:
            stamp_ns: of the image.
            metres_per_unit: in the unit of this segment's map.
            sigma: standard deviation of its logarithm, noise alone.
            source: "range", "baseline", "camera height", "metric depth", "odometry as input" or
                "saved map".
            common: standard deviation of what all ratios of the source are off by alike.

        Returns:
            What changed, in words.
        """
        if self._parameter:
            return None
        is_news = self._ratios[source].add(stamp_ns, metres_per_unit, sigma, self._way, common)
        return self._decide(stamp_ns, is_news)

    def explain(self, source: str, problem: str) -> None:
        """Take why a source of single ratios gives none, for an operator; empty if it does."""
        self._ratios[source].problem = problem

    def place(self, map_from_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a pose (4, 4) of the map with its position in metres, once the scale is known.

        Poses come in the order in which they are given out: a change of the scale begins at the
        last one.
        """
        self._last_given = map_from_camera[:3, 3].copy()
        placed = map_from_camera.copy()
        placed[:3, 3] = self.factor * placed[:3, 3] + self._offset
        return placed

    @property
    def factor(self) -> float:
        """Metres per unit, or 1 while unknown."""
        return self._scale.metres_per_unit or 1.0

    def _estimates(self) -> dict[str, ScaleEstimate]:
        unit = self.min_distance / self._rough_factor()
        found: dict[str, ScaleEstimate | None] = {
            name: source.estimate for name, source in self._positions.items()
        }
        found |= {name: source.estimate(unit) for name, source in self._ratios.items()}
        return {
            name: estimate.aged(self._way, unit)
            for name, estimate in found.items()
            if estimate is not None
        }

    def _rough_factor(self) -> float:
        if self._scale.metres_per_unit is not None:
            return self._scale.metres_per_unit
        for source in self._positions.values():
            if source.estimate is not None:
                return float(np.exp(source.estimate.log_scale))
        return 1.0

    def _decide(self, stamp_ns: int, is_news: bool) -> str | None:
        fused = fuse(self._estimates())
        self.noise = np.inf if fused is None else float(np.sqrt(fused.variance))
        if fused is None and self._scale.metres_per_unit is not None:
            self._scale = replace(self._scale, state=ScaleState.STALE, note=self._problems())
            return None
        if fused is None:
            begun = any(source.has_samples for source in self._sources())
            state = ScaleState.ESTIMATING if begun and self._way > 0 else ScaleState.UNKNOWN
            self._scale = Scale(state=state, note=self._problems())
            return None
        sigma, known = self.noise, self._scale.metres_per_unit
        if known is None:
            return self._become_known(fused, sigma)
        if not is_news:
            return self._hold(fused, sigma)
        return self._follow(fused, sigma, known)

    def _become_known(self, fused: FusedScale, sigma: float) -> str | None:
        total = float(np.sqrt(fused.total))
        if sigma > METRIC_SIGMA or total > _MAX_TOTAL_SIGMA:
            note = "; ".join(filter(None, [f"known to {total:.0%} so far", self._problems(fused)]))
            self._scale = Scale(state=ScaleState.ESTIMATING, sigma=total, note=note)
            return None
        self._change(self._metric(fused))
        return (
            f"the scale is known by {' and '.join(fused.agreeing)}: "
            f"{self._scale.metres_per_unit:.4g} m per unit, to {total:.1%}"
        )

    def _metric(self, fused: FusedScale) -> Scale:
        return Scale(
            float(np.exp(fused.log_scale)),
            fused.source,
            fused.stamp_ns,
            ScaleState.METRIC,
            float(np.sqrt(fused.total)),
            fused.agreeing,
            self._problems(fused),
        )

    def _hold(self, fused: FusedScale, sigma: float) -> str | None:
        """Keep the scale, ever less certain, while nothing is measured."""
        was = self._scale
        state = ScaleState.STALE if sigma > STALE_SIGMA else was.state
        total, note = float(np.sqrt(fused.total)), self._problems(fused)
        self._scale = replace(was, state=state, sigma=total, note=note)
        if state is ScaleState.STALE and was.state is not state:
            return f"the scale is stale: nothing has confirmed it for long{self._why()}"
        return None

    def _why(self) -> str:
        problems = self._problems()
        return f" ({problems})" if problems else ""

    def _follow(self, fused: FusedScale, sigma: float, known: float) -> str | None:
        change = fused.log_scale - float(np.log(known))
        if sigma > STALE_SIGMA:
            return self._hold(fused, sigma)
        if abs(change) > _JUMP and not self._is_confirmed(fused.log_scale):
            return None
        self._waiting = []
        self._change(self._metric(fused))
        if abs(change) <= _EVENT_CHANGE:
            return None
        return (
            f"the scale changed from {known:.4g} to {self._scale.metres_per_unit:.4g} m per unit, "
            f"by {fused.source}"
        )

    def _is_confirmed(self, log_scale: float) -> bool:
        """Return whether the last estimates all give about the same other scale."""
        self._waiting = [*self._waiting, log_scale][-_TO_CONFIRM:]
        return len(self._waiting) == _TO_CONFIRM and np.ptp(self._waiting) <= _JUMP

    def _problems(self, fused: FusedScale | None = None) -> str:
        found = [source.problem for source in self._sources() if source.problem]
        if fused is not None and fused.conflict:
            found.append(fused.conflict)
        return "; ".join(found)

    def _change(self, scale: Scale) -> None:
        if self._scale.metres_per_unit is not None and scale.metres_per_unit is not None:
            change = self._scale.metres_per_unit - scale.metres_per_unit
            self._offset = self._offset + change * self._last_given
        else:
            self._offset = np.zeros(3)
        self._scale = scale
