"""NRGBD (Neural RGB-D Surface Reconstruction, Azinovic et al., CVPR 2022): rendered rooms.

Layout: `<scene>/images/img0.png`, `<scene>/depth/depth0.png` (16 bit, millimetres, 0 invalid),
`<scene>/poses.txt` (4 lines a frame, world_from_camera with OpenGL axes: y up, z backward; "nan"
where there is none) and `<scene>/focal.txt` (one focal length in pixels).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import (
    calibrated,
    image_size,
    metric_depth,
    numbers,
    read_png16,
    read_text,
    require_files,
    rigid,
    subdirectories,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError

_NAMES = (
    "breakfast_room complete_kitchen green_room grey_white_room kitchen morning_apartment "
    "staircase thin_geometry whiteroom"
)
SCENES = tuple(_NAMES.split())
FOCAL_LENGTH = 554.2562584220408
"""Of the published scenes, 60 degrees across 640 pixels; `focal.txt` has the same."""

SIZE = (640, 480)
MILLIMETRES = 1000.0
OPTICAL_FROM_OPENGL: NDArray[np.float64] = np.diag([1.0, -1.0, -1.0, 1.0])
_MAX_DEPTH = 10.0
_IMAGE = re.compile(r"img(\d+)\.png")


class Nrgbd:
    """The scenes of a directory."""

    def __init__(self, root: Path) -> None:
        """Look at a directory that holds the scenes."""
        self._root = root

    def contents(self) -> Contents:
        """Return the scenes by name."""
        names = tuple(
            path.name
            for path in subdirectories(self._root)
            if path.name in SCENES
            or any((path / part).exists() for part in ("poses.txt", "images"))
        )
        if not names:
            raise DatasetError(
                f"{self._root} holds no NRGBD scene: looked for {self._root}/<scene>/poses.txt"
            )
        return Contents(names, absent=tuple(name for name in SCENES if name not in names))

    def load(self, name: str) -> PosedScene:
        """Return all frames; those whose pose is not known have None."""
        directory = self._root / name
        require_files(
            [directory / part for part in ("images", "depth", "poses.txt")], f"scene {name}"
        )
        found = [_IMAGE.fullmatch(path.name) for path in (directory / "images").iterdir()]
        poses = read_poses(directory / "poses.txt")
        last = max((int(match[1]) for match in found if match), default=-1)
        count = max(len(poses), last + 1)
        files = [
            (directory / f"images/img{i}.png", directory / f"depth/depth{i}.png")
            for i in range(count)
        ]
        require_files([file for pair in files for file in pair], f"scene {name}")
        if count != len(poses):
            raise DatasetError(
                f"{directory / 'poses.txt'} holds {len(poses)} poses for {count} images"
            )
        if not files:
            raise DatasetError(f"{directory} holds no images", (directory / "images",))
        width, height = image_size(files[0][0])
        focal = self._focal(directory, width, height)
        camera = calibrated([focal, focal, 0.5 * width, 0.5 * height], width, height, name)
        frames = tuple(
            PosedFrame(image, camera, pose, round(i * 1e9 / 30), partial(_read_depth, depth))
            for i, ((image, depth), pose) in enumerate(zip(files, poses, strict=True))
        )
        return PosedScene(name, frames)

    def _focal(self, directory: Path, width: int, height: int) -> float:
        path = directory / "focal.txt"
        if path.exists():
            values = numbers(read_text(path).split(), str(path))
            if values.size != 1:
                raise DatasetError(f"{path} holds {values.size} numbers, not one focal length")
            return float(values[0])
        if (width, height) != SIZE:
            require_files([path], f"the scene with images of {width}x{height} pixels")
        return FOCAL_LENGTH


def read_poses(path: Path) -> list[NDArray[np.float64] | None]:
    """Return world_from_camera (4, 4) with optical axes, None where the file has nan.

    Raises:
        DatasetError: the file is not made of 4x4 matrices.
    """
    values = numbers(read_text(path).split(), str(path))
    if values.size == 0 or values.size % 16:
        raise DatasetError(f"{path} holds {values.size} numbers, no multiple of 16")
    return [
        rigid(pose @ OPTICAL_FROM_OPENGL, f"{path}, frame {i}") if np.isfinite(pose).all() else None
        for i, pose in enumerate(values.reshape(-1, 4, 4))
    ]


def _read_depth(path: Path) -> NDArray[np.float32]:
    return metric_depth(read_png16(path), MILLIMETRES, _MAX_DEPTH)
