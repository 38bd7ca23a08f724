"""What is exported: the points of one map, and images with their poses in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.util.thinning import spread_indices


@dataclass(frozen=True)
class PosedImage:
    """One image, rectified, with its pose and depth.

    Attributes:
        stamp_ns: capture time; names the image's files.
        map_from_camera: (4, 4) float64, rigid; the camera is optical (x right, y down, z forward).
        intrinsics: (3, 3) float64, pixels, centres at integers.
        image: (H, W, 3) uint8, RGB.
        packed_depth: (H, W) float16 or float32 along the optical axis, in units of `depth_unit`;
            NaN where invalid.
        depth_unit: in the map's unit.
    """

    stamp_ns: int
    map_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    image: NDArray[np.uint8]
    packed_depth: NDArray[np.floating]
    depth_unit: float = 1.0

    @property
    def name(self) -> str:
        """Name of its files, without suffix: names sort as the images were taken."""
        return f"{self.stamp_ns:019d}"

    @property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) along the optical axis in the map's unit; NaN where invalid."""
        return self.packed_depth.astype(np.float32) * np.float32(self.depth_unit)


@dataclass(frozen=True)
class Scene:
    """A map, z-up.

    Attributes:
        cloud: its points.
        images: in order of time, each stamp once; may be none.
        is_metric: whether the unit is the metre; else it is one of its own.
        up_source: what z stands on, see `Up.source`.
        notes: what the sources do not have, for an operator.
    """

    cloud: Cloud
    images: tuple[PosedImage, ...]
    is_metric: bool
    up_source: str
    notes: tuple[str, ...] = ()

    def thinned(self, max_points: int, max_images: int) -> Scene:
        """Return it with at most so many points and images, spread evenly."""
        kept = spread_indices(len(self.cloud), max_points)
        images = tuple(self.images[i] for i in spread_indices(len(self.images), max_images))
        if len(kept) == len(self.cloud):
            return replace(self, images=images)
        return replace(self, cloud=self.cloud.take(kept), images=images)
