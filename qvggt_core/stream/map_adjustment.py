"""All keyframes of a world adjusted together, by the corners that they share.

A graph of poses spreads what loops show over the way between, and a loop is no surer than the depth
that it was found by. Corners that many keyframes see show where all of these were to a fraction of
that: bundle adjustment of the whole map, from where the graph has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median, median_filter

from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import (
    inverse_similarity,
    rigid,
    rotation_of,
    scale_of,
    similarity,
)
from qvggt_core.stream.adjustment import adjust
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.corner_tracks import CornerTracks, corner_tracks
from qvggt_core.stream.corrected_path import KeyframeCorrections, corrections_at
from qvggt_core.stream.keyframe_chain import Chains, Loop
from qvggt_core.stream.loop_verification import Corners
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.pose_graph import Edges

FAILURES = (np.linalg.LinAlgError, RuntimeError, MemoryError, cv2.error)
"""What stops an adjustment: numbers without a solution, or too little memory."""

# Keyframes that are compared: so many after each one, and those around both ends of a loop.
_FOLLOWING, _AROUND = 3, 1
# Of corners, in pixels: at first, and at least when it is known what is left of them.
_FIRST_SIGMA, _LEAST_SIGMA = 1.0, 0.2
# Length of a vector of two normally distributed numbers of deviation 1, in the median, and by how
# many times their deviation corners are off that are no more counted.
_MEDIAN_LENGTH, _OUTLIER = 1.1774, 4.0
# Depth at a corner is off by so much of it, alike for its neighbours: it decides where nothing else
# does, and is left to the corners where they show more.
_DEPTH_SIGMA = 0.3
# The steps between keyframes come of the same images: they count for little beside the corners. How
# long they are counts for less, as the unit drifts along the way.
_STEP_FACTOR, _LENGTH = 3.0, 0.2
_ROUNDS, _ITERATIONS = 3, 40
# Points that a keyframe sees, that two share, and keyframes: more are not worth their time.
_SEEN, _SHARED, _MOST_KEYFRAMES = 200, 30, 600
_FEWEST_POINTS, _FEWEST_DEPTHS = 50, 8
# The unit is about the same for so many keyframes in a row; the depth of one may be its own.
_ALIKE = 5
# Extent of a path, as a share of the distance of things, from which it shows a unit.
_MOVED = 0.03


@dataclass(frozen=True)
class World:
    """K keyframes whose poses are known in one world, in order of time.

    Attributes:
        corners: of each, depth in its own unit.
        poses: (K, 4, 4) map_from_camera similarities; the scale is map units per the keyframe's.
        chains: the same keyframes as they were placed, and how sure their steps are.
        loops: between them.
    """

    corners: Sequence[Corners]
    poses: NDArray[np.float64]
    chains: Chains
    loops: Sequence[Loop]

    def __len__(self) -> int:
        """Return the number of keyframes."""
        return len(self.poses)


@dataclass(frozen=True)
class AdjustedWorld:
    """Where corners put the K keyframes of a world.

    Attributes:
        poses: (K, 4, 4) as `World.poses`.
        points: number of points that keyframes share.
        residual: pixels by which corners are off, the median.
    """

    poses: NDArray[np.float64]
    points: int
    residual: float


def adjusted(world: World) -> AdjustedWorld | None:
    """Return a world whose keyframes are where their corners show; None where too few are shared.

    The first keyframe stays, and so does the extent of the path: what is known of the unit is not
    the corners' to change. Where the camera has hardly moved, depth holds it.
    """
    tracks = corner_tracks(world.corners, pairs_of(world))
    if tracks.points < _FEWEST_POINTS:
        return None
    tracks = tracks.thinned(_SEEN, _SHARED)
    bundle, focal = _bundle(world, tracks), _focal(world)
    for number in range(_ROUNDS):
        if len(bundle.points) < _FEWEST_POINTS:
            return None
        # Corners that were taken for others pull as long as they count at all, and all alike.
        bundle = bundle if number == 0 else _without_outliers(bundle, _LEAST_SIGMA / focal)
        bundle = adjust(bundle, _ITERATIONS).bundle
    before, after = rigid(world.poses), inverse(bundle.camera_from_map)
    has_moved = _extent(before) * float(np.median(bundle.points.inverse_distance)) > _MOVED
    factor = _extent(before) / _extent(after) if has_moved else 1.0
    origin = before[0, :3, 3]
    places = origin + factor * (after[:, :3, 3] - origin)
    units = scale_of(world.poses) * factor * _stretch(world, tracks, bundle)
    off = np.linalg.norm(bundle.residuals(), axis=1) * bundle.sigma * focal
    poses = similarity(units, after[:, :3, :3], places)
    if not np.isfinite(poses).all():
        return None
    return AdjustedWorld(poses, len(bundle.points), float(np.median(off)))


def adjusted_worlds(
    corners: Sequence[Corners],
    chains: Chains,
    loops: Sequence[Loop],
    worlds: NDArray[np.int64],
    poses: NDArray[np.float64],
) -> tuple[NDArray[np.float64], list[AdjustedWorld]]:
    """Return the poses of all keyframes, each world adjusted by itself.

    Args:
        corners: of N keyframes.
        chains: the keyframes as they were placed.
        loops: between them.
        worlds: (N,) numbers of the worlds that loops have put them in.
        poses: (N, 4, 4) similarities, where.

    Returns:
        Poses (N, 4, 4), and what was adjusted; a world whose keyframes share too little is as it
        was.

    Raises:
        LinAlgError, RuntimeError, MemoryError, cv2.error: see `FAILURES`.
    """
    poses, found = poses.copy(), []
    for number in np.unique(worlds):
        members = np.flatnonzero(worlds == number)
        inside = [loop for loop in loops if worlds[loop.first] == number]
        own = _chosen(members, chains.segments, inside, _MOST_KEYFRAMES)
        world = World(
            [corners[int(index)] for index in own],
            poses[own],
            Chains(chains.poses[own], chains.segments[own], chains.spread[own]),
            [loop.renumbered(own) for loop in inside],
        )
        better = adjusted(world)
        if better is not None:
            moves = better.poses @ inverse_similarity(poses[own])
            of_chosen = KeyframeCorrections(own, chains.segments[own], worlds[own], moves)
            _, every = corrections_at(members, chains.segments[members], of_chosen)
            poses[members] = every @ poses[members]
            found.append(better)
    return poses, found


def _chosen(
    members: NDArray[np.int64], segments: NDArray[np.int64], loops: Sequence[Loop], most: int
) -> NDArray[np.int64]:
    """Return about so many keyframes, evenly chosen, the first of segments and ends of loops too.

    The others move with them.
    """
    if len(members) <= most:
        return members
    even = members[np.linspace(0, len(members) - 1, most).astype(int)]
    begins = members[np.diff(segments[members], prepend=-1) != 0]
    ends = [end for loop in loops for end in (loop.first, loop.second)]
    return np.unique(np.concatenate([even, begins, np.array(ends, np.int64)]))


def pairs_of(world: World) -> list[tuple[int, int]]:
    """Return the pairs of keyframes that may see the same points, the earlier one first."""
    count, near = len(world), range(-_AROUND, _AROUND + 1)
    pairs = {(i, i + step) for i in range(count) for step in range(1, _FOLLOWING + 1)}
    for loop in world.loops:
        ends = [(loop.first + one, loop.second + other) for one in near for other in near]
        pairs |= {(min(pair), max(pair)) for pair in ends}
    return sorted(pair for pair in pairs if 0 <= pair[0] < pair[1] < count)


def _bundle(world: World, tracks: CornerTracks) -> Bundle:
    """Return keyframes and points where the graph and depth have them."""
    sizes = [len(each.rays) for each in world.corners]
    index = np.cumsum([0, *sizes])[tracks.keyframe] + tracks.corner
    rays = np.concatenate([each.rays for each in world.corners])[index]
    poses = rigid(world.poses)
    return Bundle(
        inverse(poses),
        np.arange(len(world)) > 0,
        _points(world, tracks, rays),
        tracks.keyframe,
        tracks.point,
        rays,
        _FIRST_SIGMA / _focal(world),
        edges=_edges(world, poses),
    )


def _focal(world: World) -> float:
    return float(np.median([each.focal for each in world.corners]))


def _points(world: World, tracks: CornerTracks, rays: NDArray[np.float64]) -> Points:
    """Return the points from where each is first seen, by the median of what all depths show."""
    turns, places = rotation_of(world.poses)[tracks.keyframe], world.poses[tracks.keyframe, :3, 3]
    directions = np.einsum("nij,nj->ni", turns, np.column_stack([rays, np.ones(len(rays))]))
    _, first = np.unique(tracks.point, return_index=True)
    origins = places[first]
    seen = places + _depths(world, tracks)[:, None] * directions - origins[tracks.point]
    expected = _medians(1.0 / np.linalg.norm(seen, axis=1), tracks.point, len(first))
    known = np.isfinite(expected)
    expected[~known] = np.median(expected[known]) if known.any() else 1.0
    directions = directions[first] / np.linalg.norm(directions[first], axis=1)[:, None]
    sigma = np.where(known, _DEPTH_SIGMA * expected, np.inf)
    numbers = np.arange(len(first))
    return Points(numbers, origins, directions, expected, sigma, expected.copy(), sigma.copy())


def _depths(world: World, tracks: CornerTracks) -> NDArray[np.float64]:
    """Return depth (N,) at the corners in the map's unit, NaN where unknown."""
    scales = scale_of(world.poses)
    begins = np.cumsum([0, *(len(each.depth) for each in world.corners)])
    every = np.concatenate(
        [scale * each.depth for scale, each in zip(scales, world.corners, strict=True)]
    )
    return np.asarray(every[begins[tracks.keyframe] + tracks.corner], np.float64)


def _medians(
    values: NDArray[np.float64], group: NDArray[np.int64], count: int, fewest: int = 1
) -> NDArray[np.float64]:
    """Return the median (G,) of each group's finite values (N,), NaN where they are too few."""
    known = np.isfinite(values)
    some = np.flatnonzero(np.bincount(group[known], minlength=count) >= fewest)
    result = np.full(count, np.nan)
    if len(some):
        result[some] = median(values[known], group[known], some)
    return result


def _edges(world: World, poses: NDArray[np.float64]) -> Edges:
    """Return steps and loops as the graph has them, for where few corners are shared."""
    steps = np.flatnonzero(np.diff(world.chains.segments) == 0)
    ends = np.array([(loop.first, loop.second) for loop in world.loops], np.int64).reshape(-1, 2)
    first, second = np.concatenate([steps, ends[:, 0]]), np.concatenate([steps + 1, ends[:, 1]])
    of_loops = np.array([loop.covariance for loop in world.loops]).reshape(-1, 7, 7)
    _, of_steps = world.chains.between(steps, steps + 1)
    covariance = _STEP_FACTOR**2 * np.concatenate([of_steps, of_loops])[:, :6, :6]
    units = np.ones((len(first), 6))
    units[:, 3:] = scale_of(world.poses)[second, None]
    covariance *= units[:, :, None] * units[:, None, :]
    relation = inverse(poses[first]) @ poses[second]
    along = np.einsum("nji,nj->ni", relation[:, :3, :3], relation[:, :3, 3])
    covariance[:, 3:, 3:] += _LENGTH**2 * along[:, :, None] * along[:, None, :]
    information = np.zeros((len(first), 7, 7))
    information[:, :6, :6] = np.linalg.inv(covariance)
    return Edges(first, second, relation, information, np.zeros(len(first), bool))


def _without_outliers(bundle: Bundle, least_sigma: float) -> Bundle:
    """Return it without corners that are far off, the others as noisy as they show."""
    off = np.linalg.norm(bundle.residuals(), axis=1) * bundle.sigma
    sigma = max(float(np.median(off)) / _MEDIAN_LENGTH, least_sigma)
    agrees = off < _OUTLIER * sigma
    count = np.bincount(bundle.point[agrees], minlength=len(bundle.points))
    agrees &= count[bundle.point] >= 2
    kept = np.flatnonzero(count >= 2)
    return replace(
        bundle,
        points=bundle.points.take(kept),
        camera=bundle.camera[agrees],
        point=np.searchsorted(kept, bundle.point[agrees]),
        rays=bundle.rays[agrees],
        sigma=sigma,
    )


def _stretch(world: World, tracks: CornerTracks, bundle: Bundle) -> NDArray[np.float64]:
    """Return how many times as long the world is at each keyframe (K,), by depth at its corners."""
    pose, numbers = bundle.camera_from_map, bundle.points.ids
    kept = np.isin(tracks.point, numbers)
    keyframe, point = tracks.keyframe[kept], np.searchsorted(numbers, tracks.point[kept])
    local = np.einsum("nj,nj->n", pose[keyframe, 2, :3], bundle.points.positions[point])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log((local + pose[keyframe, 2, 3]) / _depths(world, tracks)[kept])
    usual = _medians(ratio, keyframe, len(world), _FEWEST_DEPTHS)
    known = np.flatnonzero(np.isfinite(usual))
    if len(known) == 0:
        return np.ones(len(world))
    alike = median_filter(usual[known], _ALIKE, mode="mirror")
    return np.exp(np.interp(np.arange(len(world)), known, alike))


def _extent(poses: NDArray[np.float64]) -> float:
    """Return the root mean square of the distance of cameras from their middle."""
    places = poses[:, :3, 3]
    return float(np.sqrt(((places - places.mean(axis=0)) ** 2).sum(axis=1).mean()))
