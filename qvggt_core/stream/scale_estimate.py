"""What one source gives of a map's scale, and what several give together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DRIFT = 0.015
"""Standard deviation by which the logarithm of a map's scale changes over the parameter
`min_odometry_distance`: a random walk along the way."""

# Sources that differ by more of their common standard deviation disagree.
_DISAGREE = 3.0


@dataclass(frozen=True)
class ScaleEstimate:
    """What one source gives.

    Attributes:
        log_scale: logarithm of metres per map unit.
        variance: of it, by what was measured.
        systematic: standard deviation of what the source gets wrong all the time, such as a wheel's
            radius; more measurements do not make it smaller.
        stamp_ns: capture time of the newest image that it comes from.
        way: how far the camera had come then, map units.
    """

    log_scale: float
    variance: float
    systematic: float
    stamp_ns: int
    way: float

    def aged(self, way: float, unit: float) -> ScaleEstimate:
        """Return what is left of it further on: less certain.

        Args:
            way: how far the camera has come, map units.
            unit: map units over which the scale drifts by `DRIFT`.
        """
        grown = self.variance + DRIFT**2 * max(0.0, way - self.way) / max(unit, 1e-12)
        return ScaleEstimate(self.log_scale, grown, self.systematic, self.stamp_ns, self.way)

    @property
    def total(self) -> float:
        """Variance, systematic part and all."""
        return self.variance + self.systematic**2


@dataclass(frozen=True)
class FusedScale:
    """What the sources give together.

    Attributes:
        log_scale: logarithm of metres per map unit.
        variance: of it, by what was measured.
        total: variance, systematic parts and all.
        source: name of the source with the largest weight.
        agreeing: names of the sources that went in.
        conflict: what disagrees, for an operator; empty if nothing does.
        stamp_ns: capture time of the newest image that went in.
    """

    log_scale: float
    variance: float
    total: float
    source: str
    agreeing: tuple[str, ...]
    conflict: str
    stamp_ns: int


def fuse(estimates: Mapping[str, ScaleEstimate]) -> FusedScale | None:
    """Return what sources give together, by inverse variance; None without any.

    A source that disagrees with the best group is left out: the largest group of sources that
    agree with one of them is the best, and of two as large the one with more weight.

    Args:
        estimates: by source, all aged to the same place.
    """
    if not estimates:
        return None
    groups = [_agreeing_with(name, estimates) for name in estimates]
    best = max(
        groups, key=lambda group: (len(group), sum(1 / estimates[each].total for each in group))
    )
    weights = np.array([1.0 / estimates[name].total for name in best])
    values = np.array([estimates[name].log_scale for name in best])
    share = weights / weights.sum()
    left_out = sorted(set(estimates) - set(best))
    found = float(share @ values)
    conflict = "; ".join(
        f"{name} gives {np.exp(estimates[name].log_scale - found) - 1.0:+.0%} against "
        f"{', '.join(sorted(best))} and is left out"
        for name in left_out
    )
    return FusedScale(
        found,
        float(share**2 @ [estimates[name].variance for name in best]),
        float(1.0 / weights.sum()),
        best[int(np.argmax(weights))],
        tuple(sorted(best)),
        conflict,
        max(estimates[name].stamp_ns for name in best),
    )


def _agreeing_with(name: str, estimates: Mapping[str, ScaleEstimate]) -> list[str]:
    middle = estimates[name]
    return [
        other
        for other, estimate in estimates.items()
        if abs(estimate.log_scale - middle.log_scale)
        <= _DISAGREE * np.sqrt(estimate.total + middle.total)
        or other == name
    ]
