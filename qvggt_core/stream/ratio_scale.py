"""A map's scale from lengths that single images give in metres and in map units."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from qvggt_core.stream.scale_estimate import DRIFT, ScaleEstimate

_KEPT = 30
_FEWEST = 5
# A ratio further from the median than so many times the usual is an outlier, and the usual is not
# more than so many times what the ratios were taken to be uncertain by.
_OUTLIER = 3.0
_UNUSUAL = 3.0
_USUAL = 1.4826


@dataclass(frozen=True)
class _Ratio:
    stamp_ns: int
    log_ratio: float
    sigma: float
    way: float


class RatioScale:
    """Gathers ratios of metres to map units; their robust mean is the scale.

    Attributes:
        name: see `Scale.source`.
        problem: why there is no estimate, for an operator; empty where there is one.
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
        self._systematic = systematic
        self._fewest = fewest
        self.begin_map()

    def begin_map(self) -> None:
        """Forget all ratios: the map has another unit now."""
        self._ratios: deque[_Ratio] = deque(maxlen=_KEPT)

    @property
    def has_samples(self) -> bool:
        """Whether there is any ratio."""
        return bool(self._ratios)

    def add(self, stamp_ns: int, ratio: float, sigma: float, way: float) -> bool:
        """Take a ratio; return whether it can be one.

        Args:
            stamp_ns: capture time of the image.
            ratio: metres per map unit.
            sigma: standard deviation of its logarithm.
            way: how far the camera has come in the map, in its unit.
        """
        if not (np.isfinite([ratio, sigma]).all() and ratio > 0.0 and sigma > 0.0):
            self.problem = f"{self.name} gives lengths that are none ({ratio:g} m per unit)"
            return False
        self._ratios.append(_Ratio(stamp_ns, float(np.log(ratio)), sigma, way))
        return True

    def estimate(self, unit: float) -> ScaleEstimate | None:
        """Return what the ratios give together, None where they are too few or too different.

        Args:
            unit: map units over which the scale drifts by `DRIFT`.
        """
        if len(self._ratios) < self._fewest:
            return None
        newest = self._ratios[-1]
        values = np.array([each.log_ratio for each in self._ratios])
        age = np.array([newest.way - each.way for each in self._ratios])
        variance = np.array([each.sigma for each in self._ratios]) ** 2
        variance = variance + DRIFT**2 * age / max(unit, 1e-12)
        distance = np.abs(values - np.median(values))
        expected = np.sqrt([variance.min(), np.median(variance)])
        usual = np.clip(_USUAL * np.median(distance), expected[0], _UNUSUAL * expected[1])
        agrees = distance <= _OUTLIER * usual
        if np.count_nonzero(agrees) <= len(values) / 2:
            self.problem = f"the lengths of {self.name} disagree with each other"
            return None
        self.problem = ""
        # What the ratios differ by is noise that their own estimates may not know of.
        scatter = float(np.mean((values[agrees] - values[agrees].mean()) ** 2))
        weights = 1.0 / np.maximum(variance[agrees], scatter)
        mean = float(weights @ values[agrees] / weights.sum())
        stamp = max(each.stamp_ns for each in self._ratios)
        return ScaleEstimate(mean, float(1.0 / weights.sum()), self._systematic, stamp, newest.way)
