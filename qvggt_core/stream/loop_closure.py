"""Drift taken out where the camera comes back: between the reconstruction and those who use it.

Odometry goes on as if nothing had happened; what goes out is in the map, which a rigid transform
relates to it (REP-105: `map_from_odometry` jumps when a loop is found, odometry does not).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.stream.frame import Frame, FrameGeometry, LoopStatus, Reconstruction
from qvggt_core.stream.gravity import levelling
from qvggt_core.stream.keyframe_placement import WORLD, NewKeyframe, Placement
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.localiser import MapLocaliser
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.map_adjustment import FAILURES
from qvggt_core.stream.map_extension import extended
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.stream.saved_map import SavedMap
from qvggt_core.stream.uncertainty import SCALE_SIGMA
from qvggt_core.util.threads import check_room_for_thread

# A keyframe of the graph every so many radians, or so far as a share of the depth.
_TURN, _SHIFT = float(np.radians(5.0)), 0.05
_FRAMES_KEPT = 64
# Keyframes that wait for a thread that is too slow; more are left out.
_MOST_WAITING = 8
# Where no points were followed: how many times what a window's views disagree by it is off.
_WINDOW_FACTOR = 3.0
_LEAST_STEP = np.diag(np.repeat([1e-4**2, 1e-5**2, SCALE_SIGMA**2], [3, 3, 1]))
_LEAST_SCALE_SIGMA = 0.02


@dataclass(frozen=True)
class _Original:
    """A frame as it came, for corners finer than the network's view."""

    frame: Frame
    preprocessor: Preprocessor


@dataclass
class _Since:
    """The last keyframe of the graph, and what was added to its uncertainty since."""

    pose: NDArray[np.float64] | None = None
    step: NDArray[np.float64] = field(default_factory=lambda: np.zeros((7, 7)))


class LoopClosure:
    """Takes what was reconstructed, finds places that are seen again, and corrects what goes out.

    The work is done step by step by the caller's thread, or by one of its own: then a correction
    comes a little later, and no image waits for it.

    Attributes:
        finder: does the work.
        saved: the map that it began with, None without one.
        first_segment: number of the first segment of a flight: 0 is a map that was loaded.
    """

    def __init__(
        self,
        in_background: bool = False,
        saved: SavedMap | None = None,
        localization_only: bool = True,
    ) -> None:
        """Start without keyframes, or with those of a map.

        Args:
            in_background: work in a thread; without, the same input gives the same output.
            saved: a map in which the camera is sought.
            localization_only: do not change that map; else new keyframes are added to it.
        """
        self._pool = ThreadPoolExecutor(1, "loops") if in_background else None
        self._originals: OrderedDict[int, _Original] = OrderedDict()
        self._jobs: deque[Future[None]] = deque()
        self.begin_with(saved, localization_only)

    def begin_with(self, saved: SavedMap | None, localization_only: bool = True) -> None:
        """Forget all keyframes, and begin with those of a map, if one is given.

        Segments before it have no meaning any more: the reconstruction has to begin anew too.
        """
        self.saved, self._localization_only = saved, localization_only
        self.first_segment = 0 if saved is None else WORLD + 1
        self.reset()

    def reset(self) -> None:
        """Forget all keyframes; what is still being looked for is for nothing."""
        for job in self._jobs:
            job.cancel()
        self._jobs.clear()
        self.finder = self._new_finder()
        self._since, self._segment, self._gauge = _Since(), -1, 0
        self._factor, self._level = 0.0, np.eye(3)
        self._placement: Placement | None = None
        self._status = LoopStatus()
        self._length: LengthRatio | None = None
        self._news: list[str] = []
        self._originals.clear()

    def _new_finder(self) -> LoopFinder | MapLocaliser:
        if self.saved is None:
            return LoopFinder()
        return MapLocaliser(self.saved) if self._localization_only else extended(self.saved)

    @property
    def knows_metres(self) -> bool:
        """Whether a loaded map may give the scale."""
        return self.saved is not None and self.saved.is_metric

    def take_length(self) -> LengthRatio | None:
        """Return what a loaded map has shown of the segment's unit since the last call."""
        length, self._length = self._length, None
        return length

    def remember(self, frame: Frame, preprocessor: Preprocessor) -> None:
        """Keep a frame until its geometry is known."""
        self._originals[frame.stamp_ns] = _Original(frame, preprocessor)
        while len(self._originals) > _FRAMES_KEPT:
            self._originals.popitem(last=False)

    def correct(
        self, result: Reconstruction, tokens: Callable[[FrameGeometry], Any]
    ) -> Reconstruction:
        """Return a reconstruction in the map, and let its keyframes look for loops.

        Args:
            result: in odometry's world.
            tokens: gives what the network's encoder made of a frame's image.
        """
        if not result.frames:
            return self._placed(result)
        self._follow_gauge(result)
        source = result.frames[0].view.source
        for geometry in result.frames:
            original = self._originals.get(geometry.view.stamp_ns)
            if geometry.view.source == source and not geometry.is_lost:
                self._observe(result, geometry, original, tokens)
        self._forget_until(result.frames[-1].view.stamp_ns)
        return self._placed(result)

    def _forget_until(self, stamp_ns: int) -> None:
        """Forget frames that were given out, and those before them that never will be."""
        while self._originals and next(iter(self._originals)) <= stamp_ns:
            self._originals.popitem(last=False)

    def _observe(
        self,
        result: Reconstruction,
        geometry: FrameGeometry,
        original: _Original | None,
        tokens: Callable[[FrameGeometry], Any],
    ) -> None:
        """Let a frame be a keyframe of the graph, if the camera has moved on since the last."""
        since, pose = self._since, geometry.map_from_camera
        since.step = since.step + _added(result, geometry)
        if original is None or not (since.pose is None or _is_away(since.pose, geometry)):
            return
        if len(self._jobs) >= _MOST_WAITING:
            return
        frame, preprocessor = original.frame, original.preprocessor
        sigma = result.scale.sigma or _LEAST_SCALE_SIGMA
        keyframe = NewKeyframe(
            result.segment,
            geometry,
            since.step + _LEAST_STEP,
            tokens(geometry),
            frame.image,
            frame.camera or preprocessor.camera(frame, geometry.intrinsics),
            partial(preprocessor.view_pixels, frame, geometry.view),
            max(sigma, _LEAST_SCALE_SIGMA) if self._factor else np.inf,
            self._factor or 1.0,
        )
        self._since = _Since(pose)
        self._submit(partial(self.finder.take, keyframe))

    def _follow_gauge(self, result: Reconstruction) -> None:
        """Follow odometry's world where it begins anew, gets another unit, or is turned upright."""
        factor, level = result.scale.metres_per_unit or 0.0, levelling(result.up.direction)
        if result.segment != self._segment:
            self._segment, self._since = result.segment, _Since()
        elif bool(factor) != bool(self._factor) or not np.array_equal(level, self._level):
            change = 1.0
            if bool(factor) != bool(self._factor):
                change = (factor or 1.0) / (self._factor or 1.0)
            turn = level @ self._level.T
            self._since = _Since()
            self._gauge += 1
            self._submit(partial(self.finder.rebase, result.segment, change, turn))
        self._factor, self._level = factor, level

    def _submit(self, job: Callable[[], None]) -> None:
        if self._pool is None:
            job()
        else:
            check_room_for_thread()
            self._jobs.append(self._pool.submit(job))

    def finish(self) -> None:
        """Wait until all keyframes so far have been looked at, and what they show is solved."""
        self._submit(self._settle)
        for job in self._jobs:
            job.result()

    def settle(self, *, is_last: bool = False) -> bool:
        """Solve for all loops so far; return whether that moves anything.

        A thread of its own does it later, and what comes next is moved.

        Args:
            is_last: no more keyframes come, and nothing waits: all of them are adjusted together.
        """
        self._submit(self._settle)
        if is_last and self._pool is None:
            self._adjust()
        found = self.finder.placement
        return self._pool is None and found is not self._placement and found is not None

    def _settle(self) -> None:
        self.finder.settle()

    def _adjust(self) -> None:
        if not isinstance(self.finder, LoopFinder) or not len(self.finder.store):
            return
        try:
            worlds = self.finder.adjust()
        except FAILURES as error:
            why = str(error) or type(error).__name__
            self._news.append(f"keyframes were not adjusted together: {why}")
            return
        for world in worlds:
            self._news.append(
                f"{len(world.poses)} keyframes were adjusted by {world.points} points that they "
                f"share, to {world.residual:.2g} pixels"
            )

    def _placed(self, result: Reconstruction) -> Reconstruction:
        """Return a reconstruction where loops put it."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        found, corrections = self.finder.placement, None
        self._placement = None if found is None else self._placement
        status = self.finder.status
        status = replace(status, shift=self._status.shift, turn=self._status.turn)
        if found is not None and found is not self._placement and found.gauge == self._gauge:
            if found.segment == self._segment and result.frames:
                shift, turn = _change(self._placement, found, result.frames[0])
                status = replace(status, shift=shift, turn=turn)
            self._placement, corrections = found, found.corrections
            self._length = found.length
        if status.localisation != self._status.localisation:
            result = replace(result, events=(*result.events, status.localisation))
        self._status = status
        if self._news:
            result = replace(result, events=(*result.events, *self._news))
            self._news = []
        result = replace(result, loops=status, corrections=corrections)
        placement = self._placement
        is_current = placement is not None and placement.gauge == self._gauge
        if placement is None or not is_current or placement.segment != self._segment:
            return result
        moved = tuple(frame.moved(placement.map_from_odometry) for frame in result.frames)
        return replace(
            result,
            frames=moved,
            segment=placement.world,
            odometry_segment=result.segment,
            map_from_odometry=placement.map_from_odometry,
        )


def _added(result: Reconstruction, geometry: FrameGeometry) -> NDArray[np.float64]:
    """Return what a frame adds to the covariance (7, 7) of its pose, in its own frame."""
    step, motion = np.zeros((7, 7)), geometry.motion_covariance
    if motion is not None:
        order = [3, 4, 5, 0, 1, 2]
        step[:6, :6] = motion[np.ix_(order, order)]
    elif geometry is result.frames[0]:
        sigmas = np.repeat([result.rotation_sigma, result.position_sigma], 3)
        step[range(6), range(6)] = (_WINDOW_FACTOR * sigmas) ** 2
    return step


def _is_away(last: NDArray[np.float64], geometry: FrameGeometry) -> bool:
    """Return whether a frame sees enough from elsewhere to be a keyframe of the graph."""
    if not np.isfinite(geometry.depth).any():
        return False
    between = inverse(last) @ geometry.map_from_camera
    depth = float(np.nanmedian(geometry.depth))
    is_away = float(np.linalg.norm(between[:3, 3])) > _SHIFT * depth
    return is_away or bool(rotation_angle(between[:3, :3]) > _TURN)


def _change(before: Placement | None, now: Placement, frame: FrameGeometry) -> tuple[float, float]:
    """Return how far a correction moves a frame, and by which angle in radians it turns it."""
    was = np.eye(4)
    if before is not None and (before.segment, before.gauge) == (now.segment, now.gauge):
        was = before.map_from_odometry
    step = inverse(was @ frame.map_from_camera) @ now.map_from_odometry @ frame.map_from_camera
    return float(np.linalg.norm(step[:3, 3])), float(rotation_angle(step[:3, :3]))
