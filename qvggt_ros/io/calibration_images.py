"""Calibration images by name: folders, videos, recordings, pools of clips, synthetic worlds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError, QuantizationError, RecordingError
from qvggt_core.model import Checkpoint
from qvggt_core.quantize.calibration_inputs import CalibrationSet, windows_of_frames
from qvggt_core.quantize.calibration_sources import (
    SYNTHETIC,
    image_folder,
    is_pool,
    pool_windows,
    synthetic_world,
    video,
)
from qvggt_core.stream.frame import Frame
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.training.pool import open_pool
from qvggt_core.util.image_files import VIDEO_SUFFIXES
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.images import decode_image
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.topics import choose_topics

_MAX_CANDIDATES = 1024
"""Images that are decoded of a recording, taken evenly over it."""

_BAG_SUFFIXES = (".mcap", ".db3")


def read_calibration_data(
    source: str,
    checkpoint: Checkpoint,
    *,
    images: int,
    frames: int,
    width: int = 0,
    image_topic: str | None = None,
) -> CalibrationSet:
    """Return the windows that a source has to choose from.

    Args:
        source: a folder of images, a video, a rosbag2 directory or file, a rendered pool, or
            `synthetic:WORLD`.
        checkpoint: of the network that will be calibrated; gives size and patches.
        images: wanted in the end; decides how much of a synthetic world is rendered.
        frames: in a window.
        width: of the network's images in pixels; 0 takes the width of its training.
        image_topic: of a recording with several cameras.

    Raises:
        QuantizationError: the source is nothing that holds images, or its images are of no use.
        RecordingError: a recording cannot be read.
    """
    config = checkpoint.config
    width = width or config.img_size
    kind, _, world = source.partition(":")
    if kind == SYNTHETIC and world:
        height = max(config.patch_size, round(0.75 * width / config.patch_size) * config.patch_size)
        clips = max(2, -(-2 * images // frames))
        return synthetic_world(world, frames, clips, height, width)
    path = Path(source)
    preprocessor = Preprocessor(width, config.patch_size)
    if not path.exists():
        raise QuantizationError(
            f"there is no {source}: name a folder of images, a video, a recording, or "
            f"{SYNTHETIC}:WORLD"
        )
    if path.suffix in _BAG_SUFFIXES or (path / "metadata.yaml").is_file():
        return _recording(path, preprocessor, frames, image_topic)
    if path.is_dir():
        if any(file.suffix in _BAG_SUFFIXES for file in path.iterdir()):
            return _recording(path, preprocessor, frames, image_topic)
        if is_pool(path):
            return pool_windows(open_pool(path), frames, f"pool {path.name}")
        return image_folder(path, preprocessor, frames)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return video(path, preprocessor, frames)
    raise QuantizationError(
        f"{source} is no folder, no recording ({', '.join(_BAG_SUFFIXES)}) and no video "
        f"({', '.join(VIDEO_SUFFIXES)})"
    )


def _recording(
    path: Path, preprocessor: Preprocessor, frames: int, image_topic: str | None
) -> CalibrationSet:
    with open_recording(path) as recording:
        topics = choose_topics(recording, image_topic, None)
        info = recording.first(topics.camera_info) if topics.camera_info else None
        total = recording.count(topics.image)
        wanted = set(np.linspace(0, total - 1, min(total, _MAX_CANDIDATES)).round().astype(int))
        views: list[NDArray[np.uint8]] = []
        for index, (_, msgtype, _, data) in enumerate(recording.messages([topics.image])):
            if index not in wanted:
                continue
            try:
                image = decode_image(recording.deserialize(data, msgtype))
                camera = None
                if info is not None:
                    height, width = image.shape[:2]
                    camera = camera_from_info(info, width, height, rectified=topics.rectified)
                views.append(preprocessor.view(Frame(0, image, camera)).image)
            except (ImageError, RecordingError) as error:
                recording.warnings.append(f"image {index} of {topics.image}: {error}")
        if not views and recording.warnings:
            raise QuantizationError(f"{path}: no image can be used: {recording.warnings[-1]}")
    return windows_of_frames(views, frames, f"recording {path.name}, {topics.image}")
