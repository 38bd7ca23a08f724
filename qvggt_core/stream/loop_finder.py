"""Finds keyframes that see a place again, and where all keyframes are then: the work of loops.

One keyframe is one step of bounded cost: corners, a search by descriptors, at most a few pairs
that are compared in detail, and now and then the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.geometry.similarities import (
    inverse_similarity,
    motion_of,
    rigid,
    rotation_of,
    scale_of,
)
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.correction_in_parts import (
    MOST_LOOPS,
    WORK_OF_A_KEYFRAME,
    Corrected,
    CorrectionInParts,
)
from qvggt_core.stream.frame import LoopStatus
from qvggt_core.stream.keyframe_chain import Chains, Loop, thinned_loops
from qvggt_core.stream.keyframe_placement import WORLD, NewKeyframe, Placement, corners_of
from qvggt_core.stream.keyframe_store import (
    KeyframeStore,
    StoredKeyframe,
    packed_depth,
    packed_tokens,
    thinned,
)
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.loop_verification import are_the_same, compare
from qvggt_core.stream.map_adjustment import AdjustedWorld, adjusted_worlds
from qvggt_core.stream.metric_scale import SAVED_MAP
from qvggt_core.stream.pose_graph import OUTLIER_SQUARE

# Keyframes between two that may close a loop, and how many pairs are compared in detail.
_GAP, _COMPARED = 12, 4
# A loop counts once so many of the next keyframes (more where segments join) say the same.
_SUPPORTING, _SUPPORTING_SEGMENTS, _WITHIN = 1, 2, 5
# A loop by which the way between would be off by more standard deviations, squared, is of two
# places that look alike.
_IMPLAUSIBLE = 4.0 * OUTLIER_SQUARE
# A camera that is lost may go on by so many depths, and so many a second.
_LOST_DEPTHS, _LOST_SPEED = 1.0, 1.0
# Another place of what was mapped: turned by more radians, or away by more depths.
_OTHER_TURN, _OTHER_SHIFT = float(np.radians(45.0)), 1.0
# Metres of a loaded map and of this flight differ by no more (log).
_SAME_METRE = 0.3
# A store that is full has so many keyframes for each loop, at least.
_PER_LOOP = 8


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
        map_name: of the loaded map that the first keyframes are, segment `WORLD`; empty without.
    """

    store: KeyframeStore = field(default_factory=KeyframeStore)
    chains: Chains = field(default_factory=Chains)
    loops: list[Loop] = field(default_factory=list)
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    placement: Placement | None = None
    status: LoopStatus = field(default_factory=LoopStatus)
    gauge: int = 0
    map_name: str = ""
    _scale_sigma: float = np.inf
    _unit: float = 1.0
    _length: LengthRatio | None = None
    # (N,) worlds and (N, 4, 4) corrections of the first N keyframes, as last solved.
    _solved: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None
    _metric: dict[int, bool] = field(default_factory=dict)
    _waiting: list[Loop] = field(default_factory=list)
    _is_behind: bool = False
    _correction: CorrectionInParts | None = None

    def begin_with(self, is_metric: bool) -> None:
        """Take what the store and the chains hold for a loaded map, in metres or not."""
        self._metric[WORLD] = is_metric
        self.status = self._status()

    def take(self, keyframe: NewKeyframe) -> None:
        """Add a keyframe; look whether it sees a place again."""
        self._store(keyframe)
        self._scale_sigma, self._unit = keyframe.scale_sigma, keyframe.unit
        self._metric[keyframe.segment] = bool(np.isfinite(keyframe.scale_sigma))
        newest = len(self.store) - 1
        found = self._seen_again(newest)
        if found is not None:
            self._consider(found)
        self._waiting = [loop for loop in self._waiting if loop.second > newest - _WITHIN]
        self._correct()
        if self._length is not None and self.placement is not None:
            self.placement = replace(self.placement, length=self._length)
            self._length = None
        if self.store.is_full:
            self._thin()
        elif len(self.loops) > 1.25 * MOST_LOOPS:
            self.loops = thinned_loops(self.loops, self.chains.segments, MOST_LOOPS)
        self.status = self._status()

    def _status(self) -> LoopStatus:
        found, is_in_map = "", False
        if self.map_name:
            is_in_map = not self._is_loaded(-1) and bool(self.placed()[0][-1] == WORLD)
            found = f"{'localised' if is_in_map else 'not localised'} in map {self.map_name}"
            found += ", which grows" if is_in_map else " yet"
        return LoopStatus(
            len(self.store),
            self.accepted,
            dict(self.rejected),
            localisation=found,
            is_in_loaded_map=is_in_map,
        )

    def placed(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return where the last correction has all keyframes, those since included.

        Returns:
            The worlds (N,) that they are in, and similarities (N, 4, 4) from odometry to them.
        """
        worlds = self.chains.segments.copy()
        moves = np.tile(np.eye(4), (len(worlds), 1, 1))
        if self._solved is not None:
            count = len(self._solved[0])
            worlds[:count], moves[:count] = self._solved
            going_on = self.chains.segments[count:] == self.chains.segments[count - 1]
            worlds[count:][going_on] = worlds[count - 1]
            moves[count:][going_on] = moves[count - 1]
        return worlds, moves

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
        self.loops = [loop.rescaled(own, factor) for loop in self.loops]
        self._waiting = [loop.rescaled(own, factor) for loop in self._waiting]
        self.placement, self.gauge = None, self.gauge + 1
        self._solved = self._correction = None
        self._is_behind = bool(self.loops)
        self.settle()

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
            objection = self._objection(loop)
            if not objection:
                return loop
            self.rejected[objection] += 1
        return None

    def _objection(self, loop: Loop) -> str:
        """Return why what is known beside two images speaks against a loop, in a few words."""
        segments = self.chains.segments
        if segments[loop.first] == segments[loop.second]:
            is_possible = self._is_plausible(loop)
        else:
            is_possible = self._is_near_enough(loop)
        if not is_possible:
            return "the way between contradicts it"
        if not self._joins(loop):
            return ""
        if self._has_other_metres(loop):
            return "the map has other metres"
        return "places of the map look alike" if self._is_seen_elsewhere(loop) else ""

    def _joins(self, loop: Loop) -> bool:
        """Return whether a loop is the first to bring two worlds together."""
        worlds = self.placed()[0]
        return bool(worlds[loop.first] != worlds[loop.second])

    def _has_other_metres(self, loop: Loop) -> bool:
        """Return whether a loaded map's metres are not those of this flight."""
        is_metric = bool(np.isfinite(self._scale_sigma)) and self._metric[WORLD]
        differs = abs(np.log(scale_of(loop.first_from_second)))
        return self._is_loaded(loop.first) and is_metric and bool(differs > _SAME_METRE)

    def _is_loaded(self, number: int) -> bool:
        return bool(self.map_name) and bool(self.chains.segments[number] == WORLD)

    def _is_seen_elsewhere(self, loop: Loop) -> bool:
        """Return whether another place of the world that a loop leads to looks the same.

        Once two worlds are one, the way between says which of two places it is; before, nothing.
        """
        worlds, moves = self.placed()
        poses = moves @ self.chains.poses
        here = poses[loop.first] @ loop.first_from_second
        away = np.linalg.norm(poses[:, :3, 3] - here[:3, 3], axis=1)
        newest = self.store.keyframes[loop.second]
        depth = newest.unit * float(scale_of(here))
        turns = rotation_angle(rotation_of(here).T @ rotation_of(poses))
        elsewhere = (away > _OTHER_SHIFT * depth) | (turns > _OTHER_TURN)
        allowed = elsewhere & (worlds == worlds[loop.first])
        wanted = self.store.index.row(loop.second)
        for other in self.store.index.nearest(wanted, allowed, _COMPARED):
            same = compare(self.store.keyframes[other].corners, newest.corners)
            if isinstance(same, str):
                continue
            there = poses[other] @ same.first_from_second
            if not are_the_same(inverse_similarity(here) @ there, newest.unit):
                return True
        return False

    def _is_plausible(self, loop: Loop) -> bool:
        """Return whether the way between two keyframes may be off by as much as a loop says."""
        relation, covariance = self.chains.between(np.array([loop.first]), np.array([loop.second]))
        off = motion_of(inverse_similarity(relation[0]) @ loop.first_from_second)
        square = off @ np.linalg.solve(covariance[0] + loop.covariance, off)
        return bool(square < _IMPLAUSIBLE)

    def _is_near_enough(self, loop: Loop) -> bool:
        """Return whether a camera may have come so far while it was lost between two segments.

        Of segments that do not follow each other, and of a loaded map, nothing is known.
        """
        segments, poses = self.chains.segments, self.chains.poses
        begins = int(np.searchsorted(segments, segments[loop.second]))
        ended = begins - 1
        if segments[ended] != segments[loop.first] or self._is_loaded(ended):
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
            if not any(each.is_beside(other) for other in self.loops):
                self.loops.append(each)
                self.accepted += 1
                self._is_behind = True
        if self._is_loaded(loop.first) and self._metric[WORLD]:
            metres = float(scale_of(loop.first_from_second)) * self._unit
            self._length = LengthRatio(SAVED_MAP, metres, float(np.sqrt(loop.covariance[6, 6])))

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
        return are_the_same(apart, self.store.keyframes[other.second].unit)

    def settle(self) -> None:
        """Solve the graph for all loops so far: no more keyframes come, or not soon."""
        while self._correction is not None or self._is_behind:
            self._correct(np.inf)

    def copy(self) -> LoopFinder:
        """Return one that goes its own way from here."""
        chains = Chains(self.chains.poses.copy(), self.chains.segments, self.chains.spread.copy())
        return replace(self, store=self.store.copy(), chains=chains, loops=list(self.loops))

    def adjust(self) -> list[AdjustedWorld]:
        """Adjust all keyframes by the corners that they share; return the worlds that were."""
        worlds, moves = self.placed()
        corners = [keyframe.corners for keyframe in self.store.keyframes]
        poses = moves @ self.chains.poses
        poses, found = adjusted_worlds(corners, self.chains, self.loops, worlds, poses)
        if found:
            self._place(Corrected(poses, worlds, ()))
        return found

    def _correct(self, work: float = WORK_OF_A_KEYFRAME) -> None:
        """Go on with solving the graph; what contradicts the other loops is given up."""
        if self._correction is None:
            is_behind, self._is_behind = self._is_behind, False
            if not (is_behind and self.loops):
                return
            self._correction = CorrectionInParts(self.chains, self.loops, self._scale_sigma)
        job = self._correction
        try:
            found = job.advance(work)
        except (np.linalg.LinAlgError, RuntimeError):  # SciPy has the latter for singular matrices
            self.rejected["the graph has no solution with it"] += 1
            self._correction = None
            self._give_up({job.newest})
            return
        if found is None:
            return
        self._correction = None
        if found.contradicted:
            self.rejected["the other loops contradict it"] += len(found.contradicted)
            self._give_up(found.contradicted)
        self._place(found)

    def _give_up(self, pairs: Collection[tuple[int, int]]) -> None:
        self.loops = [loop for loop in self.loops if (loop.first, loop.second) not in pairs]

    def _place(self, found: Corrected) -> None:
        """Take where the graph has the keyframes, and go on from there with those since."""
        count = len(found.poses)
        self._solved = (found.worlds, found.poses @ inverse_similarity(self.chains.poses[:count]))
        worlds, corrections = self.placed()
        flown = [number for number in range(len(self.chains)) if not self._is_loaded(number)]
        stamps = np.array([keyframe.stamp_ns for keyframe in self.store.keyframes], np.int64)
        self.placement = Placement(
            int(self.chains.segments[-1]),
            int(worlds[-1]),
            self.gauge,
            rigid(corrections[-1]),
            KeyframeCorrections(
                stamps[flown],
                self.chains.segments[flown],
                worlds[flown],
                corrections[flown],
            ),
        )

    def _thin(self) -> None:
        """Leave out loops, whose ends have to stay, and then the densest of other keyframes."""
        most = min(MOST_LOOPS, len(self.store) // _PER_LOOP)
        self.loops = thinned_loops(self.loops, self.chains.segments, most)
        needed = np.diff(self.chains.segments, prepend=-1) != 0
        for loop in (*self.loops, *self._waiting):
            needed[[loop.first, loop.second]] = True
        depth = float(np.median([keyframe.unit for keyframe in self.store.keyframes]))
        self._leave_out_all_but(thinned(self.chains.poses, needed, depth))

    def _leave_out_all_but(self, kept: NDArray[np.int64]) -> None:
        self.store.keep(kept)
        self.chains.keep(kept)
        self.loops = [loop.renumbered(kept) for loop in self.loops]
        self._waiting = [loop.renumbered(kept) for loop in self._waiting]
        if self._correction is not None:
            self._correction.keep(kept)
        if self._solved is not None:
            solved = kept[kept < len(self._solved[0])]
            self._solved = (self._solved[0][solved], self._solved[1][solved])
