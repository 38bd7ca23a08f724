"""Finds keyframes that see a place again, and where all keyframes are then: the work of loops.

One keyframe is one step of bounded cost: corners, a search by descriptors, at most a few pairs
that are compared in detail, and now and then the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.geometry.similarities import (
    adjoint_of,
    inverse_similarity,
    motion_of,
    rigid,
    rotation_of,
    scale_of,
    similarity,
)
from qvggt_core.stream.confirmation import depth_at
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.frame import FrameGeometry, LoopStatus
from qvggt_core.stream.image_features import features_of
from qvggt_core.stream.keyframe_chain import Chains, Loop, correct
from qvggt_core.stream.keyframe_store import (
    KeyframeStore,
    StoredKeyframe,
    packed_depth,
    packed_tokens,
    thinned,
)
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.loop_verification import Corners, compare
from qvggt_core.stream.pose_graph import OUTLIER_SQUARE

_CORNERS, _WIDTH = 800, 640
# Keyframes between two that may close a loop, and how many pairs are compared in detail.
_GAP, _COMPARED = 12, 4
# A loop counts once so many of the next keyframes (more where segments join) say the same.
_SUPPORTING, _SUPPORTING_SEGMENTS, _WITHIN = 1, 2, 5
# Two loops say the same if they differ by no more: radians, share of depth, log of the scale.
_SAME_TURN, _SAME_SHIFT, _SAME_SCALE = float(np.radians(4.0)), 0.15, 0.2
# A loop by which the way between would be off by more standard deviations, squared, is of two
# places that look alike.
_IMPLAUSIBLE = 4.0 * OUTLIER_SQUARE
# A camera that is lost may go on by so many depths, and so many a second.
_LOST_DEPTHS, _LOST_SPEED = 1.0, 1.0
# Beside a loop between keyframes so near to both of its ends, another adds nothing.
_NEAR = 3


@dataclass(frozen=True)
class NewKeyframe:
    """A keyframe on its way into the graph.

    Attributes:
        segment: number of its segment.
        geometry: its pose and depth, before any correction.
        step: (7, 7) covariance of pose and scale against the keyframe before, in its own frame.
        tokens: what the network's encoder made of it.
        image: (H, W, 3) uint8 as it was taken.
        camera: of that image.
        view_pixels: gives where pixels (N, 2) with rays (N, 2) lie in the network's view.
        scale_sigma: standard deviation of the logarithm of the unit where it is the metre;
            infinite where it is the map's own.
        unit: of `geometry`, per unit of the segment's map as the network gave it.
    """

    segment: int
    geometry: FrameGeometry
    step: NDArray[np.float64]
    tokens: Any
    image: NDArray[np.uint8]
    camera: Camera
    view_pixels: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    scale_sigma: float = np.inf
    unit: float = 1.0


@dataclass(frozen=True)
class Placement:
    """Where loops put the newest segment, and all keyframes.

    Attributes:
        segment: the newest segment.
        world: the segment whose world it is in; its own, as long as no loop joins it to another.
        gauge: how often the unit or the axes of odometry had changed by then.
        map_from_odometry: (4, 4) rigid, at the newest keyframe; its unit is that of the map.
        corrections: at all keyframes.
        length: of a unit of the segment's map, where a loaded map has just shown it.
    """

    segment: int
    world: int
    gauge: int
    map_from_odometry: NDArray[np.float64]
    corrections: KeyframeCorrections
    length: LengthRatio | None = None


@dataclass
class LoopFinder:
    """The keyframes of all segments, the loops between them, and where they are.

    Attributes:
        store: the keyframes.
        chains: their poses as they were placed.
        loops: what was accepted.
        accepted: number of loops accepted so far.
        rejected: number of pairs of keyframes that looked alike and were rejected, by reason.
        placement: None before the first loop.
        status: of all this, as it was after the last keyframe.
        gauge: how often the unit or the axes of a segment changed.
    """

    store: KeyframeStore = field(default_factory=KeyframeStore)
    chains: Chains = field(default_factory=Chains)
    loops: list[Loop] = field(default_factory=list)
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    placement: Placement | None = None
    status: LoopStatus = field(default_factory=LoopStatus)
    gauge: int = 0
    _scale_sigma: float = np.inf
    _metric: dict[int, bool] = field(default_factory=dict)
    _waiting: list[Loop] = field(default_factory=list)
    _is_behind: bool = False
    _corrected_at: int = 0

    def take(self, keyframe: NewKeyframe) -> None:
        """Add a keyframe; look whether it sees a place again."""
        self._store(keyframe)
        self._scale_sigma = keyframe.scale_sigma
        self._metric[keyframe.segment] = bool(np.isfinite(keyframe.scale_sigma))
        newest = len(self.store) - 1
        found = self._seen_again(newest)
        if found is not None:
            self._consider(found)
        self._waiting = [loop for loop in self._waiting if loop.second > newest - _WITHIN]
        since = newest - self._corrected_at
        if self._is_behind and since >= keyframes_between_corrections(len(self.loops)):
            self._correct()
        if self.store.is_full:
            self._thin()
        self.status = LoopStatus(len(self.store), self.accepted, dict(self.rejected))

    def rebase(self, segment: int, factor: float, rotation: NDArray[np.float64]) -> None:
        """Change the unit and the axes of a segment's odometry, as the scale becomes known.

        Args:
            segment: its number.
            factor: new units per old one.
            rotation: (3, 3) new from old axes.
        """
        own = self.chains.segments == segment
        self.chains.transform(segment, factor, rotation)
        for number in np.flatnonzero(own):
            self.store.keyframes[number] = self.store.keyframes[number].scaled(factor)
        self.loops = [_rescaled(loop, own, factor) for loop in self.loops]
        self._waiting = [_rescaled(loop, own, factor) for loop in self._waiting]
        self.placement, self.gauge = None, self.gauge + 1
        if self.loops:
            self._correct()

    def is_metric(self, world: int, worlds: NDArray[np.int64]) -> bool:
        """Return whether a world's unit is the metre.

        Args:
            world: number of the segment whose world it is.
            worlds: (N,) the worlds of all keyframes; the newest one's has the newest one's unit.
        """
        if worlds[-1] == world:
            return bool(np.isfinite(self._scale_sigma))
        return all(
            self._metric[int(each)] for each in np.unique(self.chains.segments[worlds == world])
        )

    def _store(self, keyframe: NewKeyframe) -> None:
        geometry = keyframe.geometry
        depth, unit = packed_depth(geometry.depth)
        stored = StoredKeyframe(
            geometry.view.stamp_ns,
            geometry.view.image,
            geometry.intrinsics,
            packed_tokens(keyframe.tokens),
            depth,
            unit,
            corners_of(keyframe),
        )
        self.store.append(stored)
        self.chains.append(geometry.map_from_camera, keyframe.step, keyframe.segment)

    def _seen_again(self, newest: int) -> Loop | None:
        """Return the loop between the newest keyframe and one that looks most like it, if any."""
        allowed = self.chains.segments != self.chains.segments[newest]
        allowed[: max(0, newest + 1 - _GAP)] = True
        allowed[newest] = False
        wanted = self.store.index.row(newest)
        here = self.store.keyframes[newest].corners
        for candidate in self.store.index.nearest(wanted, allowed, _COMPARED):
            same = compare(self.store.keyframes[candidate].corners, here)
            if isinstance(same, str):
                self.rejected[same] += 1
                continue
            loop = Loop(int(candidate), newest, same.first_from_second, same.covariance)
            if self._is_plausible(loop):
                return loop
            self.rejected["the way between contradicts it"] += 1
        return None

    def _is_plausible(self, loop: Loop) -> bool:
        """Return whether the way between two keyframes may be off by as much as a loop says."""
        if self.chains.segments[loop.first] != self.chains.segments[loop.second]:
            return self._is_near_enough(loop)
        relation, covariance = self.chains.between(np.array([loop.first]), np.array([loop.second]))
        off = motion_of(inverse_similarity(relation[0]) @ loop.first_from_second)
        square = off @ np.linalg.solve(covariance[0] + loop.covariance, off)
        return bool(square < _IMPLAUSIBLE)

    def _is_near_enough(self, loop: Loop) -> bool:
        """Return whether a camera may have come so far while it was lost between two segments.

        Of segments that do not follow each other, nothing is known.
        """
        segments, poses = self.chains.segments, self.chains.poses
        begins = int(np.searchsorted(segments, segments[loop.second]))
        ended = begins - 1
        if segments[ended] != segments[loop.first]:
            return True
        there = poses[loop.first] @ loop.first_from_second
        begun = there @ inverse_similarity(poses[loop.second]) @ poses[begins]
        last, new = self.store.keyframes[ended], self.store.keyframes[begins]
        depths = _LOST_DEPTHS + _LOST_SPEED * (new.stamp_ns - last.stamp_ns) * 1e-9
        distance = float(np.linalg.norm(begun[:3, 3] - poses[ended, :3, 3]))
        return distance < depths * last.unit

    def _consider(self, loop: Loop) -> None:
        """Accept a loop, and those that waited for it, once enough say the same."""
        joins = self.chains.segments[loop.first] != self.chains.segments[loop.second]
        same = [other for other in self._waiting if self._agree(other, loop)]
        self._waiting.append(loop)
        if len(same) < (_SUPPORTING_SEGMENTS if joins else _SUPPORTING):
            return
        for each in (*same, loop):
            if not any(_is_beside(each, other) for other in self.loops):
                self.loops.append(each)
                self.accepted += 1
                self._is_behind = True

    def _agree(self, one: Loop, other: Loop) -> bool:
        """Return whether two loops say the same of how both of their ends lie to each other."""
        chains = self.chains
        for end in ("first", "second"):
            if chains.segments[getattr(one, end)] != chains.segments[getattr(other, end)]:
                return False
        poses = chains.poses
        there = inverse_similarity(poses[other.first]) @ poses[one.first]
        here = inverse_similarity(poses[one.second]) @ poses[other.second]
        expected = there @ one.first_from_second @ here
        apart = inverse_similarity(expected) @ other.first_from_second
        depth = self.store.keyframes[other.second].unit
        return bool(
            rotation_angle(rotation_of(apart)) < _SAME_TURN
            and np.linalg.norm(apart[:3, 3]) < _SAME_SHIFT * depth
            and abs(np.log(scale_of(apart))) < _SAME_SCALE
        )

    def _correct(self) -> None:
        """Solve the graph; what contradicts the other loops is given up."""
        self._corrected_at, self._is_behind = len(self.store) - 1, False
        try:
            found = correct(self.chains, self.loops, self._scale_sigma)
            agrees = found.square < OUTLIER_SQUARE
            if not agrees.all():
                self.rejected["the other loops contradict it"] += int(np.count_nonzero(~agrees))
                self.loops = [loop for loop, good in zip(self.loops, agrees, strict=True) if good]
                found = correct(self.chains, self.loops, self._scale_sigma)
        except (np.linalg.LinAlgError, RuntimeError):  # SciPy has the latter for singular matrices
            self.rejected["the graph has no solution with it"] += 1
            self.loops.pop()
            return
        poses, world = found.poses, found.worlds[-1]
        own = found.worlds == world
        # The newest keyframe's unit is the map's: lengths are right where the camera is, and
        # odometry goes on as it was.
        centre = poses[np.flatnonzero(own)[0], :3, 3]
        factor = 1.0 / float(scale_of(poses[-1]))
        poses[own] = similarity(factor, np.eye(3), (1.0 - factor) * centre) @ poses[own]
        corrections = poses @ inverse_similarity(self.chains.poses)
        self.placement = Placement(
            int(self.chains.segments[-1]),
            int(world),
            self.gauge,
            rigid(corrections[-1]),
            KeyframeCorrections(
                np.array([keyframe.stamp_ns for keyframe in self.store.keyframes]),
                self.chains.segments.copy(),
                found.worlds,
                corrections,
            ),
        )

    def _thin(self) -> None:
        """Leave out keyframes where they are densest, none at the end of a loop."""
        needed = np.diff(self.chains.segments, prepend=-1) != 0
        for loop in (*self.loops, *self._waiting):
            needed[[loop.first, loop.second]] = True
        depth = float(np.median([keyframe.unit for keyframe in self.store.keyframes]))
        kept = thinned(self.chains.poses, needed, depth)
        self.store.keep(kept)
        self.chains.keep(kept)
        self.loops = [_renumbered(loop, kept) for loop in self.loops]
        self._waiting = [_renumbered(loop, kept) for loop in self._waiting]
        self._corrected_at = int(np.searchsorted(kept, self._corrected_at))


def keyframes_between_corrections(loops: int) -> int:
    """Return after how many keyframes a graph with so many loops may be solved again.

    Its time grows with the loops; so the time for a keyframe does not.
    """
    return 1 + loops // 6


def corners_of(keyframe: NewKeyframe) -> Corners:
    """Return the corners of a keyframe's image, with depth where it is known."""
    grey = cv2.cvtColor(keyframe.image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if width > _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    features = features_of(np.asarray(grey, np.uint8), _CORNERS)
    scale = np.array([grey.shape[1] / width, grey.shape[0] / height])
    pixels = (features.pixels.astype(np.float64) + 0.5) / scale - 0.5
    rays = keyframe.camera.rays(pixels)
    depth = depth_at(keyframe.geometry.depth, keyframe.view_pixels(pixels, rays))
    focal = float(scale[0] * keyframe.camera.intrinsics[0, 0])
    area = grey.size / focal**2
    return Corners(features, rays, depth.astype(np.float32), focal, area)


def _is_beside(one: Loop, other: Loop) -> bool:
    return abs(one.first - other.first) <= _NEAR and abs(one.second - other.second) <= _NEAR


def _renumbered(loop: Loop, kept: NDArray[np.int64]) -> Loop:
    first, second = np.searchsorted(kept, [loop.first, loop.second])
    return Loop(int(first), int(second), loop.first_from_second, loop.covariance)


def _rescaled(loop: Loop, own: NDArray[np.bool_], factor: float) -> Loop:
    """Return a loop in another unit at those of its ends that are in a segment."""
    units = [
        similarity(factor if own[end] else 1.0, np.eye(3), np.zeros(3))
        for end in (loop.first, loop.second)
    ]
    moved = adjoint_of(units[1])
    relation = units[0] @ loop.first_from_second @ inverse_similarity(units[1])
    return Loop(loop.first, loop.second, relation, moved @ loop.covariance @ moved.T)
