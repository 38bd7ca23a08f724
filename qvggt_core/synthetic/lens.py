"""A camera with or without plumb_bob distortion that looks into a rendered scene."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ParameterError
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene


@dataclass(frozen=True)
class Lens:
    """What a camera's pixels see.

    Attributes:
        intrinsics: (3, 3) pinhole matrix in pixels; pixel centres at integer coordinates.
        height: rows.
        width: columns.
        distortion: plumb_bob k1 k2 p1 p2 [k3]; empty for a pinhole.
    """

    intrinsics: NDArray[np.float64]
    height: int
    width: int
    distortion: tuple[float, ...] = ()

    def picture(
        self,
        scene: Scene,
        world_from_camera: NDArray,
        samples: int = 4,
        exposed: NDArray | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return colour (H, W, 3) and z-depth (H, W) at the lens's own pixels.

        Args:
            scene: what it looks into.
            world_from_camera: (4, 4), optical axes, in the middle of the exposure.
            samples: extra rays per pixel, see `Scene.render`.
            exposed: (samples, 4, 4) the same at instants of the exposure; None if it is short.
        """
        if not any(self.distortion):
            rendering = scene.render(
                world_from_camera, self.intrinsics, self.height, self.width, samples, exposed
            )
            return rendering.colour, rendering.depth
        map_x, map_y, matrix, height, width = self._maps()
        rendering = scene.render(world_from_camera, matrix, height, width, samples, exposed)
        colour = cv2.remap(rendering.colour, map_x, map_y, cv2.INTER_LINEAR)
        depth = cv2.remap(rendering.depth, map_x, map_y, cv2.INTER_NEAREST)
        return colour.astype(np.uint8, copy=False), depth.astype(np.float32, copy=False)

    def _maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray, int, int]:
        """Return where each pixel lies in a larger pinhole image, and that image's matrix."""
        x, y = np.meshgrid(np.arange(self.width), np.arange(self.height))
        pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2).astype(np.float64)
        rays = cv2.undistortPoints(pixels, self.intrinsics, np.array(self.distortion))[:, 0]
        # Barrel distortion sees further than the pinhole: render up to its outermost ray.
        reach = np.abs(rays).max(axis=0) + 2.0 / self.intrinsics[[0, 1], [0, 1]]
        focal = self.intrinsics[0, 0]
        width, height = (2 * np.ceil(reach * focal)).astype(int)
        matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        located = (rays * focal + matrix[:2, 2]).astype(np.float32)
        located = located.reshape(self.height, self.width, 2)
        return located[..., 0], located[..., 1], matrix, int(height), int(width)


@dataclass(frozen=True)
class LensChoice:
    """A lens whose optical axis meets the middle of the image, as it is chosen.

    Attributes:
        width: image columns.
        height: image rows.
        horizontal_fov: degrees.
    """

    width: int = 320
    height: int = 240
    horizontal_fov: float = 80.0

    def lens(self, distortion: tuple[float, ...] = ()) -> Lens:
        """Return the lens, bent by plumb_bob coefficients.

        Raises:
            ParameterError: a size or the field of view is out of range.
        """
        if not all(16 <= side <= 4096 for side in (self.width, self.height)):
            raise ParameterError(
                f"{self.width}x{self.height} pixels: sides must be 16 to 4096 pixels"
            )
        if not 10.0 <= self.horizontal_fov <= 150.0:
            raise ParameterError(
                f"a field of view of {self.horizontal_fov} degrees: choose 10 to 150"
            )
        intrinsics = pinhole(self.height, self.width, np.radians(self.horizontal_fov))
        return Lens(intrinsics, self.height, self.width, distortion)
