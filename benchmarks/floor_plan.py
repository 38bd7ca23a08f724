"""How well the occupancy grid shows a furnished room, by exact geometry and by the network.

    python benchmarks/floor_plan.py DIRECTORY -o benchmarks/results/floor_plan.json

DIRECTORY keeps renderings. A camera drives through a room at 0.9 m, or flies as in
benchmarks/loop_closure.py. The truth is the room's: a cell is occupied where a solid comes within
7.5 mm of a point of a lattice (1 cm in the plane, 5 cm in height) in the cell and in the band of
heights, and was seen if the true depth of an image, at the network's resolution and no farther
than the grid's range, has a point of it there. With E the cells that the grid has occupied, F those
that it has free, T those that are and S those that were seen,

    iou          |E and T| / |E or (T and S)|
    iou_fine     the same, where a cell was seen if any of the camera's 320x240 pixels shows it
    iou_1        the same, where a cell counts as right if one of its eight neighbours is
    free_wrong   |F and T| / |F|
    missed       |F and T and S| / |T and S|

By exact geometry poses are true and depth is exact, at the network's resolution. By the network
all is the product's, with odometry (1 % too long, noisy, turning away) for metres and an IMU made
of the true poses for the vertical, and the camera stands still for 2.5 seconds first; the map is
put to the truth by its trajectory (SE(3)).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from loop_flights import CAMERA, HEIGHT, PERIOD_NS, Rendered, rendered
from metric_scale import drifting
from numpy.typing import NDArray
from result_table import ResultTable
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from qvggt_core.evaluate.trajectory import align
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform, unproject
from qvggt_core.occupancy.grid import FREE, OCCUPIED, OccupancyGrid
from qvggt_core.occupancy.mapper import OccupancyMapper
from qvggt_core.parameters import Parameters
from qvggt_core.stream import (
    DeferredReconstructor,
    Frame,
    FrameGeometry,
    Preprocessor,
    Reconstruction,
    Reconstructor,
)
from qvggt_core.stream.frame import Scale, Up
from qvggt_core.stream.load_network import load_network
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.world import World

_LATTICE, _LATTICE_UP, _NEAR = 0.01, 0.05, 0.0075
_GRAVITY, _IMU_HZ = 9.80665, 100
_AT_REST = 25
WIDTH_SEEN = 128
_HEIGHT, _PITCH, _RADIUS, _STEP = 0.9, -0.2, 1.0, 0.06


@dataclass(frozen=True)
class Place:
    """A room, and what a camera saw of it."""

    world: World
    flight: Rendered


def flown(directory: Path, seed: int) -> Place:
    """Return a room and the flight of benchmarks/loop_closure.py through it."""
    return Place(make_world("room", seed), rendered(directory, "room", seed, seed % 2, 220))


def driven(directory: Path, seed: int, frames: int = 220) -> Place:
    """Return a room and a drive in circles through it, looking half ahead and half outward."""
    world, file = make_world("room", seed), directory / f"drive_room_{seed}_{frames}.npz"
    if not file.exists():
        angle = np.arange(frames) * _STEP / _RADIUS + seed
        place = _RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        body = Rotation.from_euler(
            "ZYX", np.stack([angle + 0.25 * np.pi, 0 * angle - _PITCH, 0 * angle], axis=1)
        ).as_matrix()
        poses = np.stack(
            [
                transform(r, np.append(p, _HEIGHT)) @ FLU_FROM_OPTICAL
                for r, p in zip(body, place, strict=True)
            ]
        )
        scene = Scene(world)
        views = [
            scene.render(pose, CAMERA.intrinsics, HEIGHT, CAMERA.width, samples=1) for pose in poses
        ]
        np.savez(
            file,
            poses=poses,
            images=np.stack([view.colour for view in views]),
            depth=np.stack([view.depth for view in views]).astype(np.float16),
        )
    with np.load(file) as content:
        return Place(world, Rendered(content["poses"], content["images"], content["depth"]))


def solid(world: World, parameters: Parameters) -> NDArray[np.float64]:
    """Return the points (N, 3) of a lattice in the band of heights that are in or at a solid."""
    low, high = np.array(world.flight_low) - 0.8, np.array(world.flight_high) + 0.8
    x = np.arange(low[0], high[0], _LATTICE)
    y = np.arange(low[1], high[1], _LATTICE)
    z = np.arange(parameters.grid_min_height, parameters.grid_max_height, _LATTICE_UP)
    found = []
    for height in z:
        plane = np.stack([*map(np.ravel, np.meshgrid(x, y)), np.full(len(x) * len(y), height)], 1)
        found.append(plane[world.clearance(plane) <= _NEAR])
    return np.concatenate(found)


def seen(flight: Rendered, parameters: Parameters, width: int) -> NDArray[np.float64]:
    """Return the points (N, 3) of true depth in the band and the range, thinned to 5 mm.

    Depth is taken at so many columns of an image, evenly, and at as many rows as belong to them.
    """
    step, found = CAMERA.width / width, []
    columns = np.rint((np.arange(width) + 0.5) * step - 0.5).astype(int)
    rows = np.rint((np.arange(int(CAMERA.height / step)) + 0.5) * step - 0.5).astype(int)
    for pose, depth in zip(flight.poses, flight.depth, strict=True):
        points = unproject(depth.astype(np.float32), CAMERA.intrinsics)
        points = points[np.ix_(rows, columns)].reshape(-1, 3)
        points = points[np.linalg.norm(points, axis=1) <= parameters.grid_max_range]
        points = points @ pose[:3, :3].T + pose[:3, 3]
        height = points[:, 2]
        in_band = (height >= parameters.grid_min_height) & (height < parameters.grid_max_height)
        _, one = np.unique(np.floor(points[in_band] / 0.005), axis=0, return_index=True)
        found.append(points[in_band][one])
    return np.concatenate(found)


def figures(
    grid: OccupancyGrid, place: Place, map_from_world: NDArray, parameters: Parameters
) -> dict[str, float]:
    """Return how a grid compares with the truth."""
    room = 20  # cells around the grid, for what lies beyond it
    cells = np.pad(grid.cells, room, constant_values=-1)
    origin = grid.origin[:2] - room * grid.resolution
    truth, was_seen, was_seen_fine = (
        _rasterized(points @ map_from_world[:3, :3].T + map_from_world[:3, 3], origin, grid, cells)
        for points in (
            solid(place.world, parameters),
            seen(place.flight, parameters, WIDTH_SEEN),
            seen(place.flight, parameters, CAMERA.width),
        )
    )
    wanted, occupied, free = truth & was_seen, cells == OCCUPIED, cells == FREE
    near = [cv2.dilate(each.astype(np.uint8), np.ones((3, 3))) > 0 for each in (truth, occupied)]
    right, reached = (occupied & near[0]).sum(), (wanted & near[1]).sum()
    return {
        "iou": _share(occupied & truth, occupied | wanted),
        "iou_fine": _share(occupied & truth, occupied | (truth & was_seen_fine)),
        "iou_1": float((right + reached) / (occupied.sum() + wanted.sum() + 1e-9))
        if wanted.any()
        else 0.0,
        "free_wrong": _share(free & truth, free),
        "missed": _share(free & wanted, wanted),
        "right_cells": int((occupied & truth).sum()),
        "false_cells": int((occupied & ~truth).sum()),
        "lacking_cells": int((wanted & ~occupied).sum()),
        "free_m2": float(free.sum() * grid.resolution**2),
    }


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(part.sum() / max(int(whole.sum()), 1))


def _rasterized(
    points: NDArray, origin: NDArray, grid: OccupancyGrid, cells: NDArray
) -> NDArray[np.bool_]:
    index = np.floor((points[:, :2] - origin) / grid.resolution).astype(np.int64)
    inside = (index >= 0).all(axis=1) & (index < cells.shape[::-1]).all(axis=1)
    found = np.zeros(cells.shape, bool)
    found[index[inside, 1], index[inside, 0]] = True
    return found


def by_oracle(place: Place, parameters: Parameters, size: tuple[int, int]) -> dict[str, Any]:
    """Return the figures of true poses and exact depth."""
    flight, preprocessor = place.flight, Preprocessor(*size)
    # As a map is: from the first camera, level, its heading along x.
    first = flight.poses[0]
    heading = np.arctan2(first[1, 2], first[0, 2])
    map_from_world = inverse(transform(Rotation.from_euler("z", heading).as_matrix(), first[:3, 3]))
    mapper, seconds, scene = OccupancyMapper(parameters), [], Scene(place.world)
    for index, (pose, image) in enumerate(zip(flight.poses, flight.images, strict=True)):
        view = preprocessor.view(Frame(index * PERIOD_NS, image, CAMERA, "camera"))
        assert view.intrinsics is not None
        height, width = view.image.shape[:2]
        shown = scene.render(pose, view.intrinsics, height, width, samples=1).depth
        geometry = FrameGeometry(
            map_from_world @ pose, shown, np.ones_like(shown), view=view, intrinsics=view.intrinsics
        )
        start = time.perf_counter()
        mapper.add(Reconstruction(0, (geometry,), Scale(1.0, "parameter"), up=Up(source="imu")))
        seconds.append(time.perf_counter() - start)
    grid = mapper.grid()
    assert grid is not None, mapper.missing
    found = figures(grid, place, map_from_world, parameters)
    return {**found, "seconds_a_frame": float(np.median(seconds))}


def by_network(place: Place, loaded: Any, seed: int) -> dict[str, Any]:
    """Return the figures of the product on the images, with odometry and an IMU."""
    flight = _begun_at_rest(place.flight)
    stamps = [index * PERIOD_NS for index in range(len(flight.poses))]
    reconstructor = DeferredReconstructor(
        Reconstructor(loaded.network, loaded.parameters), hopes_for_up=True
    )
    results, sensors = [], _Sensors(flight, seed)
    for stamp, image in zip(stamps, flight.images, strict=True):
        sensors.give(reconstructor.sensors, stamp)
        results += reconstructor.add(Frame(stamp, image, CAMERA, "camera"))
    results += reconstructor.flush()
    segment = max(
        (r.segment for r in results if r.frames),
        key=lambda s: sum(len(r.frames) for r in results if r.segment == s),
    )
    own = [result for result in results if result.frames and result.segment == segment]
    mapper = OccupancyMapper(loaded.parameters)
    for result in own:
        mapper.add(result)
    frames = [geometry for result in own for geometry in result.frames]
    path = np.stack([geometry.map_from_camera for geometry in frames])
    true = np.stack([flight.poses[g.view.stamp_ns // PERIOD_NS] for g in frames])
    _, world_from_map = align(path, true, "se3")
    off = (world_from_map @ path)[:, :3, 3] - true[:, :3, 3]
    facts = {
        "ate_m": float(np.sqrt(np.square(off).sum(axis=1).mean())),
        "up": own[-1].up.source,
        "tilt_deg": float(np.degrees(np.arccos(np.clip(world_from_map[2, 2], -1, 1)))),
        "frames": len(frames),
        "segments": len({result.segment for result in results if result.frames}),
        "events": [event for result in results for event in result.events],
    }
    grid = mapper.grid()
    if grid is None:
        return {**facts, "missing": mapper.missing}
    return {**figures(grid, place, inverse(world_from_map), loaded.parameters), **facts}


def _begun_at_rest(flight: Rendered) -> Rendered:
    """Return a flight that stands still before it begins, as robots do."""
    index = np.concatenate([np.zeros(_AT_REST, int), np.arange(len(flight.poses))])
    return Rendered(flight.poses[index], flight.images[index], flight.depth[index])


class _Sensors:
    """Odometry and an IMU of a flight."""

    def __init__(self, flight: Rendered, seed: int) -> None:
        self._rng = np.random.default_rng([7, seed])
        times = np.arange(len(flight.poses)) * PERIOD_NS * 1e-9
        self._position = CubicSpline(times, flight.poses[:, :3, 3])
        self._turn = RotationSpline(times, Rotation.from_matrix(flight.poses[:, :3, :3]))
        self._times = np.arange(times[0], times[-1], 1.0 / _IMU_HZ)
        self._odometry = drifting(self._position(self._times), self._rng)
        self._given = 0

    def give(self, sensors: Any, stamp_ns: int) -> None:
        """Give what was measured up to a time."""
        while self._given < len(self._times) and self._times[self._given] <= 1e-9 * stamp_ns:
            at, odometry = self._times[self._given], self._odometry[self._given]
            back = self._turn(at).inv()
            felt = back.apply(self._position(at, 2) + np.array([0.0, 0.0, _GRAVITY]))
            rate = self._turn(at, 1)
            noise = self._rng.normal(0, [0.05] * 3 + [0.005] * 3)
            odom_from_camera = transform(self._turn(at).as_matrix(), odometry)
            sensors.add_odometry(round(1e9 * at), odometry, odom_from_camera)
            sensors.add_imu(round(1e9 * at), felt + noise[:3], rate + noise[3:])
            self._given += 1


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31])
    parser.add_argument("--only", choices=("oracle", "network"), help="what else is there stays")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    loaded = load_network(Parameters(compute_dtype="float32", occupancy_grid=True))
    table = ResultTable(args.output, keeps_others=bool(args.only))
    size = (loaded.network.image_width, loaded.network.patch_size)
    for kind, make in (("drive", driven), ("flight", flown)):
        for seed in args.seeds:
            place = make(args.directory, seed)
            if args.only != "network":
                table.add(f"exact, {kind}, room {seed}", by_oracle(place, loaded.parameters, size))
            if args.only != "oracle":
                table.add(f"network, {kind}, room {seed}", by_network(place, loaded, seed))


if __name__ == "__main__":
    main()
