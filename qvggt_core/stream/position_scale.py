"""A map's scale from positions in metres of odometry, GPS or an altimeter."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.path_alignment import Freedom, PathPiece, align_path
from qvggt_core.stream.scale_estimate import DRIFT, ScaleEstimate
from qvggt_core.stream.step_scale import step_scale

_SAMPLES_KEPT = 4096
_PENDING_KEPT = 256
_FIXES_KEPT = 512
# Fixes are kept along so many least distances, on a straight way, and are farther apart where
# positions are noisy.
_REACH = 8.0
_NOISE_SPACING = 2.0
FEWEST_FIXES = 6
# Readings next to each other have errors in common: many are not worth more than so many.
_WORTH = 4
# An estimate counts once so many fits in a row agree to this, in logarithms, and no more after so
# many fits in a row that find another shape: short straight ways look alike, whoever went them.
_TO_BELIEVE, _AGREE = 3, 0.1
_TO_DOUBT = 8
# A step at so many times the usual speed is a source that was reset, not a robot that moved.
_JUMP = 5.0
_VELOCITY_OVER_S = 0.1
_MAX_OFFSET_S = 0.5
# Fits that follow each other have most of their fixes in common: so many are worth one.
_OVERLAP = 10.0
_OFFSET_DRIFT_S = 0.001
# A map that moves so many times further than the source's steps would: it stands still alone.
_STANDS_STILL = 5.0


@dataclass(frozen=True)
class Fix:
    """A place of the camera, in the map and by the source.

    Attributes:
        stamp_ns: capture time of the image.
        position: (3,) metres in the source's world, at the image's stamp put right by `offset_s`.
        velocity: (3,) of the same, metres per second.
        offset_s: difference of the clocks as it was known.
        map_from_camera: (4, 4), map units.
        way: how far the camera had come in the map, in its unit.
        images: number of images that it is the mean of.
        first: (3,) the position of the first of them; None if it is the only one.
    """

    stamp_ns: int
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    offset_s: float
    map_from_camera: NDArray[np.float64]
    way: float
    images: int = 1
    first: NDArray[np.float64] | None = None

    @property
    def start(self) -> NDArray[np.float64]:
        """Position (3,) of its first image."""
        return self.position if self.first is None else self.first

    def joined(self, other: Fix) -> Fix:
        """Return the mean of this fix and of one more image; stamp and rotation stay."""
        share = 1.0 / (self.images + 1)
        pose = self.map_from_camera.copy()
        pose[:3, 3] += share * (other.map_from_camera[:3, 3] - pose[:3, 3])
        return replace(
            self,
            position=self.position + share * (other.position - self.position),
            velocity=self.velocity + share * (other.velocity - self.velocity),
            offset_s=self.offset_s + share * (other.offset_s - self.offset_s),
            map_from_camera=pose,
            images=self.images + 1,
            first=self.start,
        )


@dataclass(frozen=True)
class PositionKind:
    """What is known of a source of positions.

    Attributes:
        name: see `Scale.source`.
        freedom: what may differ between its positions and the camera's.
        systematic: standard deviation of the share by which its lengths are off all the time.
        max_gap_s: time between two samples that is taken as straight.
        spacing: how far apart places are compared, as a share of the least distance.
        averaged: images next to one place whose mean is compared, at most.
        least: the way after which its scale counts, as a share of the least distance.
        adds_up: whether its errors add up along the way, as those of odometry do; else each
            position has one of its own.
    """

    name: str
    freedom: Freedom
    systematic: float
    max_gap_s: float = 0.5
    spacing: float = 1 / 6
    averaged: int = 1
    least: float = 1.0
    adds_up: bool = False

    @property
    def compared(self) -> int:
        """How many fixes are compared at once."""
        return round(_REACH / self.spacing)

    def distance(self, one: Fix, other: Fix) -> float:
        """Return how far apart two fixes are by the source, metres."""
        return self._length(other.position - one.position)

    def step(self, last: Fix, image: Fix) -> float:
        """Return how far an image is from the first one of the last fix, metres."""
        return self._length(image.start - last.start)

    def _length(self, between: NDArray[np.float64]) -> float:
        axis = self.freedom.axis
        return float(np.linalg.norm(between) if axis is None else abs(between @ axis))


def path_of(fixes: Sequence[Fix], lengths: NDArray[np.float64]) -> PathPiece:
    """Return the piece of the path that fixes are of.

    Args:
        fixes: N of them, in order of time.
        lengths: (N - 1,) of the steps between them, in those along which the scale drifts by
            `DRIFT`.
    """
    return PathPiece(
        np.stack([fix.map_from_camera for fix in fixes]),
        np.stack([fix.position - fix.offset_s * fix.velocity for fix in fixes]),
        np.stack([fix.velocity for fix in fixes]),
        DRIFT * np.sqrt(lengths),
        np.array([min(fix.images, _WORTH) for fix in fixes], np.float64),
    )


class PositionScale:
    """Compares the camera's path in the map with positions in metres.

    Attributes:
        fixes: the last ones of this map, also those that are compared no more.
        min_distance: metres of the source after which its scale counts.
        problem: why there is no estimate, for an operator; empty where there is one, and before
            the source has given anything.
    """

    def __init__(self, kind: PositionKind, min_distance: float) -> None:
        self.min_distance = min_distance
        self.problem = ""
        self.kind = kind
        self._stamps: list[int] = []
        self._positions: list[NDArray[np.float64]] = []
        self._offset_s = 0.0
        self._offset_variance = kind.freedom.offset_s**2
        self.begin_map()

    def begin_map(self) -> None:
        """Forget what was compared: the map has another unit now."""
        self.fixes: deque[Fix] = deque(maxlen=_FIXES_KEPT)
        self._forget()

    def _forget(self) -> None:
        self._pending: deque[tuple[int, NDArray[np.float64], float]] = deque(maxlen=_PENDING_KEPT)
        self._fixes: list[Fix] = []
        self._estimate: ScaleEstimate | None = None
        self._way_at_move = 0.0
        self._recent: deque[float] = deque(maxlen=_TO_BELIEVE)
        self._refuted = 0
        self.problem = ""

    @property
    def has_samples(self) -> bool:
        """Whether the source has given anything."""
        return bool(self._stamps)

    @property
    def estimate(self) -> ScaleEstimate | None:
        """What it gives."""
        return self._estimate

    @property
    def offset_s(self) -> float:
        """What is added to an image's stamp for the same instant's of the source."""
        return self._offset_s

    def add(self, stamp_ns: int, position: NDArray[np.float64]) -> None:
        """Take a position (3,) in metres; what is not finite is left out."""
        position = np.asarray(position, dtype=np.float64)
        if not np.isfinite(position).all():
            self.problem = f"{self.kind.name} gives numbers that are not finite"
            return
        if self._stamps and stamp_ns <= self._stamps[-1]:
            if stamp_ns == self._stamps[-1]:
                return
            # Time went back: a recording began anew.
            self._stamps, self._positions = [], []
            self.fixes.clear()
            self._forget()
        self._stamps.append(stamp_ns)
        self._positions.append(position)
        if len(self._stamps) > 2 * _SAMPLES_KEPT:
            del self._stamps[:_SAMPLES_KEPT], self._positions[:_SAMPLES_KEPT]

    def observe(self, stamp_ns: int, map_from_camera: NDArray[np.float64], way: float) -> bool:
        """Take where the map has the camera; return whether the estimate is new.

        Args:
            stamp_ns: capture time.
            map_from_camera: (4, 4), map units.
            way: how far the camera has come in the map, in its unit.
        """
        self._pending.append((stamp_ns, map_from_camera, way))
        is_news = False
        # Samples of an image's time may come after the image's geometry.
        while self._pending and self._is_covered(self._pending[0][0]):
            is_news |= self._compare(*self._pending.popleft())
        return is_news and self._solve()

    def _is_covered(self, stamp_ns: int) -> bool:
        return bool(self._stamps) and self._shifted(stamp_ns) <= self._stamps[-1]

    def _shifted(self, stamp_ns: int) -> int:
        return stamp_ns + round(self._offset_s * 1e9)

    def _compare(self, stamp_ns: int, pose: NDArray[np.float64], way: float) -> bool:
        """Keep a place as a fix, if it is far enough from the last one; return if that is news."""
        found = self._at(self._shifted(stamp_ns))
        if found is None:
            return False
        fix = Fix(stamp_ns, *found, self._offset_s, pose, way)
        if self._fixes:
            step = self.kind.step(self._fixes[-1], fix)
            noise = _NOISE_SPACING * self.kind.freedom.noise
            if step < max(self.kind.spacing * self.min_distance, noise):
                self._note_standstill(way)
                return self._average(fix)
            if self._is_jump(fix, step):
                self._fixes = []
                self.fixes.clear()
        self._way_at_move = way
        self._fixes.append(fix)
        self.fixes.append(fix)
        del self._fixes[: -self.kind.compared]
        return True

    def _average(self, image: Fix) -> bool:
        """Take one more image of the last place; return whether its mean is complete with it."""
        last = self._fixes[-1]
        if last.images >= self.kind.averaged:
            return False
        self._fixes[-1] = self.fixes[-1] = last.joined(image)
        return self._fixes[-1].images == self.kind.averaged

    def _note_standstill(self, way: float) -> None:
        """Notice a source that stands still while the map's camera moves."""
        if self._estimate is None:
            return
        unit = self.min_distance / np.exp(self._estimate.log_scale)
        if way - self._way_at_move > _STANDS_STILL * unit:
            self.problem = f"{self.kind.name} stands still while the images move"

    def _is_jump(self, fix: Fix, step: float) -> bool:
        if len(self._fixes) < 3:
            return False
        steps = [self.kind.distance(a, b) for a, b in pairwise(self._fixes)]
        times = np.diff([each.stamp_ns for each in self._fixes]) * 1e-9
        usual = float(np.max(np.array(steps) / np.maximum(times, 1e-3)))
        seconds = max((fix.stamp_ns - self._fixes[-1].stamp_ns) * 1e-9, 1e-3)
        return step > _JUMP * max(float(np.median(steps)), usual * seconds)

    def _at(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return position and velocity at a stamp; None where they are not known."""
        stamps = self._stamps
        after = bisect_left(stamps, stamp_ns)
        if after == len(stamps) or len(stamps) < 2:
            return None
        if after == 0:
            if stamps[0] != stamp_ns:
                return None
            after = 1
        before = after - 1
        gap = round(self.kind.max_gap_s * 1e9)
        if stamps[after] - stamps[before] > gap and stamps[after] != stamp_ns:
            return None
        share = (stamp_ns - stamps[before]) / (stamps[after] - stamps[before])
        start, end = self._positions[before], self._positions[after]
        # Not from two neighbours: samples may come so fast that their noise is all of it.
        reach = round(0.5 * _VELOCITY_OVER_S * 1e9)
        first = max(0, min(before, bisect_left(stamps, stamp_ns - reach) - 1))
        last = min(len(stamps) - 1, max(after, bisect_left(stamps, stamp_ns + reach)))
        seconds = (stamps[last] - stamps[first]) * 1e-9
        velocity = (self._positions[last] - self._positions[first]) / seconds
        return (1.0 - share) * start + share * end, velocity

    def _solve(self) -> bool:
        """Estimate the scale from the fixes; return whether there is an estimate."""
        fixes = self._fixes
        steps = np.array([self.kind.distance(a, b) for a, b in pairwise(fixes)], np.float64)
        if len(fixes) < FEWEST_FIXES or steps.sum() < self.kind.least * self.min_distance:
            return False
        piece = path_of(fixes, steps / self.min_distance)
        found = align_path(piece, self.kind.freedom)
        if found is None or not found.is_coherent:
            self._doubt()
            self.problem = (
                f"the paths of {self.kind.name} and of the map have different shapes: is it "
                "this robot's, and is its clock the images'?"
            )
            return False
        self._refuted = 0
        self._recent.append(found.log_scale)
        if self._estimate is None and not self._is_steady():
            return False
        self.problem = ""
        if self.kind.freedom.offset_s:
            self._learn_offset(found.offset_s, found.offset_variance)
        log_scale, variance = found.log_scale, found.variance
        if self.kind.adds_up:
            ways = np.array([fix.way for fix in fixes])
            by_steps = step_scale(piece, found, ways, self.min_distance)
            if by_steps is not None:
                log_scale, variance = by_steps.value, by_steps.variance
        self._estimate = ScaleEstimate(
            log_scale,
            variance,
            self.kind.systematic,
            fixes[-1].stamp_ns,
            fixes[-1].way,
        )
        return True

    def _is_steady(self) -> bool:
        return len(self._recent) == _TO_BELIEVE and float(np.ptp(self._recent)) <= _AGREE

    def _doubt(self) -> None:
        """Count a fit that finds another shape; many in a row end what was believed."""
        self._recent.clear()
        self._refuted += 1
        if self._refuted >= _TO_DOUBT:
            self._estimate = None

    def _learn_offset(self, seconds: float, variance: float) -> None:
        """Take what one fit gives of the difference of the clocks."""
        before = self._offset_variance + _OFFSET_DRIFT_S**2
        gain = before / (before + _OVERLAP * variance)
        learned = self._offset_s + gain * (seconds - self._offset_s)
        self._offset_s = float(np.clip(learned, -_MAX_OFFSET_S, _MAX_OFFSET_S))
        self._offset_variance = (1.0 - gain) * before
