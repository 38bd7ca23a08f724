"""TUM RGB-D: Kinect sequences with motion-capture poses.

Layout (cvg.cit.tum.de/data/datasets/rgbd-dataset): `<sequence>/rgb.txt` and `depth.txt` (time in
seconds, file), `<sequence>/groundtruth.txt` (time tx ty tz qx qy qz qw: world_from_camera of the
colour camera's optical frame), depth in 16 bit with 5000 units a metre, registered to colour.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import (
    below,
    calibrated,
    image_size,
    metric_depth,
    nearest,
    read_calibration,
    read_png16,
    read_table,
    read_truth,
    require_files,
    sequence_names,
    stamp_ns,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError

UNITS_PER_METRE = 5000.0
SIZE = (640, 480)
CALIBRATIONS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
"""fx fy cx cy and plumb_bob distortion of the three Kinects; the third's images are rectified."""

# What the benchmark's own tools allow between the stamps of images and poses.
_TOLERANCE_NS = 20_000_000


class TumRgbd:
    """The sequences of a directory, or the directory as one sequence."""

    def __init__(self, root: Path) -> None:
        """Look at a directory that holds sequences, or is one."""
        self._root = root

    def contents(self) -> Contents:
        """Return the sequences by their directory's name."""
        published = "rgbd_dataset_freiburg"
        return Contents(
            sequence_names(
                self._root, "TUM RGB-D", "rgb.txt", lambda name: name.startswith(published)
            )
        )

    def load(self, name: str) -> PosedScene:
        """Return the colour images; those without pose or depth within 20 ms have None."""
        directory = self._root / name
        if (self._root / "rgb.txt").exists():
            directory = self._root
        lists = [directory / file for file in ("rgb.txt", "groundtruth.txt")]
        require_files(lists, f"sequence {name}")
        images = _listed(directory / "rgb.txt")
        depths = _listed(directory / "depth.txt") if (directory / "depth.txt").exists() else []
        require_files([file for _, file in (*images, *depths)], f"sequence {name}")
        if not images:
            raise DatasetError(f"{directory / 'rgb.txt'} lists no images")
        truth = read_truth(directory / "groundtruth.txt")
        depth_stamps = [stamp for stamp, _ in depths]
        width, height = image_size(images[0][1])
        camera = calibrated(
            self._calibration(directory, name, width, height), width, height, str(directory)
        )
        frames = []
        for stamp, file in images:
            pose = nearest(truth.stamps_ns, stamp, _TOLERANCE_NS)
            depth = nearest(depth_stamps, stamp, _TOLERANCE_NS)
            frames.append(
                PosedFrame(
                    image_file=file,
                    camera=camera,
                    world_from_camera=None if pose is None else truth.poses[pose],
                    stamp_ns=stamp,
                    read_depth=None if depth is None else partial(_read_depth, depths[depth][1]),
                )
            )
        return PosedScene(name, tuple(frames))

    def _calibration(self, directory: Path, name: str, width: int, height: int) -> list[float]:
        lines = read_calibration(self._root, directory)
        if lines is not None:
            return lines[0]
        for camera, values in CALIBRATIONS.items():
            if camera in name and (width, height) == SIZE:
                return list(values)
        raise DatasetError(
            f"which camera took {name} ({width}x{height} pixels) is not known: its name holds none "
            f"of {', '.join(CALIBRATIONS)} or its size is not 640x480, and there is no "
            f"{directory}/calibration.txt"
        )


def _listed(path: Path) -> list[tuple[int, Path]]:
    rows = read_table(path, 2)
    return sorted((stamp_ns(row[0], str(path)), below(path.parent, row[1])) for row in rows)


def _read_depth(path: Path) -> NDArray[np.float32]:
    return metric_depth(read_png16(path), UNITS_PER_METRE)
