"""Keyframes in a row, each placed from the one before: corrections from loops between some of them.

A keyframe without a loop adds nothing to the graph but its step: a row of such is one edge, whose
covariance is the sum of the steps'. So the graph has only the keyframes at the ends of loops
(junctions), whatever the length of the way, and those between take their share of a correction
by their share of the covariance. For small corrections that is what the whole graph would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.similarities import (
    adjoint_of,
    inverse_similarity,
    motion_of,
    moved_by,
    similarity,
)
from qvggt_core.stream.pose_graph import Edges, Graph, Parts, finished, solution

# So many loops hold two segments together.
_HOLDING = 3
# Beside a loop between keyframes so near to both of its ends, another adds nothing.
_NEAR = 3


@dataclass(frozen=True)
class Loop:
    """Two keyframes that see the same place.

    Attributes:
        first: index of the earlier one in the chains' order.
        second: index of the later one.
        first_from_second: (4, 4) similarity.
        covariance: (7, 7) of small motions in the second one's frame.
    """

    first: int
    second: int
    first_from_second: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def is_beside(self, other: Loop) -> bool:
        """Return whether both ends are next to those of another loop."""
        return abs(self.first - other.first) <= _NEAR and abs(self.second - other.second) <= _NEAR

    def renumbered(self, kept: NDArray[np.int64]) -> Loop:
        """Return it where only some keyframes are left; `kept` has their former indices."""
        first, second = np.searchsorted(kept, [self.first, self.second])
        return Loop(int(first), int(second), self.first_from_second, self.covariance)

    def rescaled(self, own: NDArray[np.bool_], factor: float) -> Loop:
        """Return it in another unit at those of its ends that some keyframes (N,) are."""
        units = [
            similarity(factor if own[end] else 1.0, np.eye(3), np.zeros(3))
            for end in (self.first, self.second)
        ]
        moved = adjoint_of(units[1])
        relation = units[0] @ self.first_from_second @ inverse_similarity(units[1])
        return Loop(self.first, self.second, relation, moved @ self.covariance @ moved.T)


def thinned_loops(loops: list[Loop], segments: NDArray[np.int64], most: int) -> list[Loop]:
    """Return about so many loops, evenly chosen; those that hold segments together stay.

    Args:
        loops: in the order in which they were found.
        segments: (N,) of the keyframes.
        most: of loops.
    """
    if len(loops) <= most:
        return loops
    chosen = set(np.linspace(0, len(loops) - 1, max(most, 1)).astype(int).tolist())
    joins: Counter[tuple[int, int]] = Counter()
    for number, loop in enumerate(loops):
        pair = int(segments[loop.first]), int(segments[loop.second])
        joins[pair] += 1
        if pair[0] != pair[1] and joins[pair] <= _HOLDING:
            chosen.add(number)
    return [loops[number] for number in sorted(chosen)]


@dataclass
class Chains:
    """Keyframes as they were placed, in order of time, in segments without relation.

    Attributes:
        poses: (N, 4, 4) odometry_from_camera, rigid; each segment has a world of its own.
        segments: (N,) number of each one's segment, not decreasing.
        spread: (N, 7, 7) covariance of each pose against its segment's first, as of a small motion
            of the world.
    """

    poses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4, 4)))
    segments: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    spread: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 7, 7)))

    def __len__(self) -> int:
        """Return the number of keyframes."""
        return len(self.poses)

    def append(self, pose: NDArray[np.float64], step: NDArray[np.float64], segment: int) -> None:
        """Go on to the next keyframe.

        Args:
            pose: (4, 4) odometry_from_camera.
            step: (7, 7) covariance of its pose and scale against the keyframe before, in its own
                frame; of no meaning for the first of a segment.
            segment: its number.
        """
        moved = adjoint_of(pose)
        spread = moved @ step @ moved.T
        if len(self) == 0 or self.segments[-1] != segment:
            spread = np.zeros((7, 7))
        else:
            spread = spread + self.spread[-1]
        self.poses = np.concatenate([self.poses, pose[None]])
        self.segments = np.append(self.segments, segment)
        self.spread = np.concatenate([self.spread, spread[None]])

    def keep(self, index: NDArray[np.int64]) -> None:
        """Leave out all keyframes but some; the steps over those left out are added up."""
        self.poses, self.segments = self.poses[index], self.segments[index]
        self.spread = self.spread[index]

    def transform(self, segment: int, scale: float, rotation: NDArray[np.float64]) -> None:
        """Change the unit and the axes of a segment's world.

        Args:
            segment: its number.
            scale: new units per old one.
            rotation: (3, 3) new from old axes.
        """
        own = self.segments == segment
        self.poses[own, :3, :3] = rotation @ self.poses[own, :3, :3]
        self.poses[own, :3, 3] = scale * self.poses[own, :3, 3] @ rotation.T
        moved = adjoint_of(similarity(scale, rotation, np.zeros(3)))
        self.spread[own] = moved @ self.spread[own] @ moved.T

    def between(
        self, first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how keyframes (E,) lie to earlier ones of their segments, by the steps between.

        Returns:
            first_from_second (E, 4, 4), and covariances (E, 7, 7) in the second ones' frames.
        """
        relation = inverse_similarity(self.poses[first]) @ self.poses[second]
        back = adjoint_of(inverse_similarity(self.poses[second]))
        covariance = back @ (self.spread[second] - self.spread[first])
        return relation, covariance @ np.swapaxes(back, -1, -2)


@dataclass(frozen=True)
class Correction:
    """Where loops put the keyframes.

    Attributes:
        poses: (N, 4, 4) map_from_camera similarities; the scale is map units per the keyframe's.
        worlds: (N,) number of the segment whose world each keyframe's pose is in.
        square: squared residual of each loop in standard deviations.
    """

    poses: NDArray[np.float64]
    worlds: NDArray[np.int64]
    square: NDArray[np.float64]


def correct(chains: Chains, loops: Sequence[Loop], scale_sigma: float = np.inf) -> Correction:
    """Return where the keyframes are if loops between them count.

    Segments that a loop connects have one world, that of the earliest of them; the others keep
    their own.

    Args:
        chains: the keyframes.
        loops: between them; those that contradict the others count for nothing.
        scale_sigma: standard deviation of the logarithm of each keyframe's unit, where it is
            known by other means.
    """
    return finished(correction(chains, loops, scale_sigma))


def correction(
    chains: Chains, loops: Sequence[Loop], scale_sigma: float = np.inf
) -> Parts[Correction]:
    """Do what `correct` does, in parts."""
    worlds = _worlds(chains, loops)
    poses, square = chains.poses.copy(), np.zeros(len(loops))
    for world in np.unique(worlds):
        own = [number for number, loop in enumerate(loops) if worlds[loop.first] == world]
        if not own:
            continue
        chosen = [loops[number] for number in own]
        members = np.unique(chains.segments[worlds == world])
        junctions = _junctions(chains, chosen, members)
        start = _in_one_world(chains, chosen, members)
        graph = _graph(chains, chosen, junctions, start[junctions], scale_sigma)
        yield len(graph.edges)
        solved = yield from solution(graph)
        square[own] = solved.square[-len(own) :]
        _distribute(chains, junctions, solved.world_from_node, poses)
    return Correction(poses, worlds, square)


def _worlds(chains: Chains, loops: Sequence[Loop]) -> NDArray[np.int64]:
    """Return the number of the segment whose world each keyframe is in, (N,)."""
    root = {int(segment): int(segment) for segment in np.unique(chains.segments)}
    for loop in loops:
        one, other = (root[int(chains.segments[end])] for end in (loop.first, loop.second))
        root = {name: min(one, other) if at in (one, other) else at for name, at in root.items()}
    return np.array([root[int(segment)] for segment in chains.segments], np.int64)


def _in_one_world(
    chains: Chains, loops: Sequence[Loop], segments: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the poses (N, 4, 4) with some segments moved to where loops put them."""
    poses, placed = chains.poses.copy(), {int(segments[0])}
    while len(placed) < len(segments):
        for loop in loops:
            ends = (loop.first, loop.second)
            known = [int(chains.segments[end]) in placed for end in ends]
            if known[0] == known[1]:
                continue
            relation = loop.first_from_second
            there, new = ends if known[0] else ends[::-1]
            relation = relation if known[0] else inverse_similarity(relation)
            own = chains.segments == chains.segments[new]
            poses[own] = poses[there] @ relation @ inverse_similarity(poses[new]) @ poses[own]
            placed.add(int(chains.segments[new]))
    return poses


def _junctions(
    chains: Chains, loops: Sequence[Loop], segments: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the indices of the ends of loops, and of the first keyframe of each segment."""
    begins = np.searchsorted(chains.segments, segments)
    ends = [end for loop in loops for end in (loop.first, loop.second)]
    return np.unique(np.concatenate([begins, np.array(ends, np.int64)]))


def _graph(
    chains: Chains,
    loops: Sequence[Loop],
    junctions: NDArray[np.int64],
    start: NDArray[np.float64],
    scale_sigma: float,
) -> Graph:
    """Return the junctions' graph; its last edges are the loops."""
    follows = np.flatnonzero(np.diff(chains.segments[junctions]) == 0)
    relations, covariances = chains.between(junctions[follows], junctions[follows + 1])
    ends = np.searchsorted(junctions, np.array([(loop.first, loop.second) for loop in loops]))
    measured = np.stack([loop.first_from_second for loop in loops])
    noise = np.stack([loop.covariance for loop in loops])
    edges = Edges(
        np.concatenate([follows, ends[:, 0]]),
        np.concatenate([follows + 1, ends[:, 1]]),
        np.concatenate([relations, measured]),
        np.linalg.inv(np.concatenate([covariances, noise])),
        np.arange(len(follows) + len(loops)) >= len(follows),
    )
    return Graph(start, edges, np.full(len(start), scale_sigma))


def _distribute(
    chains: Chains,
    junctions: NDArray[np.int64],
    solved: NDArray[np.float64],
    poses: NDArray[np.float64],
) -> None:
    """Write where the keyframes between junctions are, given the junctions (J, 4, 4).

    What a row of steps is off by is spread over them by their covariances; behind the last
    junction of a segment nothing is known of what they are off by.
    """
    inside = np.flatnonzero(np.isin(chains.segments, chains.segments[junctions]))
    node = np.searchsorted(junctions, inside, side="right") - 1
    base = solved @ inverse_similarity(chains.poses[junctions])
    steps = np.flatnonzero(np.diff(chains.segments[junctions]) == 0)
    here, there = junctions[steps], junctions[steps + 1]
    off = motion_of(inverse_similarity(base[steps]) @ base[steps + 1])
    covariance = chains.spread[there] - chains.spread[here]
    whole = np.zeros((len(junctions), 7))
    whole[steps] = np.linalg.solve(covariance, off[:, :, None])[..., 0]
    grown = chains.spread[inside] - chains.spread[junctions[node]]
    shares = np.einsum("nij,nj->ni", grown, whole[node])
    poses[inside] = base[node] @ moved_by(shares) @ chains.poses[inside]
