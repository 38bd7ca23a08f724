"""Clouds as GLB files (binary glTF 2.0), which browsers and 3D editors show."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import OutputError
from qvggt_core.geometry.cloud import Cloud

_MAGIC, _VERSION, _JSON, _BINARY = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
_POINTS, _FLOAT, _UNSIGNED_SHORT, _ARRAY_BUFFER = 0, 5126, 5123, 34962
_WHITE = 65535


def write_glb(path: Path, cloud: Cloud, is_metric: bool) -> None:
    """Write a z-up cloud as glTF has it: y is up, colours are linear.

    Args:
        path: of the file.
        cloud: one point at least, z-up.
        is_metric: whether lengths are metres, as glTF wants them; noted in the file if not.

    Raises:
        OutputError: there is no point, which glTF does not know.
    """
    if len(cloud) == 0:
        raise OutputError(f"{path}: there is no point, and glTF has no empty cloud")
    x, y, z = cloud.positions.T
    positions = np.ascontiguousarray(np.stack([x, z, -y], axis=1), "<f4")
    colors = np.full((len(cloud), 4), _WHITE, "<u2")
    colors[:, :3] = _linear()[cloud.colors]
    buffer = positions.tobytes() + colors.tobytes()
    text = json.dumps(_document(positions, colors, is_metric), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(buffer)
    with path.open("wb") as file:
        file.write(struct.pack("<3I", _MAGIC, _VERSION, size))
        file.write(struct.pack("<2I", len(text), _JSON) + text)
        file.write(struct.pack("<2I", len(buffer), _BINARY) + buffer)


def _linear() -> NDArray[np.uint16]:
    """Return the linear values, in 16 bits, of the 256 values of sRGB (IEC 61966-2-1)."""
    value = np.arange(256) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * _WHITE).astype(np.uint16)


def _document(
    positions: NDArray[np.float32], colors: NDArray[np.uint16], is_metric: bool
) -> dict[str, Any]:
    return {
        "asset": {
            "version": "2.0",
            "generator": "qvggt",
            "extras": {"unit": "m" if is_metric else "own"},
        },
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "map"}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {"POSITION": 0, "COLOR_0": 1},
                        "mode": _POINTS,
                        "material": 0,
                    }
                ]
            }
        ],
        # Points have no normals: light would make them black.
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        **_arrays(positions, colors),
    }


def _arrays(positions: NDArray[np.float32], colors: NDArray[np.uint16]) -> dict[str, Any]:
    """Return what describes the bytes: positions, then colours."""
    count = len(positions)
    return {
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": count,
                "type": "VEC3",
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": _UNSIGNED_SHORT,
                "normalized": True,
                "count": count,
                "type": "VEC4",
            },
        ],
        "bufferViews": [
            {
                "buffer": 0,
                "byteOffset": 0,
                "byteLength": positions.nbytes,
                "target": _ARRAY_BUFFER,
            },
            {
                "buffer": 0,
                "byteOffset": positions.nbytes,
                "byteLength": colors.nbytes,
                "target": _ARRAY_BUFFER,
            },
        ],
        "buffers": [{"byteLength": positions.nbytes + colors.nbytes}],
    }
