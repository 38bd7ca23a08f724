"""Where calibration images come from: folders, videos, synthetic worlds, pools of clips.

Recordings are read above this package and handed over as frames, see `windows_of_frames`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError, QuantizationError
from qvggt_core.quantize.calibration_inputs import CalibrationSet, windows_of_frames
from qvggt_core.stream.frame import Frame
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.training.clips import PoolConfig, render_clip
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import Pool, build_pool
from qvggt_core.training.windows import Windows, WindowTruth, evaluation_windows, gather
from qvggt_core.util.image_files import (
    IMAGE_SUFFIXES,
    Video,
    image_files,
    read_image,
)

SYNTHETIC = "synthetic"
_MAX_CANDIDATES = 1024
"""Images that are read of a source; more are taken evenly from all of it."""

_CALIBRATION_CLIPS = 160
_FLIGHTS = ("wander", "survey", "arc", "orbit")
_SMALL = Path(__file__).parents[1] / "training/configs/small.yaml"


def image_folder(folder: Path, preprocessor: Preprocessor, frames: int) -> CalibrationSet:
    """Return windows of the images in a folder, in the natural order of their names.

    Args:
        folder: of images; other files are passed over.
        preprocessor: makes of them what the network sees.
        frames: in a window.

    Raises:
        QuantizationError: no image, one, black ones, ones of several shapes, or one that
            cannot be read.
    """
    files = image_files(folder)
    if not files:
        raise QuantizationError(
            f"there are no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})"
        )
    chosen = _evenly(len(files))
    views = [_view(_read_image(files[index]), preprocessor, str(files[index])) for index in chosen]
    return windows_of_frames(views, frames, f"folder {folder.name} ({len(files)} images)")


def video(path: Path, preprocessor: Preprocessor, frames: int) -> CalibrationSet:
    """Return windows of a video's frames, taken evenly over its length.

    Raises:
        QuantizationError: the video cannot be opened, or as `image_folder`.
    """
    try:
        opened = Video(path)
        total = len(opened)
        wanted = set(_evenly(total))
        views = [
            _view(image, preprocessor, f"{path} frame {index}")
            for index, (_, image) in enumerate(opened.frames())
            if index in wanted
        ]
    except ImageError as error:
        raise QuantizationError(str(error)) from error
    return windows_of_frames(views, frames, f"video {path.name} ({total} frames)")


def synthetic_world(
    world: str, frames: int, clips: int, height: int, width: int, seed: int = 0
) -> CalibrationSet:
    """Return one window of each of some clips of a synthetic world's training split.

    Args:
        world: family, e.g. "studio".
        frames: in a window.
        clips: number of windows.
        height: image rows.
        width: image columns.
        seed: first clip's number.

    Raises:
        TrainingError: there is no such world.
    """
    config = PoolConfig(
        worlds=(world,),
        clips=seed + clips,
        frames=frames,
        height=height,
        width=width,
        flights=_FLIGHTS,
    )
    rendered = [render_clip(config, seed + index) for index in range(clips)]
    pool = Pool(
        config,
        np.stack([clip.images for clip in rendered]),
        np.stack([clip.depth for clip in rendered]),
        np.stack([clip.world_from_camera for clip in rendered]),
        np.stack([clip.intrinsics for clip in rendered]),
    )
    return pool_windows(pool, frames, f"synthetic world {world}")


def pool_windows(pool: Pool, frames: int, source: str) -> CalibrationSet:
    """Return one window of each clip of a pool, neighbours one or two frames apart in turn.

    Raises:
        QuantizationError: the clips are too short, or the pool is of the evaluation split.
    """
    if frames < 1:
        raise QuantizationError(f"windows of {frames} frames: give at least 1")
    if pool.config.evaluation:
        raise QuantizationError(
            f"{source} is of the evaluation split: calibrate on training flights, or the held-out "
            "ones are no longer held out"
        )
    if pool.config.frames < frames:
        raise QuantizationError(
            f"{source} has clips of {pool.config.frames} frames: no window of {frames} fits"
        )
    rows = []
    for clip in range(len(pool)):
        gap = 1 + clip % 2
        gap = gap if gap * (frames - 1) < pool.config.frames else 1
        rows.append([(clip, frame) for frame in range(0, gap * (frames - 1) + 1, gap)])
    windows = gather(pool, rows)
    return CalibrationSet(
        windows.images,
        WindowTruth(windows.depth, windows.world_from_camera, windows.intrinsics),
        source=source,
    )


def is_pool(path: Path) -> bool:
    """Return whether a directory holds a rendered pool."""
    return (path / "pool.json").is_file()


def calibration_windows(
    config: Path | None,
    directory: Path,
    frames: int,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Return windows of a training configuration's worlds, rendered once into a directory."""
    training = TrainConfig.read(config or _SMALL)
    pool = build_pool(
        replace(training.pool, clips=min(_CALIBRATION_CLIPS, training.pool.clips)),
        directory,
        progress=progress,
    )
    return pool_windows(pool, frames, f"training flights of {(config or _SMALL).name}")


def evaluation_set(
    config: Path | None,
    directory: Path,
    windows: int,
    frames: int,
    progress: Callable[[int, int], None] | None = None,
) -> Windows:
    """Return held-out windows of a training configuration's worlds, rendered once."""
    training = TrainConfig.read(config or _SMALL)
    length = training.evaluation_pool.frames
    fitting = sum(gap * (frames - 1) < length for gap in (1, 2))
    if not fitting:
        raise QuantizationError(f"clips of {length} frames hold no window of {frames}")
    clips = -(-windows // fitting)
    pool = build_pool(replace(training.evaluation_pool, clips=clips), directory, progress=progress)
    found = evaluation_windows(pool, frames)
    return Windows(**{name: values[:windows] for name, values in vars(found).items()})


def window_worlds(config: Path | None, windows: int, frames: int) -> tuple[str, ...]:
    """Return the family of the world of each window of `evaluation_set`."""
    pool = TrainConfig.read(config or _SMALL).evaluation_pool
    per_clip = sum(gap * (frames - 1) < pool.frames for gap in (1, 2))
    return tuple(pool.worlds[number // per_clip % len(pool.worlds)] for number in range(windows))


def plan_windows(
    config: Path | None,
    world: str,
    directory: Path,
    windows: int,
    frames: int,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Return windows of one family of worlds, seen as in the evaluation but of the training split.

    They are rendered once into a directory.
    """
    seen = TrainConfig.read(config or _SMALL).evaluation_pool
    pool = build_pool(
        replace(seen, worlds=(world,), clips=windows, evaluation=False),
        directory,
        progress=progress,
    )
    return pool_windows(pool, frames, f"training flights in {world}")


def _evenly(total: int) -> list[int]:
    count = min(total, _MAX_CANDIDATES)
    return np.linspace(0, total - 1, count).round().astype(int).tolist() if count else []


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except ImageError as error:
        raise QuantizationError(f"{error}; remove it from the set") from error


def _view(image: NDArray[np.uint8], preprocessor: Preprocessor, name: str) -> NDArray[np.uint8]:
    try:
        return preprocessor.view(Frame(0, image, None, "")).image
    except ImageError as error:
        raise QuantizationError(f"{name}: {error}") from None
