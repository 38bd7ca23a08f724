"""Coloured points, gathered into a voxel map, saved as PLY."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError

_KEY_BITS = 21
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}
_PLY_PROPERTIES = (
    dict.fromkeys("xyz", "<f4")
    | dict.fromkeys(("red", "green", "blue"), "|u1")
    | {"confidence": "<f4"}
)
_MAX_PLY_HEADER = 1024


@dataclass(frozen=True)
class Cloud:
    """N coloured points in one coordinate frame.

    Attributes:
        positions: (N, 3) float32.
        colors: (N, 3) uint8, RGB.
        confidence: (N,) float32, as predicted.
    """

    positions: NDArray[np.float32]
    colors: NDArray[np.uint8]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.positions)

    def write(self, path: Path | str) -> None:
        """Write a binary PLY file, see `write_ply`."""
        write_ply(Path(path), self)

    def take(self, index: NDArray[np.int64]) -> Cloud:
        """Return some of the points."""
        return Cloud(self.positions[index], self.colors[index], self.confidence[index])

    def moved(self, target_from_source: NDArray[np.float64]) -> Cloud:
        """Return the points in another frame, by a (4, 4) transform."""
        rotation = target_from_source[:3, :3]
        positions = self.positions @ rotation.T.astype(np.float64) + target_from_source[:3, 3]
        return Cloud(positions.astype(np.float32), self.colors, self.confidence)


def empty_cloud() -> Cloud:
    """Return a cloud of no points."""
    return Cloud(
        np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0,), np.float32)
    )


class VoxelMap:
    """A map that keeps one mean point per voxel, bounded in size.

    The voxel is a fraction of the median depth of the first cloud. When the map outgrows its
    bound, the voxel doubles: detail is lost, not parts of the map.
    """

    def __init__(self, voxel_fraction: float, max_points: int = 2_000_000) -> None:
        """Start an empty map."""
        self.voxel = 0.0
        self._fraction = voxel_fraction
        self._max_points = max_points
        self._pending: list[NDArray[np.float64]] = []
        self._pending_size = 0
        self._rows = np.empty((0, 8))

    def add(self, cloud: Cloud, median_depth: float) -> None:
        """Add a cloud that is given in the map's frame.

        Args:
            cloud: points in the map's frame.
            median_depth: median depth that the cloud was seen at; sets the voxel at first use.
        """
        if len(cloud) == 0:
            return
        if self.voxel == 0.0:
            self.voxel = max(self._fraction * median_depth, 1e-9)
        rows = np.empty((len(cloud), 8))
        rows[:, 0:3] = cloud.positions
        rows[:, 3:6] = cloud.colors
        rows[:, 6] = cloud.confidence
        rows[:, 7] = 1.0
        self._pending.append(rows)
        self._pending_size += len(rows)
        # Merging sorts the whole map, so it waits until there is as much new as old.
        if self._pending_size > max(500_000, len(self._rows)):
            self._merge()

    def add_frame(self, cloud: Cloud, map_from_camera: NDArray[np.float64]) -> None:
        """Add a cloud that is given in a camera's optical frame, at its (4, 4) pose in the map."""
        if len(cloud):
            self.add(cloud.moved(map_from_camera), float(np.median(cloud.positions[:, 2])))

    def cloud(self) -> Cloud:
        """Return the points of the map, in a fixed order."""
        self._merge()
        return Cloud(
            self._rows[:, 0:3].astype(np.float32),
            np.rint(self._rows[:, 3:6]).astype(np.uint8),
            self._rows[:, 6].astype(np.float32),
        )

    def _merge(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate([self._rows, *self._pending])
        self._pending, self._pending_size = [], 0
        self._rows = _mean_per_voxel(rows, self.voxel)
        while len(self._rows) > self._max_points:
            self.voxel *= 2.0
            self._rows = _mean_per_voxel(self._rows, self.voxel)


def _mean_per_voxel(rows: NDArray[np.float64], voxel: float) -> NDArray[np.float64]:
    """Join rows (position, color, confidence, weight) that fall into one voxel."""
    half = 1 << (_KEY_BITS - 1)
    cells = np.clip(np.floor(rows[:, 0:3] / voxel), -half, half - 1).astype(np.int64) + half
    keys = (cells[:, 0] << (2 * _KEY_BITS)) | (cells[:, 1] << _KEY_BITS) | cells[:, 2]
    _, voxel_of_row = np.unique(keys, return_inverse=True)
    weight = np.bincount(voxel_of_row, rows[:, 7])
    joined = np.empty((len(weight), 8))
    for column in range(7):
        joined[:, column] = np.bincount(voxel_of_row, rows[:, column] * rows[:, 7]) / weight
    joined[:, 7] = weight
    return joined


def write_ply(path: Path, cloud: Cloud) -> None:
    """Write a cloud as a binary little-endian PLY file with colour and confidence."""
    vertices = np.empty(len(cloud), dtype=list(_PLY_PROPERTIES.items()))
    for axis, name in enumerate("xyz"):
        vertices[name] = cloud.positions[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = cloud.colors[:, channel]
    vertices["confidence"] = cloud.confidence
    path.write_bytes(_ply_header(len(cloud)) + vertices.tobytes())


def read_ply(path: Path) -> Cloud:
    """Read a cloud that `write_ply` wrote.

    Raises:
        RecordingError: the file is missing, cut off, or of another layout.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read the cloud {path}: {error}") from error
    layout = np.dtype(list(_PLY_PROPERTIES.items()))
    end = content.find(b"end_header\n", 0, _MAX_PLY_HEADER) + len(b"end_header\n")
    count = max(len(content) - end, 0) // layout.itemsize
    if content[:end] != _ply_header(count):
        raise RecordingError(
            f"{path} is no cloud of this qvggt, or is cut off after {count} points: "
            "reconstruct again"
        )
    vertices = np.frombuffer(content, dtype=layout, count=count, offset=end)
    return Cloud(
        np.stack([vertices[name] for name in "xyz"], axis=-1),
        np.stack([vertices[name] for name in ("red", "green", "blue")], axis=-1),
        vertices["confidence"].copy(),
    )


def _ply_header(count: int) -> bytes:
    properties = "".join(
        f"property {_PLY_TYPES[kind]} {name}\n" for name, kind in _PLY_PROPERTIES.items()
    )
    return (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{properties}end_header\n"
    ).encode("ascii")
