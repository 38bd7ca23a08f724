"""A saved map of the known box, and flights through the box another day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.stream import WindowPrediction
from qvggt_core.stream.frame import Scale
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.saved_map import SavedMap
from support import drifting_flight as flights
from support import known_room
from support.recordings import (
    camera_info_message,
    header,
    image_message,
    stamp_of,
    write_recording,
)

NETWORK = "5a" * 32
TRUTH = flights.circle(24, 0.6)
MAP_FROM_ROOM = FLU_FROM_OPTICAL @ inverse(TRUTH[0])


@lru_cache
def mapped(is_metric: bool = True) -> LoopFinder:
    """Return what loop closure keeps of a flight with exact poses."""
    loops = LoopClosure()
    scale = Scale(1.0, "parameter", sigma=0.01) if is_metric else Scale()
    flights.closed(loops, in_units(TRUTH, MAP_FROM_ROOM @ TRUTH, scale, segment=0))
    assert isinstance(loops.finder, LoopFinder)
    return loops.finder


@lru_cache
def saved(is_metric: bool = True) -> SavedMap:
    """Return the map of that flight."""
    return SavedMap.of(mapped(is_metric), NETWORK, "imu", "box")


def twice() -> SavedMap:
    """Return a map that holds the room and, 9 m away, its copy."""
    one = saved()
    copy = transform(np.eye(3), np.array([9.0, 0.0, 0.0])) @ one.poses
    return replace(
        one,
        poses=np.concatenate([one.poses, copy]),
        keyframes=2 * one.keyframes,
        places=np.concatenate([one.places, one.places]),
    )


def in_units(
    truth: np.ndarray,
    odometry: np.ndarray,
    scale: Scale | None = None,
    unit: float = 1.0,
    segment: int = 1,
    seen_from: np.ndarray | None = None,
    first: int = 0,
) -> Iterator:
    """Yield frames and reconstructions whose lengths are divided by a unit in metres."""
    for frame, preprocessor, result in flights.reconstructions(
        truth, odometry, seen_from, first=first, segment=segment
    ):
        frames = tuple(geometry.scaled(1.0 / unit) for geometry in result.frames)
        yield frame, preprocessor, replace(result, frames=frames, scale=scale or Scale())


class BoxNetwork:
    """A `Network` that looks up where images of the box were taken; windows have odd gauges."""

    image_width, patch_size = flights.WIDTH, flights.PATCH

    def __init__(self, poses: np.ndarray) -> None:
        self.poses = poses
        self.units: list[float] = []

    def encode(self, image: np.ndarray) -> int:
        """Return the index that `pictures` wrote into a corner."""
        return int(image[0, 0, 0])

    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        """Return the exact geometry, in a unit of the window's own."""
        rng = np.random.default_rng([len(self.units), *tokens])
        poses = self.poses[list(tokens)]
        depths = [flights.depth_and_image(pose)[0] for pose in poses]
        window = known_room.cut_window(poses, depths, rng, known_room.Noise())
        self.units.append(window.metres_per_unit)
        last = slice(None if newest is None else len(tokens) - newest, None)
        return replace(
            window.prediction,
            depth=window.prediction.depth[last],
            confidence=window.prediction.confidence[last],
        )


def pictures(poses: np.ndarray) -> list[np.ndarray]:
    """Return images (336, 448, 3) uint8 with their index in the corner."""
    images = [flights.depth_and_image(pose)[1] for pose in poses]
    for index, image in enumerate(images):
        image[: 2 * flights.ZOOM, : 2 * flights.ZOOM] = index
    return images


def messages(poses: np.ndarray) -> Iterator:
    """Yield the images of a flight and their calibration."""
    size = {"height": flights.CAMERA.height, "width": flights.CAMERA.width}
    k = flights.CAMERA.intrinsics
    for index, picture in enumerate(pictures(poses)):
        image = image_message(0, header=header(index), step=3 * size["width"], **size)
        image.data = picture.reshape(-1)
        projection = np.hstack([k, np.zeros((3, 1))]).ravel()
        yield image, camera_info_message(index, k=k.ravel(), p=projection, **size)


def recording(path: Path, poses: np.ndarray) -> Path:
    """Write a flight through the box as a recording; return its path."""
    entries = []
    for index, (image, info) in enumerate(messages(poses)):
        entries += [
            ("/camera/image_raw", "Image", stamp_of(index), image),
            ("/camera/camera_info", "CameraInfo", stamp_of(index), info),
        ]
    return write_recording(path, entries)
