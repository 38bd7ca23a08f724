"""Clouds as PCD files, as the Point Cloud Library reads them: binary, x y z rgb confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qvggt_core.geometry.cloud import Cloud

_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("confidence", "<f4")])


def write_pcd(path: Path, cloud: Cloud) -> None:
    """Write a cloud as PCD 0.7; `rgb` has the bits of 0x00RRGGBB and the type of a float."""
    points = np.empty(len(cloud), _POINT)
    points["xyz"] = cloud.positions
    red, green, blue = cloud.colors.T.astype(np.uint32)
    points["rgb"] = (red << 16) | (green << 8) | blue
    points["confidence"] = cloud.confidence
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\n"
        "VERSION 0.7\n"
        "FIELDS x y z rgb confidence\n"
        "SIZE 4 4 4 4 4\n"
        "TYPE F F F F F\n"
        "COUNT 1 1 1 1 1\n"
        f"WIDTH {len(cloud)}\n"
        "HEIGHT 1\n"
        "VIEWPOINT 0 0 0 1 0 0 0\n"
        f"POINTS {len(cloud)}\n"
        "DATA binary\n"
    )
    path.write_bytes(header.encode("ascii") + points.tobytes())
