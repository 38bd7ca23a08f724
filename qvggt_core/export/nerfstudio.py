"""Scenes as nerfstudio data sets: transforms.json beside images and depth.

Poses take the camera to the world; cameras are OpenGL's (x right, y up, z backward); the world is
z-up as it is. The centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import OutputError
from qvggt_core.export.scene import PosedImage, Scene
from qvggt_core.geometry.cloud import write_ply
from qvggt_core.util.files import write_atomically

TRANSFORMS_FILE, POINTS_FILE, DEPTH_FOLDER = "transforms.json", "points.ply", "depth"
_OPTICAL_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_PIXEL_CENTRE = 0.5
_DEPTH_STEP = 1e-3
"""Of a depth image's 16 bits, in the map's unit: nerfstudio's default, millimetres if metric."""
_FARTHEST = 65535


def write_nerfstudio(directory: Path, scene: Scene, images: str) -> None:
    """Write transforms.json, points.ply and `depth/NAME.png`.

    Args:
        directory: to write into.
        scene: images and points.
        images: folder below that has or will have `NAME.png`.

    Raises:
        OutputError: an image cannot be written.
    """
    (directory / DEPTH_FOLDER).mkdir(exist_ok=True)
    for image in scene.images:
        path = directory / DEPTH_FOLDER / f"{image.name}.png"
        if not cv2.imwrite(str(path), packed(image.depth)):
            raise OutputError(f"the depth image {path} cannot be written")
    write_ply(directory / POINTS_FILE, scene.cloud)
    document = {
        "camera_model": "OPENCV",
        "ply_file_path": POINTS_FILE,
        "frames": [_frame(image, images) for image in scene.images],
    }
    write_atomically(directory / TRANSFORMS_FILE, json.dumps(document, indent=1) + "\n")


def packed(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return depth in thousandths of the map's unit; 0 where unknown or too far for 16 bits."""
    steps = np.rint(depth / _DEPTH_STEP)
    # A comparison with NaN is false.
    return np.where((steps >= 1) & (steps <= _FARTHEST), steps, 0).astype(np.uint16)


def _frame(image: PosedImage, folder: str) -> dict[str, Any]:
    height, width = image.image.shape[:2]
    intrinsics = image.intrinsics
    return {
        "file_path": f"{folder}/{image.name}.png",
        "depth_file_path": f"{DEPTH_FOLDER}/{image.name}.png",
        "w": width,
        "h": height,
        "fl_x": float(intrinsics[0, 0]),
        "fl_y": float(intrinsics[1, 1]),
        "cx": float(intrinsics[0, 2]) + _PIXEL_CENTRE,
        "cy": float(intrinsics[1, 2]) + _PIXEL_CENTRE,
        "transform_matrix": (image.map_from_camera @ _OPTICAL_FROM_OPENGL).tolist(),
    }
