"""EuRoC MAV (Burri et al., IJRR 2016): a drone's camera, with poses of its body.

Layout (ASL): `<sequence>/mav0/cam0/sensor.yaml` (T_BS: body from camera, intrinsics,
radial-tangential distortion), `mav0/cam0/data.csv` (time in nanoseconds, file), `mav0/cam0/data/`,
and `mav0/state_groundtruth_estimate0/data.csv` (time, position, quaternion w x y z of the body in
the world, then velocities and biases). Images are grey. There are no depth images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import (
    below,
    nearest,
    read_table,
    read_text,
    read_truth,
    require_files,
    rigid,
    sequence_names,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError, ImageError
from qvggt_core.geometry.camera import Camera
from qvggt_core.util.quoting import short
from qvggt_core.util.yaml_text import load_yaml

_NAMES = (
    "MH_01_easy MH_02_easy MH_03_medium MH_04_difficult MH_05_difficult V1_01_easy V1_02_medium "
    "V1_03_difficult V2_01_easy V2_02_medium V2_03_difficult"
)
SEQUENCES = tuple(_NAMES.split())
_DISTORTION = {"radial-tangential": "plumb_bob", "equidistant": "equidistant"}
# The ground truth has 200 poses a second.
_TOLERANCE_NS = 5_000_000


class Euroc:
    """The sequences of a directory, or the directory as one sequence."""

    def __init__(self, root: Path) -> None:
        """Look at a directory that holds sequences, or is one."""
        self._root = root

    def contents(self) -> Contents:
        """Return the sequences by their directory's name."""
        if (self._root / "mav0").is_dir():
            return Contents((self._root.resolve().name,))
        names = sequence_names(self._root, "EuRoC", "mav0", SEQUENCES.__contains__)
        return Contents(names, absent=tuple(name for name in SEQUENCES if name not in names))

    def load(self, name: str) -> PosedScene:
        """Return the left camera's images; those without pose within 5 ms have None."""
        base = self._root if (self._root / "mav0").is_dir() else self._root / name
        camera_directory = base / "mav0/cam0"
        truth_file = base / "mav0/state_groundtruth_estimate0/data.csv"
        listing, sensor = camera_directory / "data.csv", camera_directory / "sensor.yaml"
        require_files([listing, sensor, truth_file], f"sequence {name}")
        camera, body_from_camera = read_sensor(sensor)
        images = sorted(
            (_nanoseconds(row[0], listing), below(camera_directory / "data", row[1]))
            for row in read_table(listing, 2, ",")
        )
        if not images:
            raise DatasetError(f"{listing} lists no images")
        require_files([file for _, file in images], f"sequence {name}")
        world_from_body = read_truth(truth_file)
        frames = []
        for stamp, file in images:
            index = nearest(world_from_body.stamps_ns, stamp, _TOLERANCE_NS)
            pose = None
            if index is not None:
                pose = world_from_body.poses[index] @ body_from_camera
            frames.append(PosedFrame(file, camera, pose, stamp))
        return PosedScene(name, tuple(frames))


def read_sensor(path: Path) -> tuple[Camera, NDArray[np.float64]]:
    """Return the camera and body_from_camera (4, 4) of a `sensor.yaml`.

    Raises:
        DatasetError: an entry is missing or cannot be used; it is named.
    """
    try:
        content: Any = load_yaml(read_text(path))
        width, height = (int(side) for side in content["resolution"])
        fu, fv, cu, cv = (float(value) for value in content["intrinsics"])
        model = content["distortion_model"]
        coefficients = tuple(float(value) for value in content["distortion_coefficients"])
        body_from_camera = np.array(content["T_BS"]["data"], dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path} does not describe a camera of EuRoC: {short(error)}") from error
    if not isinstance(model, str) or model not in _DISTORTION:
        raise DatasetError(
            f"{path}: distortion_model {short(model)} is not known; known: {', '.join(_DISTORTION)}"
        )
    matrix = np.array([[fu, 0, cu], [0, fv, cv], [0, 0, 1]])
    try:
        camera = Camera(width, height, matrix, _DISTORTION[model], coefficients)
    except ImageError as error:
        raise DatasetError(f"{path}: {error}") from error
    return camera, rigid(body_from_camera, f"{path}, T_BS")


def _nanoseconds(text: str, path: Path) -> int:
    if not text.isdigit():
        raise DatasetError(f"{path}: {short(text)} is no time in nanoseconds")
    return int(text)
