"""Collision-free camera paths through a world, as a drone or a robot would fly them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.poses import transform
from qvggt_core.synthetic.world import World

_ATTEMPTS = 400
# Positions (N, 3), yaw (N,) and pitch (N,) before jitter.
_Path = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def fly(
    world: World,
    kind: str,
    frames: int,
    seed: int,
    step: float = 0.05,
    clearance: float = 0.4,
    jitter: float = 1.0,
) -> NDArray[np.float64]:
    """Return world_from_camera of a flight, (frames, 4, 4), optical axes, z-up world.

    Args:
        world: where to fly.
        kind: "hover", "straight", "arc", "orbit", "look_around", "wander" or "survey".
        frames: number of poses, at least 1.
        seed: where the flight starts and how it goes.
        step: metres between frames; for "look_around" the yaw turns by 0.6 rad per metre of
            step instead; "hover" ignores it.
        clearance: least distance in metres to every surface.
        jitter: strength of the 6-DoF jitter; 1 is about 1 cm and 0.6 degrees.

    Raises:
        ParameterError: there is no such kind, an argument is out of range, or no flight of
            this kind fits into the world.
    """
    if kind not in _FLIGHTS:
        raise ParameterError(f"there is no flight {kind!r}; known: {', '.join(_FLIGHTS)}")
    if frames < 1 or step <= 0 or clearance < 0 or jitter < 0:
        raise ParameterError(
            f"frames {frames}, step {step}, clearance {clearance}, jitter {jitter}: frames must "
            "be at least 1, the step positive, the others not negative"
        )
    rng = np.random.default_rng([5, seed, *kind.encode()])
    for _ in range(_ATTEMPTS):
        positions, yaw, pitch = _FLIGHTS[kind](world, frames, step, rng)
        positions = positions + 0.01 * jitter * _smooth_noise(rng, frames, 3)
        if not (_is_free(world, positions, clearance) and _looks_inside(world, yaw)):
            continue
        angles = np.radians(0.6) * jitter * _smooth_noise(rng, frames, 3)
        return np.stack(
            [
                transform(_camera_rotation(yaw[i] + a[0], pitch[i] + a[1], a[2]), positions[i])
                for i, a in enumerate(angles)
            ]
        )
    raise ParameterError(
        f"no {kind} of {frames} frames with step {step} m and clearance {clearance} m was found "
        f"in {world.name} {world.seed}: fewer frames, a shorter step or another seed may fit"
    )


def exposure_poses(
    world_from_camera: NDArray, index: int, shutter: float, instants: int
) -> NDArray[np.float64]:
    """Return the poses (instants, 4, 4) at even instants of one frame's exposure.

    The exposure lies around the frame's own instant, and the camera moves evenly from frame
    to frame; before the first and after the last frame it stands still.

    Args:
        world_from_camera: (frames, 4, 4) of the flight.
        index: the frame.
        shutter: length of the exposure as a share of the time between frames, in [0, 1].
        instants: number of poses.
    """
    here = world_from_camera[index]
    poses = []
    for part in (np.arange(instants) + 0.5) / max(instants, 1) - 0.5:
        neighbour = index + (1 if part > 0 else -1)
        there = world_from_camera[min(max(neighbour, 0), len(world_from_camera) - 1)]
        share = shutter * abs(part)
        turn = Rotation.from_matrix(here[:3, :3].T @ there[:3, :3]).as_rotvec()
        rotation = here[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
        poses.append(transform(rotation, (1 - share) * here[:3, 3] + share * there[:3, 3]))
    return np.array(poses).reshape(-1, 4, 4)


def _camera_rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """Return world_from_camera of a camera that looks along yaw, up by pitch, rolled."""
    forward = np.array(
        [math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)]
    )
    level_right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    level_down = np.cross(forward, level_right)
    right = math.cos(roll) * level_right + math.sin(roll) * level_down
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _is_free(world: World, positions: NDArray, clearance: float) -> bool:
    inside = (positions >= world.flight_low) & (positions <= world.flight_high)
    if not inside.all():
        return False
    # Frames may be further apart than the clearance: the segments between count too.
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    pieces = 1 + int(np.ceil(gaps.max(initial=0.0) / max(clearance, 0.05)))
    between = [positions[-1:]]
    for i in range(pieces):
        between.append(positions[:-1] + (i / pieces) * np.diff(positions, axis=0))
    return bool((world.clearance(np.concatenate(between)) >= clearance).all())


def _looks_inside(world: World, yaw: NDArray) -> bool:
    low, high = world.yaw_range
    middle = 0.5 * (low + high)
    away = np.abs((yaw - middle + np.pi) % (2.0 * np.pi) - np.pi)
    return bool((away <= 0.5 * (high - low) + 1e-9).all())


def _smooth_noise(rng: np.random.Generator, frames: int, size: int) -> NDArray[np.float64]:
    """Return noise (frames, size) of about unit deviation, correlated over a few frames."""
    noise = rng.standard_normal((frames + 4, size))
    kernel = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
    kernel /= np.linalg.norm(kernel)
    return np.stack([np.convolve(noise[:, i], kernel, mode="valid") for i in range(size)], axis=1)


def _start(world: World, rng: np.random.Generator) -> NDArray[np.float64]:
    low, high = np.array(world.flight_low), np.array(world.flight_high)
    start = rng.uniform(low, high)
    if world.height_field is not None:
        ground = float(world.height_field.height(start[0], start[1]))
        start[2] = ground + rng.uniform(1.0, 3.0)
    return start


def _pitch(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.22, 0.12))


def _hover(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    position = np.tile(_start(world, rng), (frames, 1))
    yaw = np.full(frames, rng.uniform(*world.yaw_range))
    return position, yaw, np.full(frames, _pitch(rng))


def _straight(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    heading, climb = rng.uniform(-np.pi, np.pi), rng.uniform(-0.1, 0.1)
    direction = np.array([np.cos(heading), np.sin(heading), climb])
    direction /= np.linalg.norm(direction)
    positions = _start(world, rng) + step * np.arange(frames)[:, None] * direction
    yaw = np.full(frames, rng.uniform(*world.yaw_range))
    return positions, yaw, np.full(frames, _pitch(rng))


def _arc(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    radius = rng.uniform(1.0, 3.0) * rng.choice([-1.0, 1.0])
    heading = rng.uniform(-np.pi, np.pi) + step * np.arange(frames) / radius
    steps = step * np.stack([np.cos(heading), np.sin(heading), np.zeros(frames)], axis=1)
    positions = _start(world, rng) + np.cumsum(steps, axis=0) - steps[0]
    yaw = heading + rng.choice([0.0, 0.6, -0.6, 0.5 * np.pi, -0.5 * np.pi])
    return positions, yaw, np.full(frames, _pitch(rng))


def _orbit(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    """Around a point straight ahead, which stays in the middle of the image."""
    radius, yaw = rng.uniform(0.7, 2.5), rng.uniform(*world.yaw_range)
    centre = _start(world, rng) + radius * np.array([np.cos(yaw), np.sin(yaw), 0.0])
    angle = yaw + np.pi + step / radius * rng.choice([-1.0, 1.0]) * np.arange(frames)
    around = np.stack([np.cos(angle), np.sin(angle), np.zeros(frames)], axis=1)
    return centre + radius * around, angle + np.pi, np.full(frames, _pitch(rng))


def _look_around(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    turn = 0.6 * step * rng.choice([-1.0, 1.0])
    yaw = rng.uniform(*world.yaw_range) + turn * np.arange(frames)
    # The camera sits a hand's breadth in front of the axis that it turns about.
    arm = 0.12 * np.stack([np.cos(yaw), np.sin(yaw), np.zeros(frames)], axis=1)
    return _start(world, rng) + arm, yaw, np.full(frames, _pitch(rng))


def _wander(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    """Each step goes somewhere near the last one's direction while the camera swings."""
    directions = rng.standard_normal(3) + 0.9 * np.cumsum(
        0.5 * rng.standard_normal((frames, 3)), axis=0
    )
    directions[:, 2] *= 0.35
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = step * rng.uniform(0.3, 1.5, size=(frames, 1))
    steps = directions * lengths
    positions = _start(world, rng) + np.cumsum(steps, axis=0) - steps[0]
    swing = np.cumsum(rng.normal(0.0, 0.09, size=frames) + rng.normal(0.0, 0.07))
    yaw = rng.uniform(*world.yaw_range) + swing
    pitch = _pitch(rng) + 0.06 * _smooth_noise(rng, frames, 1)[:, 0]
    return positions, yaw, pitch


def _survey(world: World, frames: int, step: float, rng: np.random.Generator) -> _Path:
    """A smooth closed curve through the flight volume while the camera swings to and fro."""
    low, high = np.array(world.flight_low), np.array(world.flight_high)
    # Room for the jitter, so that a flight which touches the volume's side is not refused.
    reach = np.maximum(0.5 * (high - low) - 0.06, 0.0) * rng.uniform(0.5, 1.0, size=3)
    rates = rng.permutation([1.0, 2.0, 3.0])
    phases = rng.uniform(0.0, 2.0 * np.pi, size=4)
    turn = np.linspace(0.0, 2.0 * np.pi, 2000)
    curve = 0.5 * (low + high) + reach * np.sin(turn[:, None] * rates + phases[:3])
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    along = (rng.uniform(0.0, lengths[-1]) + step * np.arange(frames)) % lengths[-1]
    positions = np.stack([np.interp(along, lengths, curve[:, i]) for i in range(3)], axis=1)
    if world.height_field is not None:
        positions[:, 2] = 2.0 + world.height_field.height(positions[:, 0], positions[:, 1])
    half_range = min(0.5 * (world.yaw_range[1] - world.yaw_range[0]), 1.2)
    swing = (
        rng.uniform(0.4, 1.0)
        * half_range
        * np.sin(2.0 * np.interp(along, lengths, turn) + phases[3])
    )
    yaw = 0.5 * (world.yaw_range[0] + world.yaw_range[1]) + swing
    return positions, yaw, _pitch(rng) + 0.05 * np.sin(np.interp(along, lengths, turn) + phases[0])


_FLIGHTS: dict[str, Callable[[World, int, float, np.random.Generator], _Path]] = {
    "hover": _hover,
    "straight": _straight,
    "arc": _arc,
    "orbit": _orbit,
    "look_around": _look_around,
    "wander": _wander,
    "survey": _survey,
}
FLIGHT_KINDS = tuple(_FLIGHTS)
