"""A map's scale from lengths that single images give in metres and in map units."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    common: float


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
        self._ratios.append(_Ratio(stamp_ns, float(np.log(ratio)), sigma, way, common))
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
        drift = DRIFT**2 / max(unit, 1e-12)
        variance = variance + drift * age
        distance = np.abs(values - np.median(values))
        expected = np.sqrt([variance.min(), np.median(variance)])
        usual = np.clip(_USUAL * np.median(distance), expected[0], _UNUSUAL * expected[1])
        agrees = distance <= _OUTLIER * usual
        if np.count_nonzero(agrees) <= len(values) / 2:
            self.problem = f"the lengths of {self.name} disagree with each other"
            return None
        self.problem = ""
        values, age = values[agrees], age[agrees]
        noise = np.array([each.sigma for each in self._ratios])[agrees] ** 2
        mean, variance_of_mean = _newest(
            values, np.maximum(noise, _jitter(values) ** 2), age * drift
        )
        # What they are off by alike does not become less by their number.
        common = float(np.median([each.common for each in self._ratios]))
        systematic = float(np.hypot(self._systematic, common))
        return ScaleEstimate(mean, variance_of_mean, systematic, newest.stamp_ns, newest.way)


def _newest(
    values: NDArray[np.float64], noise: NDArray[np.float64], walked: NDArray[np.float64]
) -> tuple[float, float]:
    """Return where a random walk that was observed with noise is now, and its variance.

    Generalised least squares: what two old values are off by is the same walk, for the most part,
    so that many of them do not make up for their age.

    Args:
        values: (N,) observed.
        noise: (N,) variance of each.
        walked: (N,) variance of the walk since then.
    """
    covariance = np.diag(noise) + np.minimum(walked[:, None], walked[None, :])
    weights = np.linalg.solve(covariance, np.ones(len(values)))
    return float(weights @ values / weights.sum()), float(1.0 / weights.sum())


def _jitter(values: NDArray[np.float64]) -> float:
    """Return the noise that neighbours show, which a walk has little part in."""
    if len(values) < 3:
        return 0.0
    return float(_USUAL * np.median(np.abs(np.diff(values))) / np.sqrt(2.0))
