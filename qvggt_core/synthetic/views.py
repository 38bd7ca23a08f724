"""Camera paths in six degrees of freedom, with steps in proportion to the depth of the scene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.synthetic.ray_caster import Place, RayCaster

_ATTEMPTS = 60
_STEP_ATTEMPTS = 12
_FAR = 60.0
# Rays on which depth and overlap are judged: tangents to the side and down.
_GRID = np.stack(
    np.meshgrid(np.linspace(-0.8, 0.8, 7), np.linspace(-0.6, 0.6, 5)), axis=-1
).reshape(-1, 2)


def random_views(
    scene: RayCaster, frames: int, seed: int, tangent: float, *, min_overlap: float = 0.5
) -> NDArray[np.float64]:
    """Return world_from_camera (frames, 4, 4) of a hand-held or flown camera, optical axes.

    The length of the steps and how far the camera turns differ from path to path by more than ten
    times; half of the paths keep looking at one point, the others turn at random.

    Args:
        scene: where the camera moves.
        frames: number of poses.
        seed: decides everything.
        tangent: of half the horizontal field of view.
        min_overlap: least share of rays of a view that the next view sees.

    Raises:
        ParameterError: no such path was found.
    """
    rng = np.random.default_rng([17, seed])
    for _ in range(_ATTEMPTS):
        poses = _attempt(scene, frames, rng, tangent, min_overlap)
        if poses is not None:
            return np.stack(poses)
    world = scene.place
    raise ParameterError(f"no path of {frames} views was found in {world.name} {world.seed}")


def _attempt(
    scene: RayCaster, frames: int, rng: np.random.Generator, tangent: float, min_overlap: float
) -> list[NDArray] | None:
    world = scene.place
    pose = _start(world, rng)
    points = _visible_points(scene, pose, tangent)
    depths = (inverse(pose)[:3, :3] @ (points - pose[:3, 3]).T)[2]
    depth = np.median(depths)
    nearest = world.clearance(pose[None, :3, 3])[0]
    if nearest < 0.04 * depth + 0.1 or not 0.5 < depth < 40.0:
        return None
    # A bare wall shows no parallax: few paths begin before one.
    if np.std(np.log(depths.clip(min=0.05))) < rng.uniform(0.0, 0.5):
        return None
    length = depth * np.exp(rng.uniform(np.log(0.02), np.log(0.25)))
    turn = np.radians(np.exp(rng.uniform(np.log(0.6), np.log(16.0))))
    fixed = points[len(points) // 2] if rng.random() < 0.5 else None
    heading, spin = rng.standard_normal(3), rng.standard_normal(3)
    poses = [pose]
    while len(poses) < frames:
        for _ in range(_STEP_ATTEMPTS):
            heading = 0.8 * heading + 0.6 * rng.standard_normal(3)
            spin = 0.7 * spin + 0.7 * rng.standard_normal(3)
            moved = _next(poses[-1], length * heading / 1.7, turn * spin / 1.7, fixed)
            if _is_free(world, poses[-1][:3, 3], moved[:3, 3], 0.03 * depth + 0.05) and (
                _share_seen(points, moved, tangent) >= min_overlap
            ):
                break
        else:
            return None
        poses.append(moved)
        points = _visible_points(scene, moved, tangent)
    return poses


def _start(world: Place, rng: np.random.Generator) -> NDArray[np.float64]:
    position = rng.uniform(world.flight_low, world.flight_high)
    if world.height_field is not None:
        ground = float(world.height_field.height(position[0], position[1]))
        position[2] = ground + rng.uniform(0.5, 3.0)
    yaw, pitch = rng.uniform(*world.yaw_range), rng.normal(-0.1, 0.25)
    roll = rng.normal(0.0, 0.12)
    # Optical axes: x right, y down, z ahead, in a world whose z is up.
    level = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    rotation = Rotation.from_euler("ZYX", [yaw, -pitch, roll]).as_matrix() @ level
    return transform(rotation, position)


def _next(pose: NDArray, step: NDArray, turn: NDArray, fixed: NDArray | None) -> NDArray:
    """Return the pose after a step in metres in the world and a turn in radians."""
    position = pose[:3, 3] + step
    rotation = pose[:3, :3]
    if fixed is not None:
        before, now = (rotation.T @ (fixed - place) for place in (pose[:3, 3], position))
        axis = np.cross(before, now)
        sine = np.linalg.norm(axis) / (np.linalg.norm(before) * np.linalg.norm(now))
        axis = axis / max(np.linalg.norm(axis), 1e-12)
        rotation = (
            rotation @ Rotation.from_rotvec(axis * np.arcsin(np.clip(sine, 0.0, 1.0))).as_matrix()
        )
        turn = 0.15 * turn
    # Cameras roll less than they pan and tilt.
    turn = turn * np.array([0.8, 1.0, 0.4])
    return transform(rotation @ Rotation.from_rotvec(turn).as_matrix(), position)


def _is_free(world: Place, before: NDArray, position: NDArray, clearance: float) -> bool:
    if not ((position >= world.flight_low) & (position <= world.flight_high)).all():
        return False
    between = before + np.linspace(0.25, 1.0, 4)[:, None] * (position - before)
    return bool((world.clearance(between) >= clearance).all())


def _visible_points(scene: RayCaster, pose: NDArray, tangent: float) -> NDArray[np.float64]:
    """Return the points (N, 3) in the world where the grid's rays end, or far away."""
    rays = np.concatenate([_GRID * tangent, np.ones((len(_GRID), 1))], axis=1)
    directions = rays @ pose[:3, :3].T
    reached = scene.distances(pose[:3, 3], directions).clip(max=_FAR)
    return pose[:3, 3] + reached[:, None] * directions


def _share_seen(points: NDArray, pose: NDArray, tangent: float) -> float:
    x, y, z = inverse(pose)[:3, :3] @ (points - pose[:3, 3]).T
    inside = (z > 0.02) & (np.abs(x) < tangent * z) & (np.abs(y) < 0.75 * tangent * z)
    return float(inside.mean())
