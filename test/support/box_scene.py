"""A floor with boxes on it, seen by a camera with exact depth: the smallest furnished world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, transform
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, Scale, ScaleState, Up, View

WIDTH, HEIGHT = 96, 72
INTRINSICS = np.array([[60.0, 0, 47.5], [0, 60.0, 35.5], [0, 0, 1]])
CAMERA_HEIGHT = 1.0
PERIOD_NS = 100_000_000

Box = tuple[Sequence[float], Sequence[float]]
"""Lower and upper corner, metres over the floor."""


def pose(x: float, y: float, yaw: float = 0.0, pitch: float = 0.3) -> np.ndarray:
    """Return map_from_camera, 1 m over the floor, looking along yaw and down by pitch.

    The floor is at z = -1 in the map, which begins at the camera's height.
    """
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(pitch), np.sin(pitch)
    down = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return transform(turn @ down, np.array([x, y, 0.0])) @ FLU_FROM_OPTICAL


def depth_of(map_from_camera: np.ndarray, boxes: Sequence[Box], far: float = 20.0) -> np.ndarray:
    """Return the exact depth (H, W) float32 of floor and boxes; NaN beyond `far`."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    rays = pixels @ (map_from_camera[:3, :3] @ np.linalg.inv(INTRINSICS)).T
    centre = map_from_camera[:3, 3] + [0.0, 0.0, CAMERA_HEIGHT]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rays[..., 2] < 0, -centre[2] / rays[..., 2], np.inf)
        for low, high in boxes:
            ends = np.stack([(np.array(low) - centre) / rays, (np.array(high) - centre) / rays])
            first, last = ends.min(axis=0).max(axis=-1), ends.max(axis=0).min(axis=-1)
            hit = (first < last) & (first > 0)
            depth = np.where(hit, np.minimum(depth, first), depth)
    return np.where(depth < far, depth, np.nan).astype(np.float32)


def frame(
    index: int, map_from_camera: np.ndarray, boxes: Sequence[Box], **fields: object
) -> FrameGeometry:
    """Return the geometry of a frame."""
    depth = depth_of(map_from_camera, boxes)
    return FrameGeometry(
        map_from_camera,
        depth,
        np.full_like(depth, 2.0),
        view=View(
            10**9 + index * PERIOD_NS, np.zeros((HEIGHT, WIDTH, 3), np.uint8), INTRINSICS, "camera"
        ),
        intrinsics=INTRINSICS,
        **fields,  # type: ignore[arg-type]
    )


def reconstruction(*frames: FrameGeometry, **fields: object) -> Reconstruction:
    """Return a reconstruction in metres and upright, unless fields differ."""
    known: dict[str, object] = {
        "scale": Scale(1.0, "parameter", state=ScaleState.METRIC),
        "up": Up(source="imu"),
    }
    return Reconstruction(0, frames, **{**known, **fields})  # type: ignore[arg-type]
