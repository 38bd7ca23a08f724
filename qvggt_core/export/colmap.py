"""Scenes as COLMAP models: cameras, images and points3D, in binary or as text.

The layout is that of COLMAP's documentation: poses take the world to the camera, quaternions are
w x y z, and the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.export.observations import Observations, observations
from qvggt_core.export.scene import PosedImage, Scene
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import inverse, quaternion

MODEL = Path("sparse") / "0"
_PINHOLE, _PIXEL_CENTRE, _NO_ERROR = 1, 0.5, -1.0
_POINT2D = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


@dataclass(frozen=True)
class _Camera:
    """Width, height, fx, fy, cx, cy."""

    width: int
    height: int
    parameters: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Image:
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int
    name: str
    seen: Observations


@dataclass(frozen=True)
class _Model:
    """All numbers of cameras, images and points begin with 1."""

    cameras: tuple[_Camera, ...]
    images: tuple[_Image, ...]
    cloud: Cloud

    def tracks(self) -> Iterator[tuple[float, NDArray[np.int64]]]:
        """Yield each point's mean error in pixels, and its track (T, 2): image, point2D index.

        The error of a point that no image sees is -1.
        """
        count = [len(image.seen.points) for image in self.images]
        points = np.concatenate([np.empty(0, np.int64), *(i.seen.points for i in self.images)])
        errors = np.concatenate([np.empty(0), *(image.seen.errors for image in self.images)])
        track = np.stack(
            [
                np.repeat(np.arange(1, len(count) + 1), count),
                np.concatenate([np.empty(0, np.int64), *map(np.arange, count)]),
            ],
            axis=1,
        )
        order = np.argsort(points, kind="stable")
        bounds = np.searchsorted(points[order], np.arange(len(self.cloud) + 1))
        for start, end in pairwise(bounds.tolist()):
            own = order[start:end]
            yield (float(errors[own].mean()) if end > start else _NO_ERROR), track[own]


def write_colmap(directory: Path, scene: Scene, as_text: bool = False) -> None:
    """Write a model into `sparse/0` of a directory.

    Points that no image sees have empty tracks.

    Args:
        directory: which has or will have `images/NAME.png`.
        scene: images and points.
        as_text: write .txt files, not .bin files.
    """
    model = _model(scene)
    folder = directory / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    writers = (
        {"cameras.txt": _cameras_text, "images.txt": _images_text, "points3D.txt": _points_text}
        if as_text
        else {"cameras.bin": _cameras, "images.bin": _images, "points3D.bin": _points}
    )
    for name, write in writers.items():
        with (folder / name).open("wb") as file:
            for part in write(model):
                file.write(part if isinstance(part, bytes) else part.encode())


def _model(scene: Scene) -> _Model:
    cameras: dict[_Camera, int] = {}
    images = []
    for image, seen in zip(
        scene.images, observations(scene.cloud.positions, scene.images), strict=True
    ):
        camera = cameras.setdefault(_camera(image), len(cameras) + 1)
        camera_from_map = inverse(image.map_from_camera)
        x, y, z, w = quaternion(camera_from_map[:3, :3]).tolist()
        translation = tuple(camera_from_map[:3, 3].tolist())
        images.append(_Image((w, x, y, z), translation, camera, f"{image.name}.png", seen))
    return _Model(tuple(cameras), tuple(images), scene.cloud)


def _camera(image: PosedImage) -> _Camera:
    height, width = image.image.shape[:2]
    fx, fy = image.intrinsics[0, 0], image.intrinsics[1, 1]
    cx, cy = image.intrinsics[:2, 2] + _PIXEL_CENTRE
    return _Camera(width, height, (float(fx), float(fy), float(cx), float(cy)))


def _points2d(image: _Image) -> NDArray:
    rows = np.empty(len(image.seen.points), _POINT2D)
    rows["xy"], rows["point"] = image.seen.pixels + _PIXEL_CENTRE, image.seen.points + 1
    return rows


def _cameras(model: _Model) -> Iterator[bytes]:
    yield struct.pack("<Q", len(model.cameras))
    for number, camera in enumerate(model.cameras, 1):
        yield struct.pack("<IiQQ", number, _PINHOLE, camera.width, camera.height)
        yield struct.pack("<4d", *camera.parameters)


def _images(model: _Model) -> Iterator[bytes]:
    yield struct.pack("<Q", len(model.images))
    for number, image in enumerate(model.images, 1):
        yield struct.pack("<I7d", number, *image.quaternion, *image.translation)
        yield struct.pack("<I", image.camera) + image.name.encode() + b"\0"
        rows = _points2d(image)
        yield struct.pack("<Q", len(rows)) + rows.tobytes()


def _points(model: _Model) -> Iterator[bytes]:
    yield struct.pack("<Q", len(model.cloud))
    positions, colors = model.cloud.positions.tolist(), model.cloud.colors.tolist()
    for index, (error, track) in enumerate(model.tracks()):
        yield struct.pack("<Q3d3Bd", index + 1, *positions[index], *colors[index], error)
        yield struct.pack("<Q", len(track)) + track.astype("<u4").tobytes()


def _cameras_text(model: _Model) -> Iterator[str]:
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n"
    for number, camera in enumerate(model.cameras, 1):
        yield f"{number} PINHOLE {camera.width} {camera.height} {_text(camera.parameters)}\n"


def _images_text(model: _Model) -> Iterator[str]:
    yield "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"
    yield "# POINTS2D[] (X, Y, POINT3D_ID)\n"
    for number, image in enumerate(model.images, 1):
        pose = _text((*image.quaternion, *image.translation))
        yield f"{number} {pose} {image.camera} {image.name}\n"
        yield " ".join(f"{x:g} {y:g} {point}" for (x, y), point in _points2d(image).tolist()) + "\n"


def _points_text(model: _Model) -> Iterator[str]:
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] (IMAGE_ID, POINT2D_IDX)\n"
    positions, colors = model.cloud.positions.tolist(), model.cloud.colors.tolist()
    for index, (error, track) in enumerate(model.tracks()):
        rest = " ".join(map(str, [*colors[index], f"{error:.3f}", *track.ravel().tolist()]))
        yield f"{index + 1} {_text(positions[index])} {rest}\n"


def _text(numbers: tuple[float, ...] | list[float]) -> str:
    return " ".join(repr(number) for number in numbers)
