"""What all ray casters share: a camera's rays, samples of a pixel, light, and the image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.synthetic.world import HeightField, Light, Vector

# Rays are cast in blocks whose (rays, surfaces) tables stay in a core's cache.
_BLOCK = 8192
# Opposite ones first, so that two alone are balanced.
_SAMPLE_OFFSETS = ((-0.25, -0.3), (0.25, 0.3), (0.3, -0.25), (-0.3, 0.25))
FAR = 1e30
"""Distance of what a ray does not hit."""


@dataclass(frozen=True)
class Rendering:
    """What one camera sees.

    Attributes:
        colour: (H, W, 3) uint8, sRGB.
        depth: (H, W) float32 metres along the optical axis at pixel centres; NaN in the sky.
        normals: (H, W, 3) float32 unit vectors in the world frame towards the camera; NaN in
            the sky.
    """

    colour: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]


class Place(Protocol):
    """What a path through a world needs of it; see `World`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def height_field(self) -> HeightField | None: ...  # noqa: D102
    @property
    def flight_low(self) -> Vector: ...  # noqa: D102
    @property
    def flight_high(self) -> Vector: ...  # noqa: D102
    @property
    def yaw_range(self) -> tuple[float, float]: ...  # noqa: D102
    def clearance(self, points: NDArray) -> NDArray[np.float64]: ...  # noqa: D102


class RayCaster(ABC):
    """Renders a place whose surfaces a subclass finds and colours."""

    place: Place
    device: torch.device

    def render(
        self,
        world_from_camera: NDArray,
        intrinsics: NDArray,
        height: int,
        width: int,
        samples: int = 4,
        sample_poses: NDArray | None = None,
    ) -> Rendering:
        """Render one image.

        Args:
            world_from_camera: (4, 4) pose of the optical camera.
            intrinsics: (3, 3) pinhole matrix in pixels; pixel centres at integer coordinates.
            height: rows.
            width: columns.
            samples: rays per pixel beside the one through its centre, at most 4; the colour
                is the mean of all.
            sample_poses: (samples, 4, 4) poses of the camera at the instants of an exposure
                at which those rays are cast, which blurs what moves; None casts all at once.
        """
        rotation = self._tensor(np.asarray(world_from_camera)[:3, :3], (3, 3))
        origin = self._tensor(np.asarray(world_from_camera)[:3, 3], (3,))
        centre_rays = self._rays(intrinsics, height, width, 0.0, 0.0)
        spread = 1.0 / float(intrinsics[0, 0])
        colour, distance, normals = self._shade(origin, centre_rays @ rotation.T, spread)
        # Rays have z = 1 in the camera, so the distance along them is the z-depth.
        depth = torch.where(distance < FAR, distance, torch.nan)
        for index, (dx, dy) in enumerate(_SAMPLE_OFFSETS[:samples]):
            if sample_poses is not None:
                rotation = self._tensor(sample_poses[index, :3, :3], (3, 3))
                origin = self._tensor(sample_poses[index, :3, 3], (3,))
            rays = self._rays(intrinsics, height, width, dx, dy)
            colour = colour + self._shade(origin, rays @ rotation.T, spread)[0]
        colour = colour / (1 + samples)
        return Rendering(
            colour=to_srgb(colour).reshape(height, width, 3).cpu().numpy(),
            depth=depth.reshape(height, width).float().cpu().numpy(),
            normals=normals.reshape(height, width, 3).float().cpu().numpy(),
        )

    @abstractmethod
    def distances(self, origin: NDArray, directions: NDArray) -> NDArray[np.float64]:
        """Return how many lengths of its direction (N, 3) each ray from `origin` goes, (N,).

        FAR where it hits nothing.
        """

    @abstractmethod
    def _shade_block(
        self, origin: Tensor, directions: Tensor, spread: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `_shade` does, for as many rays as one block holds."""

    def _shade(
        self, origin: Tensor, directions: Tensor, spread: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return linear colour (N, 3), distance (N,) and normals (N, 3) of rays.

        A ray is `spread` metres wide for each metre that it goes.
        """
        blocks = [self._shade_block(origin, part, spread) for part in directions.split(_BLOCK)]
        colours, distances, normals = zip(*blocks, strict=True)
        return torch.cat(colours), torch.cat(distances), torch.cat(normals)

    def _tensor(self, values: object, shape: tuple[int, ...]) -> Tensor:
        array = np.asarray(values, dtype=np.float32)
        if array.size == 0:
            shape = tuple(0 if n == -1 else n for n in shape)
        return torch.from_numpy(np.ascontiguousarray(array.reshape(shape))).to(self.device)

    def _rays(self, intrinsics: NDArray, height: int, width: int, dx: float, dy: float) -> Tensor:
        x = (torch.arange(width, device=self.device) + dx - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (torch.arange(height, device=self.device) + dy - intrinsics[1, 2]) / intrinsics[1, 1]
        y_grid, x_grid = torch.meshgrid(y.float(), x.float(), indexing="ij")
        return torch.stack([x_grid, y_grid, torch.ones_like(x_grid)], dim=-1).reshape(-1, 3)


def brightness(points: Tensor, normals: Tensor, light: Light) -> Tensor:
    """Return how bright surfaces are, (N,), at points (N, 3) with unit normals (N, 3)."""
    to_light = points.new_tensor(light.position) - points
    range_squared = to_light.square().sum(-1)
    cosine = (normals * to_light).sum(-1) * torch.rsqrt(range_squared + 1e-6)
    falloff = 1.0 / (1.0 + range_squared / light.reach**2)
    # Half Lambert keeps the structure of surfaces that face away from the light.
    return light.ambient + (1.0 - light.ambient) * (0.5 + 0.5 * cosine) * falloff * 1.5


def pinhole(height: int, width: int, horizontal_fov: float) -> NDArray[np.float64]:
    """Return the (3, 3) matrix of a camera with square pixels, centred at (width, height) / 2.

    Args:
        height: rows.
        width: columns.
        horizontal_fov: radians.
    """
    focal = 0.5 * width / math.tan(0.5 * horizontal_fov)
    return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])


def to_srgb(linear: Tensor) -> Tensor:
    """Return uint8 sRGB of linear colours in [0, 1] (a plain gamma of 2.2)."""
    return (linear.clamp(0.0, 1.0).pow(1.0 / 2.2) * 255.0 + 0.5).to(torch.uint8)
