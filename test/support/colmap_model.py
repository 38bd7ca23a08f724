"""COLMAP models, read as COLMAP's documentation describes them: an independent parser."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def parsed_colmap(folder: Path) -> tuple[dict, dict, dict]:
    """Read a model as COLMAP's documentation describes it, binary or text."""
    if (folder / "cameras.bin").exists():
        return (
            _binary_cameras((folder / "cameras.bin").read_bytes()),
            _binary_images((folder / "images.bin").read_bytes()),
            _binary_points((folder / "points3D.bin").read_bytes()),
        )
    cameras, images, points = (
        [
            line.split()
            for line in (folder / f"{name}.txt").read_text().split("\n")[:-1]
            if not line.startswith("#")
        ]
        for name in ("cameras", "images", "points3D")
    )
    return (
        {int(c[0]): (c[1], [int(c[2]), int(c[3])], list(map(float, c[4:]))) for c in cameras},
        {
            int(i[0]): (
                list(map(float, i[1:5])),
                list(map(float, i[5:8])),
                int(i[8]),
                i[9],
                np.array(list(map(float, seen))).reshape(-1, 3),
            )
            for i, seen in zip(images[::2], images[1::2], strict=True)
        },
        {
            int(p[0]): (
                list(map(float, p[1:4])),
                list(map(int, p[4:7])),
                float(p[7]),
                np.array(list(map(int, p[8:]))).reshape(-1, 2),
            )
            for p in points
        },
    )


class Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.offset = content, 0

    def take(self, layout: str) -> tuple:
        found = struct.unpack_from("<" + layout, self.content, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return found

    def text(self) -> str:
        end = self.content.index(b"\0", self.offset)
        found = self.content[self.offset : end].decode()
        self.offset = end + 1
        return found


def _binary_cameras(content: bytes) -> dict:
    reader, found = Reader(content), {}
    for _ in range(reader.take("Q")[0]):
        number, model, width, height = reader.take("IiQQ")
        found[number] = ({1: "PINHOLE"}[model], [width, height], list(reader.take("4d")))
    assert reader.offset == len(content)
    return found


def _binary_images(content: bytes) -> dict:
    reader, found = Reader(content), {}
    for _ in range(reader.take("Q")[0]):
        (number,) = reader.take("I")
        numbers = reader.take("7d")
        (camera,) = reader.take("I")
        name = reader.text()
        seen = np.array([reader.take("ddq") for _ in range(reader.take("Q")[0])]).reshape(-1, 3)
        found[number] = (list(numbers[:4]), list(numbers[4:]), camera, name, seen)
    assert reader.offset == len(content)
    return found


def _binary_points(content: bytes) -> dict:
    reader, found = Reader(content), {}
    for _ in range(reader.take("Q")[0]):
        (number,) = reader.take("Q")
        place, color, (error,) = reader.take("3d"), reader.take("3B"), reader.take("d")
        track = np.array([reader.take("II") for _ in range(reader.take("Q")[0])]).reshape(-1, 2)
        found[number] = (list(place), list(color), error, track)
    assert reader.offset == len(content)
    return found
