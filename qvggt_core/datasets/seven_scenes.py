"""7-Scenes: Kinect sequences of seven rooms, depth and colour from two cameras.

Layout: `<scene>/TestSplit.txt` and `TrainSplit.txt` (lines like `sequence3`), and
`<scene>/seq-03/frame-000000.color.png`, `.depth.png` (16 bit, millimetres, 65535 invalid) and
`.pose.txt` (world_from_camera, optical axes, metres).

The depth images are not registered to colour: the depth camera has a focal length of 585 pixels,
the colour camera of about 525, and they sit 2.6 cm apart. Depth is brought into the colour camera
here, with the extrinsics that the `depth.proj.png` files of later papers were made with; those
files are not read. The poses are taken to be the colour camera's, as those papers do.
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
    read_calibration,
    read_png16,
    read_pose,
    read_text,
    require_files,
    subdirectories,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import unproject
from qvggt_core.util.quoting import short

SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
COLOUR_CAMERA = (525.0, 525.0, 320.0, 240.0)
DEPTH_CAMERA = (585.0, 585.0, 320.0, 240.0)
SIZE = (640, 480)
COLOUR_FROM_DEPTH: NDArray[np.float64] = np.array(
    [
        [9.9996518012567637e-01, 2.6765126468950343e-03, -7.9041012313000904e-03, -0.025558943],
        [-2.7409311281316700e-03, 9.9996302803027592e-01, -8.1504520778013286e-03, 0.000101096],
        [7.8819942130445332e-03, 8.1718328771890631e-03, 9.9993554558014031e-01, 0.002031832],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""Kinect calibration of LIRIS (projet.liris.cnrs.fr/voir), used by the field for 7-Scenes."""

MILLIMETRES = 1000.0
_MAX_DEPTH = 10.0
_STEM = re.compile(r"frame-(\d{6})\.(color\.png|depth\.png|pose\.txt)")
_PARTS = ("color.png", "depth.png", "pose.txt")


class SevenScenes:
    """The sequences of a split."""

    def __init__(self, root: Path, split: str = "Test") -> None:
        """Look at a directory.

        Args:
            root: holds the scenes.
            split: "Test" or "Train".
        """
        self._root = root
        self._split = f"{split}Split.txt"

    def contents(self) -> Contents:
        """Return the sequences as `<scene>/seq-<number>`."""
        scenes: list[str] = []
        problems: list[DatasetError] = []
        directories = [
            path
            for path in subdirectories(self._root)
            if (path / self._split).exists() or path.name in SCENES
        ]
        if not directories:
            raise DatasetError(
                f"{self._root} holds no scene of 7-Scenes: looked for "
                f"{self._root}/<scene>/{self._split}"
            )
        for directory in directories:
            try:
                scenes += [f"{directory.name}/{name}" for name in self._sequences(directory)]
            except DatasetError as problem:
                problems.append(problem)
        present = {path.name for path in directories}
        absent = tuple(name for name in SCENES if name not in present)
        return Contents(tuple(scenes), tuple(problems), absent)

    def load(self, name: str) -> PosedScene:
        """Return all frames of a sequence; a frame that lacks one of its files is an error."""
        directory = self._root / name
        archive = directory.with_suffix(".zip")
        if not directory.is_dir() and archive.exists():
            raise DatasetError(f"{archive} is not unpacked: unzip it where it is", (directory,))
        require_files([directory], f"sequence {name}")
        found = [match for p in directory.iterdir() if (match := _STEM.fullmatch(p.name))]
        count = 1 + max((int(match[1]) for match in found), default=-1)
        stems = [directory / f"frame-{index:06d}" for index in range(count)]
        if not stems:
            raise DatasetError(f"{directory} holds no frames", (directory,))
        require_files(
            [Path(f"{stem}.{part}") for stem in stems for part in _PARTS], f"sequence {name}"
        )
        colour, depth = self._cameras(directory, *image_size(Path(f"{stems[0]}.color.png")))
        frames = tuple(
            PosedFrame(
                image_file=Path(f"{stem}.color.png"),
                camera=colour,
                world_from_camera=read_pose(Path(f"{stem}.pose.txt")),
                # The sequences have no times; a Kinect gives 30 images a second.
                stamp_ns=round(index * 1e9 / 30),
                read_depth=partial(read_depth, Path(f"{stem}.depth.png"), depth, colour),
            )
            for index, stem in enumerate(stems)
        )
        return PosedScene(name, frames)

    def _sequences(self, directory: Path) -> list[str]:
        path = directory / self._split
        names = []
        for line in read_text(path).split():
            digits = re.fullmatch(r"(?:sequence|seq-)?(\d+)", line)
            if not digits:
                raise DatasetError(f"{path}: {short(line)} is no sequence's name")
            names.append(f"seq-{int(digits[1]):02d}")
        return sorted(names)

    def _cameras(self, directory: Path, width: int, height: int) -> tuple[Camera, Camera]:
        lines = read_calibration(self._root, directory)
        if lines is None:
            if (width, height) != SIZE:
                raise DatasetError(
                    f"{directory} has images of {width}x{height}, 7-Scenes' have 640x480: were "
                    "they resized after the download?"
                )
            lines = [list(COLOUR_CAMERA), list(DEPTH_CAMERA)]
        if len(lines) != 2:
            raise DatasetError(f"{directory}: a line for colour and one for depth are expected")
        where = str(directory)
        return (
            calibrated(lines[0], width, height, where),
            calibrated(lines[1], width, height, where),
        )


def read_depth(path: Path, depth_camera: Camera, colour_camera: Camera) -> NDArray[np.float32]:
    """Return a depth image as the colour camera would have seen it, metres, NaN where invalid."""
    depth = metric_depth(read_png16(path), MILLIMETRES, _MAX_DEPTH)
    shape = (depth_camera.height, depth_camera.width)
    if depth.shape != shape:
        raise DatasetError(f"{path} has shape {depth.shape}, its camera {shape}")
    return registered(depth, depth_camera, colour_camera, COLOUR_FROM_DEPTH)


def registered(
    depth: NDArray[np.float32], source: Camera, target: Camera, target_from_source: NDArray
) -> NDArray[np.float32]:
    """Return a depth image in another camera: points go to their pixels, the nearest wins.

    Args:
        depth: (H, W) metres along the source's optical axis, NaN where invalid.
        source: camera of `depth`.
        target: camera to bring it to.
        target_from_source: (4, 4).

    Returns:
        (H', W') metres along the target's axis; NaN where no point falls.
    """
    points = unproject(depth, source.intrinsics)[np.isfinite(depth)].astype(np.float64)
    points = points @ target_from_source[:3, :3].T + target_from_source[:3, 3]
    points = points[points[:, 2] > 0]
    pixels = target.project(points)
    columns, rows = np.rint(pixels).astype(np.int64).T
    inside = (columns >= 0) & (columns < target.width) & (rows >= 0) & (rows < target.height)
    image = np.full((target.height, target.width), np.inf)
    np.minimum.at(image, (rows[inside], columns[inside]), points[inside, 2])
    return np.where(np.isinf(image), np.nan, image).astype(np.float32)
