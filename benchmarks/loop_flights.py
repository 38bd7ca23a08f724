"""Flights that come back to their places, rendered once: images, exact depth and poses in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene

WIDTH, HEIGHT = 320, 240
CAMERA = Camera(WIDTH, HEIGHT, np.array([[260.0, 0, 159.5], [0, 260.0, 119.5], [0, 0, 1]]))
PERIOD_NS = 100_000_000
_STEP = 0.12


@dataclass(frozen=True)
class Rendered:
    """What a camera sees on a flight.

    Attributes:
        poses: (N, 4, 4) world_from_camera.
        images: (N, H, W, 3) uint8.
        depth: (N, H, W) float16, metres; NaN in the sky.
    """

    poses: NDArray[np.float64]
    images: NDArray[np.uint8]
    depth: NDArray[np.float16]


def rendered(directory: Path, world: str, seed: int, path: int, frames: int) -> Rendered:
    """Return a closed curve through a world, flown until the frames are over.

    Args:
        directory: where renderings are kept.
        world: a name of `make_world`.
        seed: of the world.
        path: decides which curve.
        frames: number of images; 0.12 m lie between two.
    """
    file = directory / f"{world}_{seed}_{path}_{frames}.npz"
    if not file.exists():
        place = make_world(world, seed)
        poses = fly(place, "survey", frames, path, step=_STEP)
        scene = Scene(place)
        views = [scene.render(pose, CAMERA.intrinsics, HEIGHT, WIDTH, samples=1) for pose in poses]
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(
            file.with_suffix(".tmp.npz"),
            poses=poses,
            images=np.stack([view.colour for view in views]),
            depth=np.stack([view.depth for view in views]).astype(np.float16),
        )
        file.with_suffix(".tmp.npz").rename(file)
    with np.load(file) as content:
        return Rendered(content["poses"], content["images"], content["depth"])


def joined(*parts: Rendered) -> Rendered:
    """Return flights one after the other."""
    return Rendered(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("poses", "images", "depth")
        )
    )
