"""A pool of rendered clips on disk, made once, from which training draws its windows."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from qvggt_core.errors import TrainingError
from qvggt_core.synthetic.photographs import build_atlas
from qvggt_core.training.clips import Clip, PoolConfig, render_clip
from qvggt_core.util.processes import end_with_parent

logger = logging.getLogger(__name__)

_MAX_BYTES = 64 * 2**30
_DESCRIPTION = "pool.json"
_ATLAS = "photographs.npy"
_CLIPS_PER_WRITE = 8


@dataclass(frozen=True)
class Pool:
    """Clips in memory-mapped arrays, with a leading axis of clips.

    Attributes:
        config: what it was made from.
        images: (N, F, H, W, 3) uint8.
        depth: (N, F, H, W) float16.
        world_from_camera: (N, F, 4, 4) float64.
        intrinsics: (N, 3, 3) float64.
    """

    config: PoolConfig
    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    world_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.images)


def build_pool(
    config: PoolConfig,
    directory: Path,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Pool:
    """Render a pool, or what of it is missing in `directory`, and open it.

    Args:
        config: what to render.
        directory: where the pool is or will be.
        workers: processes; 0 takes one per CPU core.
        progress: called with the clips done and the clips in all.

    Raises:
        TrainingError: the directory holds a pool of another description, the pool would be larger
            than 64 GiB, or the packages that its photographs come from are not there.
    """
    size = config.clips * config.frames * config.height * config.width * 5
    if size > _MAX_BYTES:
        raise TrainingError(
            f"a pool of {config.clips} clips would take {size / 2**30:.0f} GiB, more than "
            f"{_MAX_BYTES / 2**30:.0f}: ask for fewer clips or smaller images"
        )
    directory.mkdir(parents=True, exist_ok=True)
    done = _done(config, directory)
    if done == config.clips:
        return open_pool(directory)
    arrays = _create_arrays(config, directory) if done == 0 else _open_arrays(directory, "r+")
    indices = range(done, config.clips)
    atlas = _atlas(config, directory)
    with _renderer(config, indices, workers or os.cpu_count() or 1, atlas) as clips:
        for index, clip in zip(indices, clips, strict=True):
            for name, array in arrays.items():
                array[index] = getattr(clip, name)
            if (index + 1) % _CLIPS_PER_WRITE == 0 or index + 1 == config.clips:
                for array in arrays.values():
                    array.flush()
                _write_description(config, index + 1, directory)
                if progress is not None:
                    progress(index + 1, config.clips)
    logger.info("rendered %d clips into %s", config.clips, directory)
    return open_pool(directory)


def open_pool(directory: Path) -> Pool:
    """Open the clips that are in `directory`, memory-mapped and read-only.

    Raises:
        TrainingError: there is no pool, or nothing in it.
    """
    description = _read_description(directory)
    if description is None or description["done"] == 0:
        raise TrainingError(f"{directory} holds no rendered clips: build the pool first")
    arrays = _open_arrays(directory, "r")
    config = _config_from(description["config"])
    return Pool(config, **{name: array[: description["done"]] for name, array in arrays.items()})


@contextmanager
def _renderer(
    config: PoolConfig, indices: range, workers: int, atlas: Path | None
) -> Iterator[Iterable[Clip]]:
    """Give the clips in order, rendered by as many processes; one is this process."""
    if workers == 1:
        yield (render_clip(config, index, atlas) for index in indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as executor:
        yield executor.map(_render_job, [(config, index, atlas) for index in indices])


def _array_shapes(config: PoolConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    images = (config.clips, config.frames, config.height, config.width)
    return {
        "images": ((*images, 3), np.uint8),
        "depth": (images, np.float16),
        "world_from_camera": ((config.clips, config.frames, 4, 4), np.float64),
        "intrinsics": ((config.clips, 3, 3), np.float64),
    }


def _create_arrays(config: PoolConfig, directory: Path) -> dict[str, np.memmap]:
    return {
        name: np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in _array_shapes(config).items()
    }


def _open_arrays(directory: Path, mode: str) -> dict[str, np.memmap]:
    try:
        return {
            name: np.lib.format.open_memmap(directory / f"{name}.npy", mode)
            for name in _array_shapes(PoolConfig())
        }
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot open the pool in {directory}: {error}") from error


def _done(config: PoolConfig, directory: Path) -> int:
    description = _read_description(directory)
    if description is None:
        return 0
    if _config_from(description["config"]) != config:
        raise TrainingError(
            f"{directory} holds a pool of another description: choose another directory"
        )
    return int(description["done"])


def _read_description(directory: Path) -> dict | None:
    path = directory / _DESCRIPTION
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error


def _write_description(config: PoolConfig, done: int, directory: Path) -> None:
    path = directory / _DESCRIPTION
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"done": done, "config": asdict(config)}, indent=1))
    temporary.replace(path)


def _config_from(values: dict) -> PoolConfig:
    try:
        return TypeAdapter(PoolConfig).validate_python(values)
    except ValidationError as error:
        raise TrainingError(f"the pool's description is wrong: {error}") from None


def _begin() -> None:
    """Prepare a process that renders."""
    end_with_parent()
    torch.set_num_threads(1)


def _render_job(job: tuple[PoolConfig, int, Path | None]) -> Clip:
    return render_clip(*job)


def _atlas(config: PoolConfig, directory: Path) -> Path | None:
    """Return the pool's atlas of photographs, built now if it is not there, or None."""
    if not config.photographs:
        return None
    path = directory / _ATLAS
    if not path.exists():
        logger.info("cut %d tiles of photographs into %s", build_atlas(path), path)
    return path
