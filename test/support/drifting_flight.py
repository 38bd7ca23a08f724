"""Flights through the known room as an odometry sees them: exact depth, poses that drift."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.geometry.similarities import moved_by, rigid
from qvggt_core.stream import Frame, FrameGeometry, Preprocessor, Reconstruction
from qvggt_core.stream.loop_closure import LoopClosure
from support import known_room as room

WIDTH, HEIGHT, PATCH = 112, 84, 14
ZOOM = 4
CAMERA = Camera(
    ZOOM * WIDTH, ZOOM * HEIGHT, np.array([[320.0, 0, 223.5], [0, 320.0, 167.5], [0, 0, 1]])
)
VIEW = np.array([[80.0, 0, 55.5], [0, 80.0, 41.5], [0, 0, 1]])
LOW, HIGH = np.array([-5.0, -4.0, -1.5]), np.array([5.0, 4.0, 2.0])
_PIXELS_PER_METRE = 50


def _walls() -> np.ndarray:
    """Return six papers of 512x512 pixels below each other: noise from fine to coarse."""
    rng = np.random.default_rng(5)
    layers = [
        cv2.resize(rng.normal(0, 30, (6 * size, size)).astype(np.float32), (512, 6 * 512))
        for size in (16, 48, 128)
    ]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


_WALLS = _walls()


def depth_and_image(world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return depth (84, 112) float32 and image (336, 448, 3) uint8 of a camera in a box."""
    depth, _ = _hit(world_from_camera, VIEW, WIDTH, HEIGHT)
    _, places = _hit(world_from_camera, CAMERA.intrinsics, CAMERA.width, CAMERA.height)
    grey = cv2.remap(_WALLS, *np.moveaxis(places, -1, 0).copy(), cv2.INTER_LINEAR)
    return depth.astype(np.float32), np.repeat(grey[..., None], 3, axis=2)


def _hit(
    world_from_camera: np.ndarray, intrinsics: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth (H, W) of the wall ahead, and where on the papers it is, (H, W, 2)."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    rays = pixels @ (world_from_camera[:3, :3] @ np.linalg.inv(intrinsics)).T
    centre = world_from_camera[:3, 3]
    with np.errstate(divide="ignore"):
        distance = np.maximum((LOW - centre) / rays, (HIGH - centre) / rays)
    axis = distance.argmin(axis=-1)
    depth = distance.min(axis=-1)
    points = _PIXELS_PER_METRE * (centre + depth[..., None] * rays - LOW)
    along = np.take_along_axis(points, (axis[..., None] + [1, 2]) % 3, axis=-1)
    wall = 2 * axis + np.take_along_axis(rays > 0, axis[..., None], axis=-1)[..., 0]
    along[..., 1] += 512 * wall
    return depth, along.astype(np.float32)


SIGMA = np.array([0.008] * 3 + [0.04] * 3)
"""What a frame adds to the error of the pose, per axis: radians and metres."""

PERIOD_NS = 100_000_000


def circle(count: int, laps: float, radius: float = 2.0) -> np.ndarray:
    """Return world_from_camera of circles in the room, looking ahead."""
    angle = np.linspace(0, 2 * np.pi * laps, count)
    centres = radius * np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(angle)], axis=1)
    turns = np.stack([angle + np.pi / 2, 0.1 * np.sin(angle), 0 * angle], axis=1)
    return room.flight(centres, turns)


def drifting(truth: np.ndarray, rng: np.random.Generator, scale: float = 0.0) -> np.ndarray:
    """Return poses (N, 4, 4) as odometry has them, from the first camera; the scale may walk."""
    poses = [FLU_FROM_OPTICAL]
    unit = 1.0
    for before, now in pairwise(truth):
        step = inverse(before) @ now
        step[:3, 3] *= unit
        noise = np.append(SIGMA * rng.standard_normal(6), 0.0)
        poses.append(rigid(poses[-1] @ step @ moved_by(noise)))
        unit *= np.exp(scale * rng.standard_normal())
    return np.stack(poses)


def reconstructions(
    truth: np.ndarray,
    odometry: np.ndarray,
    seen_from: np.ndarray | None = None,
    first: int = 0,
    segment: int = 0,
) -> Iterator[tuple[Frame, Preprocessor, Reconstruction]]:
    """Yield frames with what a reconstruction makes of them.

    Args:
        truth: (N, 4, 4) where the camera is.
        odometry: (N, 4, 4) where odometry has it.
        seen_from: (N, 4, 4) where images are taken, if somewhere that looks like it.
        first: number of the first frame.
        segment: number of the segment.
    """
    preprocessor = Preprocessor(WIDTH, PATCH)
    motion = np.diag(np.square(SIGMA[[3, 4, 5, 0, 1, 2]]))
    for index, pose in enumerate(truth):
        taken = pose if seen_from is None else seen_from[index]
        stamp = (first + index) * PERIOD_NS
        depth, image = depth_and_image(taken)
        frame = Frame(stamp, image, CAMERA, "camera")
        geometry = FrameGeometry(
            odometry[index],
            depth,
            np.full_like(depth, 2.0),
            motion_covariance=motion,
            view=preprocessor.view(frame),
            intrinsics=VIEW,
        )
        yield frame, preprocessor, Reconstruction(segment, (geometry,))


def closed(loops: LoopClosure, flight: Iterator) -> list[Reconstruction]:
    """Return what loop closure makes of a flight, frame by frame."""
    results = []
    for frame, preprocessor, result in flight:
        loops.remember(frame, preprocessor)
        results.append(loops.correct(result, lambda geometry: None))
    return results
