"""Rendered clips: consecutive frames of one flight through a synthetic world."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from qvggt_core.errors import ParameterError, TrainingError
from qvggt_core.synthetic.families import FAMILIES
from qvggt_core.synthetic.flight import exposure_poses, fly
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.photographs import open_atlas
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.texture_colour import PhotographTable
from qvggt_core.synthetic.views import random_views
from qvggt_core.training.seeds import evaluation_seed, training_seed

_LAYOUT_ATTEMPTS = 20


@dataclass(frozen=True)
class PoolConfig:
    """What a pool holds.

    Attributes:
        worlds: families, taken in turn.
        layouts: number of different worlds per family; 1 keeps to layout seed 0.
        clips: number of clips.
        frames: frames of a clip.
        height: image rows.
        width: image columns.
        horizontal_fov: degrees, in the middle of the range.
        fov_spread: relative half range within which a clip's field of view varies.
        flights: kinds of flight, taken in turn; "views" is `random_views`, whose steps depend on
            the scene's depth alone.
        step_low: least distance in metres between frames.
        step_high: largest distance.
        samples: extra rays per pixel, see `Scene.render`.
        shutter_high: longest exposure of a clip as a share of the time between frames; clips
            vary between none and this.
        evaluation: whether the seeds are of the evaluation split.
        photographs: whether surfaces of `FAMILIES` carry photographs, see `build_atlas`; else all
            are procedural.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    worlds: tuple[str, ...] = ("room",)
    layouts: int = 1
    clips: int = 2000
    frames: int = 8
    height: int = 96
    width: int = 128
    horizontal_fov: float = 80.0
    fov_spread: float = 0.02
    flights: tuple[str, ...] = ("wander",)
    step_low: float = 0.1
    step_high: float = 0.35
    samples: int = 2
    shutter_high: float = 0.0
    evaluation: bool = False
    photographs: bool = False


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one flight.

    Attributes:
        images: (F, H, W, 3) uint8.
        depth: (F, H, W) float16 metres along the optical axis; NaN in the sky.
        world_from_camera: (F, 4, 4) float64.
        intrinsics: (3, 3) float64.
    """

    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    world_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]


def render_clip(config: PoolConfig, index: int, atlas: Path | None = None) -> Clip:
    """Render the `index`-th clip of a pool; it depends on nothing else.

    The split decides the seed of the flight, and of the layout where there are several.

    Args:
        config: the pool's description.
        index: of the clip.
        atlas: file of `build_atlas`; needed if the pool has photographs.

    Raises:
        TrainingError: the pool has photographs and there is no atlas, or no path fits.
    """
    if config.photographs and atlas is None:
        raise TrainingError("the pool has photographs on its walls: name the atlas to take")
    split_seed = evaluation_seed if config.evaluation else training_seed
    seed = split_seed(index)
    rng = np.random.default_rng([6, seed])
    name = config.worlds[index % len(config.worlds)]
    flight = config.flights[index // len(config.worlds) % len(config.flights)]
    if flight == "views":
        scene, world_from_camera, fov = _views(config, name, rng, seed, atlas)
    else:
        scene = _scene(name, _layout(config, rng), atlas)
        step = float(rng.uniform(config.step_low, config.step_high))
        world_from_camera = fly(scene.world, flight, config.frames, seed, step=step)
        fov = _field_of_view(config, rng)
    intrinsics = pinhole(config.height, config.width, fov)
    shutter = float(rng.uniform(0.0, config.shutter_high))
    renderings = [
        scene.render(
            pose,
            intrinsics,
            config.height,
            config.width,
            config.samples,
            exposure_poses(world_from_camera, frame, shutter, config.samples),
        )
        for frame, pose in enumerate(world_from_camera)
    ]
    return Clip(
        images=np.stack([r.colour for r in renderings]),
        depth=np.stack([r.depth for r in renderings]).astype(np.float16),
        world_from_camera=world_from_camera,
        intrinsics=intrinsics,
    )


def _views(
    config: PoolConfig, name: str, rng: np.random.Generator, seed: int, atlas: Path | None
) -> tuple[Scene, NDArray[np.float64], float]:
    """Return scene, poses and field of view of the first layout drawn that has room for a path."""
    for _ in range(_LAYOUT_ATTEMPTS):
        scene = _scene(name, _layout(config, rng), atlas)
        fov = _field_of_view(config, rng)
        with contextlib.suppress(ParameterError):
            return scene, random_views(scene, config.frames, seed, np.tan(0.5 * fov)), fov
    raise TrainingError(
        f"none of {_LAYOUT_ATTEMPTS} layouts of {name} has room for {config.frames} views: ask for "
        "fewer frames"
    )


def _layout(config: PoolConfig, rng: np.random.Generator) -> int:
    split_seed = evaluation_seed if config.evaluation else training_seed
    return 0 if config.layouts == 1 else split_seed(int(rng.integers(config.layouts)))


def _field_of_view(config: PoolConfig, rng: np.random.Generator) -> float:
    spread = 1.0 + config.fov_spread * rng.uniform(-1.0, 1.0)
    return float(np.radians(config.horizontal_fov * spread))


@lru_cache(maxsize=4)
def _scene(name: str, seed: int, atlas: Path | None) -> Scene:
    if name not in FAMILIES:
        return Scene(make_world(name, seed))
    table = None if atlas is None else _photographs(atlas)
    world = FAMILIES[name](seed, 0 if table is None else len(table))
    return Scene(world, photographs=table)


@lru_cache(maxsize=1)
def _photographs(atlas: Path) -> PhotographTable:
    return PhotographTable(open_atlas(atlas))
