"""Which images see which points, and at which pixel: those whose depth there is the point's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.export.scene import PosedImage
from qvggt_core.geometry.poses import inverse

MAX_PER_IMAGE = 4000
_SAME_DEPTH = 0.03
"""Share of its depth by which a point may be off from what a pixel shows."""


@dataclass(frozen=True)
class Observations:
    """What one image sees of a cloud.

    Attributes:
        points: (M,) indices in the cloud, increasing.
        pixels: (M, 2) column and row of the pixel that shows the point, centres at integers.
        errors: (M,) pixels between its centre and where the pose puts the point.
    """

    points: NDArray[np.int64]
    pixels: NDArray[np.float64]
    errors: NDArray[np.float64]


def observations(
    positions: NDArray[np.float32], images: Sequence[PosedImage]
) -> list[Observations]:
    """Return what each image sees of points (N, 3), at most `MAX_PER_IMAGE`.

    All images prefer the same points, so that those are seen by many.
    """
    order = np.random.default_rng(0).permutation(len(positions))
    return [_seen(positions.astype(np.float64), order, image) for image in images]


def _seen(
    positions: NDArray[np.float64], order: NDArray[np.int64], image: PosedImage
) -> Observations:
    camera_from_map = inverse(image.map_from_camera)
    in_camera = positions @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    index = np.flatnonzero(in_camera[:, 2] > 0.0)
    projected = in_camera[index] @ image.intrinsics.T
    projected = projected[:, :2] / projected[:, 2:]
    height, width = image.packed_depth.shape
    inside = ((projected > -0.5) & (projected < [width - 0.5, height - 0.5])).all(axis=1)
    index, projected = index[inside], projected[inside]
    pixels = np.rint(projected).astype(np.int64)
    shown = image.depth[pixels[:, 1], pixels[:, 0]]
    depth = in_camera[index, 2]
    # A comparison with NaN is false: what has no depth shows no point.
    seen = np.flatnonzero(np.abs(shown - depth) <= _SAME_DEPTH * depth)
    seen = np.sort(seen[np.argsort(order[index[seen]])[:MAX_PER_IMAGE]])
    errors = np.linalg.norm(projected[seen] - pixels[seen], axis=1)
    return Observations(index[seen], pixels[seen].astype(np.float64), errors)
