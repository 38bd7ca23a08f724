"""A map's scale from lengths that single images give in metres and in map units."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.scale_estimate import DRIFT, ScaleEstimate
from qvggt_core.stream.walk_filter import WalkFilter

COMPARED = 30
"""How many ratios are held against each other."""

_KEPT = 2048
_FEWEST = 5
# A ratio further from the median than so many times the usual is an outlier, and the usual is not
# more than so many times what the ratios were taken to be uncertain by.
_OUTLIER = 3.0
_UNUSUAL = 3.0
_USUAL = 1.4826


@dataclass(frozen=True)
class Ratio:
    """What one image gives.

    Attributes:
        stamp_ns: capture time of the image.
        log_ratio: logarithm of metres per map unit.
        sigma: standard deviation of it, of its own.
        way: how far the camera had come in the map, in its unit.
        common: standard deviation of what it and its neighbours are off by alike.
    """

    stamp_ns: int
    log_ratio: float
    sigma: float
    way: float
    common: float


class RatioScale:
    """Gathers ratios of metres to map units, and follows the scale through those that agree.

    Attributes:
        name: see `Scale.source`.
        problem: why there is no estimate, for an operator; empty where there is one.
        ratios: the last ones of this map, also those that are held against no other any more.
        systematic: standard deviation of the share by which all its ratios are off alike.
        fewest: ratios that an estimate needs.
    """

    def __init__(self, name: str, systematic: float, fewest: int = _FEWEST) -> None:
        """Start with none.

        Args:
            name: of the source.
            systematic: standard deviation of the share by which all its ratios are off alike.
            fewest: ratios that an estimate needs.
        """
        self.name = name
        self.problem = ""
        self.systematic = systematic
        self.fewest = fewest
        self.begin_map()

    def begin_map(self) -> None:
        """Forget all ratios: the map has another unit now."""
        self._ratios: deque[Ratio] = deque(maxlen=COMPARED)
        self.ratios: deque[Ratio] = deque(maxlen=_KEPT)
        self._filter = WalkFilter()
        self._estimate: ScaleEstimate | None = None
        self._unseen = 0

    @property
    def has_samples(self) -> bool:
        """Whether there is any ratio."""
        return bool(self._ratios)

    def add(
        self, stamp_ns: int, ratio: float, sigma: float, way: float, common: float = 0.0
    ) -> bool:
        """Take a ratio; return whether it can be one.

        Args:
            stamp_ns: capture time of the image.
            ratio: metres per map unit.
            sigma: standard deviation of its logarithm, of its own.
            way: how far the camera has come in the map, in its unit.
            common: the same, of what it and its neighbours are off by alike.
        """
        if not (np.isfinite([ratio, sigma, common]).all() and ratio > 0.0 and sigma > 0.0):
            self.problem = f"{self.name} gives lengths that are none ({ratio:g} m per unit)"
            return False
        found = Ratio(stamp_ns, float(np.log(ratio)), sigma, way, common)
        self._ratios.append(found)
        self.ratios.append(found)
        self._unseen += 1
        return True

    def estimate(self, unit: float) -> ScaleEstimate | None:
        """Return what the ratios give together, None where they are too few or too different.

        Args:
            unit: map units over which the scale drifts by `DRIFT`.
        """
        if len(self._ratios) < self.fewest:
            return None
        ratios = tuple(self._ratios)
        age = np.array([ratios[-1].way - each.way for each in ratios]) / max(unit, 1e-12)
        agrees = agreeing(ratios, DRIFT**2 * age)
        if agrees is None:
            self.problem = f"the lengths of {self.name} disagree with each other"
            return None
        self.problem = ""
        # The filter knows errors of single ratios; several in a row that are wrong alike it would
        # take for the map's drift.
        for at in np.flatnonzero(agrees):
            if at >= len(ratios) - self._unseen:
                self._take(ratios[at], unit)
        self._unseen = 0
        return self._estimate

    def _take(self, ratio: Ratio, unit: float) -> None:
        way = ratio.way if self._estimate is None else self._estimate.way
        step = max(0.0, ratio.way - way) / max(unit, 1e-12)
        found = self._filter.observe(step, ratio.log_ratio, ratio.sigma)
        systematic = common_error(self._ratios, self.systematic)
        self._estimate = ScaleEstimate(
            found.value, found.variance, systematic, ratio.stamp_ns, ratio.way
        )


def agreeing(ratios: Sequence[Ratio], walked: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Return which of N ratios agree (N,), None if not even most of them do.

    Args:
        ratios: of one source.
        walked: (N,) variance of the walk of the scale between each and where it is asked for.
    """
    values = np.array([each.log_ratio for each in ratios])
    variance = np.array([each.sigma for each in ratios]) ** 2 + walked
    distance = np.abs(values - np.median(values))
    expected = np.sqrt([variance.min(), np.median(variance)])
    usual = np.clip(_USUAL * np.median(distance), expected[0], _UNUSUAL * expected[1])
    agrees = np.asarray(distance <= _OUTLIER * usual)
    return agrees if np.count_nonzero(agrees) > len(values) / 2 else None


def common_error(ratios: Sequence[Ratio], systematic: float) -> float:
    """Return the standard deviation of what ratios are off by alike.

    It does not become less by their number.
    """
    return float(np.hypot(systematic, np.median([each.common for each in ratios])))
