"""RealEstate10K: house tours, as text files of cameras beside frames cut from the videos.

Layout (google.github.io/realestate10k): `test/<clip>.txt`, also below `RealEstate10K/`. The first
line is the video's address, each other line a frame: time in microseconds, fx fy cx cy as shares
of the image's width and height, two zeros, and the 12 numbers of camera_from_world, row by row.
Frames are not part of the data set; after extraction they are kept as `<time>.png` or `<time>.jpg`
in `test/<clip>/` or `frames/test/<clip>/`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import (
    image_size,
    numbers,
    read_text,
    require_files,
    rigid,
    subdirectories,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError, ExcludedSceneError, ImageError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.util.quoting import cut

COLUMNS = 19
_SUFFIXES = (".png", ".jpg", ".jpeg")


class RealEstate10k:
    """The clips of a split."""

    def __init__(self, root: Path, split: str = "test", min_images: int = 10) -> None:
        """Look at a directory.

        Args:
            root: holds `test/` or `RealEstate10K/test/`.
            split: "test" or "train".
            min_images: clips with fewer frames are left out.
        """
        self._root = root
        self._split = split
        self._min_images = min_images

    def contents(self) -> Contents:
        """Return the clips by name, without the suffix of their file."""
        subdirectories(self._root)
        names = sorted(path.stem for path in self._annotations().glob("*.txt"))
        if not names and (chunk := next(self._annotations().glob("*.torch"), None)) is not None:
            raise DatasetError(
                f"{chunk} is a chunk of RealEstate10K as pixelSplat packs it: here the clips' "
                "cameras are read from text files (google.github.io/realestate10k), beside frames "
                "that were cut from the videos; unpack it into these"
            )
        if not names:
            raise DatasetError(
                f"{self._root} holds no RealEstate10K clips: looked for {self._split}/*.txt and "
                f"RealEstate10K/{self._split}/*.txt"
            )
        return Contents(tuple(names))

    def load(self, name: str) -> PosedScene:
        """Return a clip; frames that were never cut from the video are listed all the same.

        The frames that a protocol draws must not depend on what was downloaded.
        """
        path = self._annotations() / f"{name}.txt"
        rows = _rows(path)
        if len(rows) < self._min_images:
            raise ExcludedSceneError(
                f"{path} lists {len(rows)} frames, fewer than {self._min_images}"
            )
        directory = self._frames(name)
        files = [_image_file(directory, time) for time, _ in rows]
        first = next((file for file in files if file.exists()), None)
        if first is None:
            require_files(files, f"clip {name}")
        assert first is not None
        width, height = image_size(first)
        frames = []
        for number, ((time, values), file) in enumerate(zip(rows, files, strict=True), start=2):
            where = f"{path}, line {number}"
            pose = np.eye(4)
            pose[:3] = values[6:].reshape(3, 4)
            try:
                camera = Camera(width, height, pixel_intrinsics(values[:4], width, height))
            except ImageError as error:
                raise DatasetError(f"{where}: {cut(error)}") from error
            frames.append(PosedFrame(file, camera, inverse(rigid(pose, where)), 1000 * int(time)))
        return PosedScene(name, tuple(frames))

    def _annotations(self) -> Path:
        nested = self._root / "RealEstate10K" / self._split
        return nested if nested.is_dir() else self._root / self._split

    def _frames(self, name: str) -> Path:
        beside = self._root / "frames" / self._split / name
        return beside if beside.is_dir() else self._annotations() / name


def pixel_intrinsics(shares: NDArray, width: int, height: int) -> NDArray[np.float64]:
    """Return the (3, 3) pinhole matrix, pixel centres at integer coordinates.

    Args:
        shares: fx, fy, cx, cy as shares of width and height, counted from the image's outer edge:
            0.5 is the image's centre.
        width: columns.
        height: rows.
    """
    fx, fy, cx, cy = shares
    return np.array(
        [[fx * width, 0.0, cx * width - 0.5], [0.0, fy * height, cy * height - 0.5], [0, 0, 1.0]]
    )


def _rows(path: Path) -> list[tuple[str, NDArray[np.float64]]]:
    """Return (time in microseconds, the 18 numbers after it) of each frame."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.split()
        # The first line is the video's address, unless somebody took it off.
        if not fields or (number == 1 and len(fields) != COLUMNS):
            continue
        where = f"{path}, line {number}"
        if len(fields) != COLUMNS or not fields[0].isdigit():
            raise DatasetError(
                f"{where}: {len(fields)} fields where a time and {COLUMNS - 1} numbers are "
                f"expected: {line[:80]!r}"
            )
        rows.append((fields[0], numbers(fields[1:], where)))
    return rows


def _image_file(directory: Path, time: str) -> Path:
    candidates = [directory / f"{time}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in candidates if file.exists()), candidates[0])
