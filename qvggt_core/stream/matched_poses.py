"""A window's poses and depth from where its patches are seen in its other views.

A small network learns sooner to find patches again than to give poses. So poses are solved for:
each view in turn against the one before it that shares most with it, by the depth that the network
gives and by the five-point algorithm; then all views and all points together. What depth is worth
is known: the network's errors in kinds of places that it was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.adjustment import Adjusted, adjust
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.depth_correction import SeenPoints, correct_depth
from qvggt_core.stream.frame import WindowPrediction
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.resection import Sighting, resect
from qvggt_core.stream.two_view import relate
from qvggt_core.stream.view_matches import ViewMatches

_PIXEL_SIGMA = 0.5
_DEPTH_SIGMA = 1.2
"""Standard deviation of the logarithm of the network's depth at a patch.

It is 0.3 in kinds of places that it was not trained on, and alike over a dozen patches or more,
which together may weigh no more than one: else poses take over what is wrong with the depth.
"""

_FEWEST = 8
"""Matches that give a view's pose; with fewer it stays where the camera head puts it."""

_ITERATIONS = 12
_BANDWIDTH = 0.06
"""Of the depth's correction, as a share of the image's width: about a patch of our network."""

_AGREES = 0.5
"""Mean weight of what views see of a point from which its distance counts."""


def solve_window(
    prediction: WindowPrediction,
    matches: ViewMatches,
    intrinsics: NDArray[np.float64],
    log_focal_sigma: float = 0.0,
) -> WindowPrediction:
    """Return a window with the poses that its matches show, and depth that agrees with them.

    The unit of length stays the network's as far as the depth of all views together gives it.

    Args:
        prediction: of S views; only views with depth describe points.
        matches: between its views.
        intrinsics: (S, 3, 3) in pixels, known or as predicted.
        log_focal_sigma: standard deviation of the logarithm of the focal length that all views
            share; 0 where it is known.
    """
    if len(intrinsics) < 2:
        return replace(prediction, intrinsics=intrinsics)
    hosts = _hosts(prediction, matches, intrinsics)
    sigma = _PIXEL_SIGMA / float(np.mean(intrinsics[:, 0, 0]))
    poses = _one_by_one(hosts, prediction.camera_from_world, sigma)
    depth = prediction.depth
    if any(len(host.seen_by) for host in hosts):
        adjusted = _together(hosts, poses, sigma, log_focal_sigma)
        poses = adjusted.bundle.camera_from_map
        intrinsics = intrinsics.copy()
        intrinsics[:, [0, 1], [0, 1]] *= np.exp(adjusted.bundle.log_focal)
        depth = _corrected(hosts, adjusted, depth)
    return replace(
        prediction,
        camera_from_world=poses,
        intrinsics=intrinsics,
        depth=depth,
        world_points=None,
        is_solved=True,
    )


@dataclass(frozen=True)
class _Host:
    """A view with depth, whose patches other views see.

    Attributes:
        view: its number.
        pixels: (N, 2) middles of the patches that have depth and that another view sees.
        rays: (N, 2) x / z and y / z of them.
        depth: (N,) the network's.
        seen_by: numbers of the views that see enough of them.
        is_seen: (S, N) whether a view does.
        seen: (S, N, 2) x / z and y / z where it does.
    """

    view: int
    pixels: NDArray[np.float64]
    rays: NDArray[np.float64]
    depth: NDArray[np.float64]
    seen_by: NDArray[np.int64]
    is_seen: NDArray[np.bool_]
    seen: NDArray[np.float64]

    def points(self, view_from_map: NDArray[np.float64]) -> Points:
        """Return the N points in the map, as certain as the network's depth."""
        rotation = view_from_map[:3, :3]
        centre = -rotation.T @ view_from_map[:3, 3]
        directions = np.column_stack([self.rays, np.ones(len(self.rays))])
        length = np.linalg.norm(directions, axis=1)
        rho = 1.0 / (self.depth * length)
        return Points(
            ids=np.arange(len(rho)),
            origins=np.tile(centre, (len(rho), 1)),
            directions=directions / length[:, None] @ rotation,
            inverse_distance=rho,
            sigma=_DEPTH_SIGMA * rho,
            prior=rho,
            prior_sigma=_DEPTH_SIGMA * rho,
        )


def _hosts(
    prediction: WindowPrediction, matches: ViewMatches, intrinsics: NDArray[np.float64]
) -> list[_Host]:
    without_depth = len(intrinsics) - len(prediction.depth)
    found = []
    for view in range(without_depth, len(intrinsics)):
        columns, rows = np.rint(matches.pixels).astype(int).T
        depth = prediction.depth[view - without_depth][rows, columns].astype(np.float64)
        is_seen = matches.is_found[view] & np.isfinite(depth) & (depth > 0)
        seen_by = np.flatnonzero(is_seen.sum(axis=1) >= _FEWEST)
        is_seen[np.setdiff1d(np.arange(len(is_seen)), seen_by)] = False
        index = np.flatnonzero(is_seen.any(axis=0))
        pixels = matches.pixels[index]
        seen = np.stack(
            [
                _rays(places[index], k)
                for places, k in zip(matches.places[view], intrinsics, strict=True)
            ]
        )
        rays = _rays(pixels, intrinsics[view])
        found.append(_Host(view, pixels, rays, depth[index], seen_by, is_seen[:, index], seen))
    return found


def _rays(pixels: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return (pixels - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]


def _one_by_one(
    hosts: list[_Host], predicted: NDArray[np.float64], sigma: float
) -> NDArray[np.float64]:
    """Return poses (S, 4, 4): those of the camera head, moved by what matches show of each."""
    count = len(predicted)
    shared = np.zeros((count, count))
    by_view = {host.view: host for host in hosts}
    for host in hosts:
        shared[host.view] += host.is_seen.sum(axis=1)
        shared[:, host.view] += host.is_seen.sum(axis=1)
    poses = predicted @ inverse(predicted[0])
    far = np.divide(1.0, shared, out=np.zeros_like(shared), where=shared > 0)
    order, before = breadth_first_order(minimum_spanning_tree(far), 0, directed=False)
    for view in order[1:]:
        one, step = before[view], predicted[view] @ inverse(predicted[before[view]])
        ways = []
        if one in by_view:
            ways.append(_motion(by_view[one], view, step, sigma))
        if view in by_view:
            back = _motion(by_view[view], one, inverse(step), sigma)
            ways.append((back[0], inverse(back[1])))
        poses[view] = min(ways, key=lambda way: way[0])[1] @ poses[one]
    return poses


def _motion(
    host: _Host, view: int, start: NDArray[np.float64], sigma: float
) -> tuple[float, NDArray[np.float64]]:
    """Return the cost and view_from_host (4, 4) by what a view sees of a host's points."""
    index = np.flatnonzero(host.is_seen[view])
    if len(index) < _FEWEST:
        return np.inf, start
    sighting = Sighting(host.points(np.eye(4)).take(index), host.seen[view, index], sigma)
    starts = [np.eye(4)]
    views = relate(host.rays[index], host.seen[view, index], sigma)
    if views is not None and np.count_nonzero(views.agrees) >= _FEWEST:
        motion = views.second_from_first.copy()
        ratio = host.depth[index][views.agrees] / views.points[views.agrees, 2]
        motion[:3, 3] *= float(np.median(ratio))
        starts.append(motion)
    found = resect(sighting, starts)
    return found.cost, found.camera_from_map


def _together(
    hosts: list[_Host], poses: NDArray[np.float64], sigma: float, log_focal_sigma: float
) -> Adjusted:
    """Adjust all poses but the first, the hosts' points in their order, and the focal length."""
    is_free = np.arange(len(poses)) > 0
    camera, point, rays = _observations(hosts)
    points = _joined([host.points(poses[host.view]) for host in hosts])
    bundle = Bundle(
        poses, is_free, points, camera, point, rays, sigma, log_focal_sigma=log_focal_sigma
    )
    return adjust(bundle, _ITERATIONS, with_point_sigma=True)


def _observations(
    hosts: list[_Host],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return view, point and ray of all observations, the hosts' own included."""
    cameras, points, rays, first = [], [], [], 0
    for host in hosts:
        view, point = np.nonzero(host.is_seen)
        own = np.arange(len(host.rays))
        cameras += [np.full(len(own), host.view), view]
        points += [first + own, first + point]
        rays += [host.rays, host.seen[view, point]]
        first += len(own)
    return np.concatenate(cameras), np.concatenate(points), np.concatenate(rays)


def _joined(parts: list[Points]) -> Points:
    both = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])
    }
    return Points(**{**both, "ids": np.arange(len(both["ids"]))})


def _corrected(
    hosts: list[_Host], adjusted: Adjusted, depth: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the hosts' depth (D, H, W), corrected by those of their points that views agree on."""
    bundle = adjusted.bundle
    points, count = bundle.points, len(bundle.points)
    weight = np.bincount(bundle.point, adjusted.weights, count) / np.bincount(
        bundle.point, minlength=count
    )
    sigma = adjusted.point_sigma / points.inverse_distance
    result, first = depth.copy(), 0
    for number, host in enumerate(hosts):
        own = slice(first, first + len(host.rays))
        first = own.stop
        pose = bundle.camera_from_map[host.view]
        distance = (points.positions[own] @ pose[:3, :3].T + pose[:3, 3])[:, 2]
        good = (distance > 0) & (weight[own] > _AGREES)
        seen = SeenPoints(host.pixels[good], distance[good], sigma[own][good])
        corrected = correct_depth(depth[number], seen, _BANDWIDTH)
        if corrected is not None:
            result[number] = corrected.depth
    return result
