"""How well the camera's height above the ground gives the scale: true depth, and the network.

    python benchmarks/camera_height.py DIRECTORY -o benchmarks/results/camera_height.json

A robot carries its camera at 0.9 m: in circles through furnished rooms (those of floor_plan.py),
through one where most of what is below the camera are low tables, and up a ramp of 8 degrees and
on. Where a camera is carried up and down by 0.3 m instead, no scale is right. By
exact geometry poses and depth are true but for a unit of 3 m and depth that is bent by 3 % over the
image. By the network all is the product, the scale by `camera_height` alone. The scale's error is
against the truth at each image: true depth by depth, the median over the image.

    known_after_s   seconds until the state is metric; null if never
    rms, worst      of the logarithm of the scale by the truth, from then on
    chi             root mean square of it in the standard deviations that are given out
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from floor_plan import driven
from loop_flights import CAMERA, HEIGHT, PERIOD_NS, WIDTH, Rendered
from numpy.typing import NDArray
from result_table import ResultTable
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.camera import resized_intrinsics
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.frame import FrameGeometry, PlacedView, View
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.metric_map import MetricMap
from qvggt_core.stream.window import Entry
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.world import Box, Light, Rectangle, Texture, World

_HEIGHT, _UNIT, _BENT = 0.9, 3.0, 0.03
_SMALL, _STRIDE = (128, 96), 4
_TABLE, _TABLES, _RING = (0.5, 0.4, 0.03), 6, 1.75
_SLOPE = np.radians(8.0)


@dataclass(frozen=True)
class Drive:
    """What a camera sees, and where it was."""

    world: World
    poses: NDArray[np.float64]


def with_tables(seed: int) -> Drive:
    """Return a room with low tables all around, and a drive in circles."""
    world = make_world("room", seed)
    rng = np.random.default_rng([17, seed])
    boxes = []
    for angle in np.linspace(0.0, 2.0 * np.pi, _TABLES, endpoint=False):
        top = float(rng.uniform(0.35, 0.6))
        look = Texture("checker", (0.7, 0.5, 0.3), (0.4, 0.3, 0.2), 0.2, int(rng.integers(2**15)))
        x, y = _RING * np.cos(angle), _RING * np.sin(angle)
        boxes.append(Box((x, y, top), _TABLE, float(angle), look))
    furnished = World(**{**vars(world), "boxes": (*world.boxes, *boxes)})
    return Drive(furnished, circle(seed))


def circle(seed: int, frames: int = 220, bobbing: float = 0.0) -> NDArray[np.float64]:
    """Return the poses (N, 4, 4) of the drive of floor_plan.py, going up and down by `bobbing`."""
    angle = 0.06 * np.arange(frames) + seed
    turns = np.stack([angle + 0.25 * np.pi, 0 * angle + 0.2, 0 * angle], axis=1)
    body = Rotation.from_euler("ZYX", turns).as_matrix()
    height = _HEIGHT + bobbing * np.sin(2.0 * angle)
    places = np.stack([np.cos(angle), np.sin(angle), height], axis=1)
    return np.stack([transform(r, p) @ FLU_FROM_OPTICAL for r, p in zip(body, places, strict=True)])


def up_a_ramp(seed: int, frames: int = 160) -> Drive:
    """Return a hall whose floor is level, rises by 8 degrees, and is level again, and a drive."""
    rng = np.random.default_rng([18, seed])

    def look(period: float) -> Texture:
        first, second = rng.uniform(0.1, 0.9, (2, 3))
        return Texture("fractal", tuple(first), tuple(second), period, int(rng.integers(2**15)))

    rise, along = 4.0 * np.tan(_SLOPE), (float(np.cos(_SLOPE)), 0.0, float(np.sin(_SLOPE)))
    floor = [
        Rectangle((-1.0, 0.0, 0.0), (1, 0, 0), (0, 1, 0), (3.0, 3.0), look(0.7)),
        Rectangle((4.0, 0.0, rise / 2), along, (0, 1, 0), (2.0 / along[0], 3.0), look(0.7)),
        Rectangle((10.0, 0.0, rise), (1, 0, 0), (0, 1, 0), (4.0, 3.0), look(0.7)),
    ]
    walls = [
        Rectangle((4.0, side * 3.0, 2.0), (1, 0, 0), (0, 0, 1), (10.0, 2.5), look(1.0))
        for side in (-1.0, 1.0)
    ]
    walls += [Rectangle((12.0, 0.0, 2.0), (0, 1, 0), (0, 0, 1), (3.0, 2.5), look(1.0))]
    world = World("ramp", seed, Light((4.0, 0.0, 4.0), 20.0), (0.5, 0.5, 0.5), (0, 0, 0), (1, 1, 1))
    world = World(**{**vars(world), "rectangles": (*floor, *walls)})
    x = np.linspace(-2.0, 7.5, frames)
    y = 0.6 * np.sin(0.8 * x)
    ground = np.interp(x, [2.0, 6.0], [0.0, rise])
    # Wheels half a metre ahead and behind even the edges out.
    pitch = -np.arctan2(np.interp(x + 0.5, x, ground) - np.interp(x - 0.5, x, ground), 1.0)
    yaw = np.arctan(0.48 * np.cos(0.8 * x))
    body = Rotation.from_euler("ZYX", np.stack([yaw, pitch + 0.2, 0 * x], axis=1)).as_matrix()
    up = Rotation.from_euler("Y", pitch[:, None]).as_matrix()[:, :, 2]
    places = np.stack([x, y, ground], axis=1) + _HEIGHT * up
    poses = [transform(r, p) @ FLU_FROM_OPTICAL for r, p in zip(body, places, strict=True)]
    return Drive(world, np.stack(poses))


def pictures(directory: Path, name: str, drive: Drive) -> Rendered:
    """Return what a camera sees on a drive, rendered once."""
    file = directory / f"{name.replace(' ', '_')}.npz"
    if not file.exists():
        scene = Scene(drive.world)
        views = [
            scene.render(pose, CAMERA.intrinsics, HEIGHT, WIDTH, samples=1) for pose in drive.poses
        ]
        np.savez(
            file,
            images=np.stack([view.colour for view in views]),
            depth=np.stack([view.depth for view in views]).astype(np.float16),
        )
    with np.load(file) as content:
        return Rendered(drive.poses, content["images"], content["depth"])


def exact(drive: Drive) -> dict[str, Any]:
    """Return how the scale is by true poses and bent depth, in a unit of 3 m."""
    width, height = _SMALL
    matrix = resized_intrinsics(CAMERA.intrinsics, (width / WIDTH, height / HEIGHT))
    metric = MetricMap(Parameters(camera_height=_HEIGHT), None, lambda event: None)
    scene, first = Scene(drive.world), np.linalg.inv(drive.poses[0])
    bent = 1.0 + _BENT * np.linspace(-1.0, 1.0, height)[:, None] ** 2 * np.ones(width)
    found = []
    for begin in range(0, len(drive.poses), _STRIDE):
        frames = []
        for index in range(begin, min(begin + _STRIDE, len(drive.poses))):
            depth = scene.render(drive.poses[index], matrix, height, width, samples=1).depth
            pose = FLU_FROM_OPTICAL @ first @ drive.poses[index]
            pose[:3, 3] /= _UNIT
            view = View(index * PERIOD_NS, np.zeros((height, width, 3), np.uint8), matrix)
            depth = (depth * bent / _UNIT).astype(np.float32)
            placed = PlacedView(pose, depth, np.ones_like(depth))
            metric.observe(view, placed)
            frames.append(FrameGeometry(view=view, intrinsics=matrix, **vars(placed)))
        metric.place([Entry(frames[-1].view, True)], tuple(frames), "", None)
        found.append((frames[-1].view.stamp_ns, metric.scale, _UNIT / float(np.median(bent))))
    return figures(found)


def by_network(flight: Rendered, loaded: Any) -> dict[str, Any]:
    """Return how the scale is by the product."""
    reconstructor = Reconstructor(loaded.network, loaded.parameters)
    found, events = [], []
    for index, image in enumerate(flight.images):
        for result in reconstructor.add(Frame(index * PERIOD_NS, image, CAMERA, "camera")):
            events += result.events
            found += list(_true_units(result, flight))
    return {**figures(found), "events": events}


def _true_units(result: Any, flight: Rendered) -> Iterator[tuple[int, Any, float]]:
    factor = result.scale.metres_per_unit or 1.0
    for geometry in result.frames[-1:]:
        height, width = geometry.depth.shape
        rows, columns = np.mgrid[:height, :width]
        pixels = (
            np.stack([columns, rows, np.ones_like(rows)], axis=-1)
            @ np.linalg.inv(geometry.intrinsics).T
        )
        u, v, _ = np.rint(pixels @ CAMERA.intrinsics.T).astype(int).transpose(2, 0, 1)
        inside = (u >= 0) & (v >= 0) & (u < WIDTH) & (v < HEIGHT)
        true = flight.depth[geometry.view.stamp_ns // PERIOD_NS].astype(np.float32)
        ratio = true[v.clip(0, HEIGHT - 1), u.clip(0, WIDTH - 1)] / geometry.depth
        ratio = ratio[inside & np.isfinite(ratio)]
        if len(ratio) > 100:
            yield geometry.view.stamp_ns, result.scale, factor * float(np.median(ratio))


def figures(found: list[tuple[int, Any, float]]) -> dict[str, Any]:
    """Return the figures of (stamp, scale, true metres per unit)."""
    known = [each for each in found if each[1].metres_per_unit is not None]
    notes = sorted({re.sub(r"\d+%", "...", scale.note) for _, scale, _ in found if scale.note})
    if not known:
        return {"known_after_s": None, "state": found[-1][1].state.value, "notes": notes}
    off = np.log([scale.metres_per_unit / unit for _, scale, unit in known])
    sigma = np.array([scale.sigma for _, scale, _ in known])
    return {
        "known_after_s": known[0][0] * 1e-9,
        "state": found[-1][1].state.value,
        "rms": float(np.sqrt(np.mean(off**2))),
        "worst": float(np.abs(off).max()),
        "at_the_end": float(off[-1]),
        "sigma": float(np.median(sigma)),
        "chi": float(np.sqrt(np.mean((off / sigma) ** 2))),
        "notes": notes,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 40, 41])
    parser.add_argument("--only", choices=("exact", "network"), help="what else is there stays")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    table = ResultTable(args.output, keeps_others=bool(args.only))
    drives: dict[str, Drive] = {}
    for seed in args.seeds:
        world = make_world("room", seed)
        drives[f"drive, room {seed}"] = Drive(world, circle(seed))
    for seed in args.seeds[:2]:
        drives[f"tables, room {seed}"] = with_tables(seed)
        drives[f"ramp {seed}"] = up_a_ramp(seed)
        carried = Drive(make_world("room", seed), circle(seed, bobbing=0.3))
        drives[f"carried up and down, room {seed}"] = carried
    loaded = load_network(Parameters(compute_dtype="float32", camera_height=_HEIGHT))
    for name, drive in drives.items():
        if args.only != "network":
            table.add(f"exact, {name}", exact(drive))
        if args.only == "exact":
            continue
        if name.startswith("drive"):
            flight = driven(args.directory, int(name.split()[-1])).flight
        else:
            flight = pictures(args.directory, name, drive)
        table.add(f"network, {name}", by_network(flight, loaded))


if __name__ == "__main__":
    main()
