"""A segment's scale seen from both sides: by what came before a place, and by what came after.

A robot knows the scale by what it has measured so far, and follows a map that drifts with a delay.
In a recording, what is measured further on is there too, and how fast the map drifts can be seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import Scale
from qvggt_core.stream.path_alignment import AlignedPath, align_path
from qvggt_core.stream.position_scale import FEWEST_FIXES, Fix, PositionScale, path_of
from qvggt_core.stream.ratio_scale import (
    COMPARED,
    Ratio,
    RatioScale,
    agreeing,
    common_error,
)
from qvggt_core.stream.scale_estimate import DRIFT, ScaleEstimate, fuse
from qvggt_core.stream.scale_walk import ANY, walk_at

_IMAGES_KEPT = 8192
# Where errors add up, steps are compared over so many times the fixes of one fit, put together to
# chords of so many least distances: what each place alone is off by counts for less then. Longer
# chords lose what was measured where a camera turns back.
_WIDER, _CHORD, _FEWEST_CHORDS = 4, 0.25, 4
# After a way of the least distance, both paths are off by so much of it, up to a factor.
_NOISE, _FACTORS = 0.01, tuple(2.0 ** np.arange(-3, 4))
_OUTLIER, _USUAL = 4.0, 1.4826
# Ratios have less weight (Cauchy) from so many standard deviations.
_ROBUST, _ROUNDS = 2.0, 2

_Kept = TypeVar("_Kept", Fix, Ratio)


class ScaleHistory:
    """What the sources have given of one map segment; it lasts as the next segment begins."""

    def __init__(
        self, positions: Mapping[str, PositionScale], ratios: Mapping[str, RatioScale]
    ) -> None:
        """Follow sources that have just begun a segment, by their names."""
        self._positions = {name: (source, source.fixes) for name, source in positions.items()}
        self._ratios = {name: (source, source.ratios) for name, source in ratios.items()}
        self._stamps: deque[int] = deque(maxlen=_IMAGES_KEPT)
        self._ways: deque[float] = deque(maxlen=_IMAGES_KEPT)

    def observe(self, stamp_ns: int, way: float) -> None:
        """Take how far the camera had come in the map, in its unit, as an image was taken."""
        self._stamps.append(stamp_ns)
        self._ways.append(way)

    def drifts_since(self, stamp_ns: int, metres_per_unit: float) -> float:
        """Return how far the camera has come since an image, in `min_odometry_distance`."""
        if not self._ways:
            return 0.0
        return (self._ways[-1] - self._way_at(stamp_ns)) / self._unit(metres_per_unit)

    def scale(self, stamp_ns: int, known: Scale) -> Scale:
        """Return the scale where an image was taken, by what was measured on both sides.

        Args:
            stamp_ns: of the image.
            known: the scale as it was known there; the sources that gave it are asked. It is the
                answer where they have no more to say.
        """
        if known.metres_per_unit is None or not self._ways:
            return known
        way, unit = self._way_at(stamp_ns), self._unit(known.metres_per_unit)
        found = {
            name: estimate
            for name in known.sources
            if (estimate := self._estimate(name, way, unit)) is not None
        }
        fused = fuse(found)
        if fused is None:
            return known
        return replace(
            known,
            metres_per_unit=float(np.exp(fused.log_scale)),
            source=fused.source,
            sigma=float(np.sqrt(fused.total)),
            sources=fused.agreeing,
        )

    def _way_at(self, stamp_ns: int) -> float:
        return self._ways[max(0, bisect_right(self._stamps, stamp_ns) - 1)]

    def _unit(self, metres_per_unit: float) -> float:
        """Return the map units along which the scale drifts by `DRIFT`, as a rule."""
        source, _ = next(iter(self._positions.values()))
        return source.min_distance / metres_per_unit

    def _estimate(self, name: str, way: float, unit: float) -> ScaleEstimate | None:
        if name in self._ratios:
            of_images, ratios = self._ratios[name]
            return _of_ratios(way, _around(way, ratios, 2 * COMPARED), of_images, unit)
        if name not in self._positions:
            return None
        source, fixes = self._positions[name]
        near = _around(way, fixes, source.kind.compared)
        if len(near) < FEWEST_FIXES:
            return None
        lengths = np.array([source.kind.distance(a, b) for a, b in pairwise(near)])
        aligned = align_path(path_of(near, lengths / source.min_distance), source.kind.freedom)
        if aligned is None or not aligned.is_coherent:
            return None
        if not source.kind.adds_up:
            return _of_places(way, near, aligned, source, unit)
        return _of_steps(way, _around(way, fixes, _WIDER * len(near)), aligned, source, unit)


def _around(way: float, given: deque[_Kept], count: int) -> list[_Kept]:
    """Return so many fixes or ratios, half of them on each side of a place if they are there."""
    ways = [each.way for each in given]
    first = min(bisect_right(ways, way) - count // 2, len(ways) - count)
    return list(given)[max(0, first) :][:count]


def _of_ratios(
    way: float, ratios: Sequence[Ratio], source: RatioScale, unit: float
) -> ScaleEstimate | None:
    if len(ratios) < source.fewest:
        return None
    places = np.array([each.way for each in ratios]) / unit
    agrees = agreeing(ratios, DRIFT**2 * np.abs(places - way / unit))
    if agrees is None:
        return None
    values = np.array([each.log_ratio for each in ratios])[agrees]
    noise = np.sqrt(_noise_of(ratios, agrees, places))
    found = walk_at(way / unit, places[agrees], values, noise)
    systematic = common_error(ratios, source.systematic)
    return ScaleEstimate(found.value, found.variance, systematic, ratios[-1].stamp_ns, way)


def _of_places(
    way: float, fixes: Sequence[Fix], aligned: AlignedPath, source: PositionScale, unit: float
) -> ScaleEstimate:
    """Return the scale of the step at a place."""
    ways = [fix.way for fix in fixes]
    step = int(np.clip(bisect_right(ways, way) - 1, 0, len(ways) - 2))
    outside = max(0.0, ways[0] - way, way - ways[-1]) / unit
    variance = float(aligned.variances[step]) + DRIFT**2 * outside
    log_scale, systematic = float(aligned.log_scales[step]), source.kind.systematic
    return ScaleEstimate(log_scale, variance, systematic, fixes[-1].stamp_ns, way)


def _of_steps(
    way: float, fixes: Sequence[Fix], aligned: AlignedPath, source: PositionScale, unit: float
) -> ScaleEstimate | None:
    """Return the scale at a place by how long the steps around it are in the map and in metres.

    Errors add up along the way, also where the camera turns back: the ends of a chord are off by
    what its way brought, however short the chord itself is.
    """
    chords = _chords(fixes, aligned, source)
    if len(chords) < _FEWEST_CHORDS:
        return None
    places, values, metres, ways = chords.T
    noise = _NOISE * np.sqrt(source.min_distance * ways) / metres
    distance = np.abs(values - np.median(values)) / noise
    agrees = distance <= _OUTLIER * max(_USUAL * float(np.median(distance)), 1.0)
    found = walk_at(way / unit, places[agrees] / unit, values[agrees], noise[agrees], _FACTORS)
    systematic = source.kind.systematic
    return ScaleEstimate(found.value, found.variance, systematic, fixes[-1].stamp_ns, way)


def _chords(
    fixes: Sequence[Fix], aligned: AlignedPath, source: PositionScale
) -> NDArray[np.float64]:
    """Return the chords of a path, (N, 4).

    Each: how far along the map its middle is, logarithm of metres per map unit, metres of the
    chord, and of the way between its ends.
    """
    shown = [fix.position + (source.offset_s - fix.offset_s) * fix.velocity for fix in fixes]
    along = np.cumsum([0.0, *(np.linalg.norm(b - a) for a, b in pairwise(shown))])
    # The sensor's places in the map, by the lever in its unit.
    lever = aligned.lever * np.exp(-aligned.log_scale)
    placed = [fix.map_from_camera[:3, 3] + fix.map_from_camera[:3, :3] @ lever for fix in fixes]
    found, start = [], 0
    for end in range(1, len(fixes)):
        metres = float(np.linalg.norm(shown[end] - shown[start]))
        units = float(np.linalg.norm(placed[end] - placed[start]))
        if metres >= _CHORD * source.min_distance and units > 0.0:
            middle = 0.5 * (fixes[start].way + fixes[end].way)
            found.append((middle, np.log(metres / units), metres, along[end] - along[start]))
            start = end
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _noise_of(
    ratios: Sequence[Ratio], agrees: NDArray[np.bool_], places: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the variance of each ratio that agrees, by what is claimed and what is seen.

    One that is further from what its neighbours show than noise would have it counts for less.

    Args:
        ratios: N of them.
        agrees: (N,) which ones to take.
        places: (N,) where each was; the scale walks by `DRIFT` per root of their unit.
    """
    values = np.array([each.log_ratio for each in ratios])[agrees]
    claimed = np.array([each.sigma for each in ratios])[agrees]
    usual = np.maximum(claimed**2, _jitter(values) ** 2)
    along = places[agrees] - places[agrees].min()
    walk = DRIFT**2 * np.minimum(along[:, None], along[None, :]) + ANY
    noise = usual
    for _ in range(_ROUNDS):
        precision = np.linalg.inv(walk + np.diag(noise))
        sureness = np.diag(precision)
        # Each against what the others alone would have it be.
        left = precision @ (values - np.median(values)) / sureness
        variance = np.maximum(1.0 / sureness - noise, 0.0) + usual
        noise = usual * (1.0 + left**2 / variance / _ROBUST**2)
    return noise


def _jitter(values: NDArray[np.float64]) -> float:
    """Return the noise that neighbours show, which a walk has little part in."""
    if len(values) < 3:
        return 0.0
    return float(_USUAL * np.median(np.abs(np.diff(values))) / np.sqrt(2.0))
