"""Textured meshes rendered with true depth, by open3d's ray tracer (Embree)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.optional import import_optional
from qvggt_core.synthetic.mesh_world import TexturedMeshes
from qvggt_core.synthetic.ray_caster import FAR, RayCaster, brightness
from qvggt_core.synthetic.texture_colour import PhotographTable
from qvggt_core.synthetic.world import HeightField, Light, Vector

_MARGIN, _LOWEST, _HIGHEST = 0.5, 0.4, 2.0
"""Metres from the outermost walls, and above the ground, between which cameras are."""


@dataclass(frozen=True)
class MeshPlace:
    """Where one may fly in a world of meshes, see `World`."""

    name: str
    raycasting: Any
    flight_low: Vector
    flight_high: Vector
    seed: int = 0
    height_field: HeightField | None = None
    yaw_range: tuple[float, float] = (-np.pi, np.pi)

    def clearance(self, points: NDArray) -> NDArray[np.float64]:
        """Return the distance in metres from points (N, 3) to the nearest surface, (N,)."""
        query = np.ascontiguousarray(points, dtype=np.float32)
        return self.raycasting.compute_distance(query).numpy().astype(np.float64)


class MeshScene(RayCaster):
    """Meshes ready to be rendered, on the CPU."""

    def __init__(self, name: str, meshes: TexturedMeshes) -> None:
        """Take the meshes; cameras may be where a person or a low drone would hold them.

        Raises:
            MissingPackageError: open3d is not installed.
        """
        open3d = import_optional("open3d")
        self.device = torch.device("cpu")
        raycasting = open3d.t.geometry.RaycastingScene(nthreads=1)
        vertices = np.ascontiguousarray(meshes.corners.reshape(-1, 3))
        triangles = np.arange(len(vertices), dtype=np.uint32).reshape(-1, 3)
        raycasting.add_triangles(vertices, triangles)
        self._raycasting = raycasting
        self._uv = torch.from_numpy(meshes.uv)
        self._tile = torch.from_numpy(meshes.tile)
        self._textures = PhotographTable(meshes.tiles)
        self._density = torch.from_numpy(_texture_density(meshes))
        low, high = _flight_volume(meshes)
        lamp = (0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1]), high[2])
        self._light = Light(lamp, reach=12.0, ambient=0.5)
        self._sky = torch.tensor([0.5, 0.6, 0.8])
        self.place = MeshPlace(name, raycasting, low, high)

    def distances(self, origin: NDArray, directions: NDArray) -> NDArray[np.float64]:
        """Return how many lengths of its direction (N, 3) each ray from `origin` goes, (N,)."""
        start, rays = self._tensor(origin, (3,)), self._tensor(directions, (-1, 3))
        return np.minimum(self._cast(start, rays)["t_hit"].numpy().astype(np.float64), FAR)

    def _cast(self, origin: Tensor, directions: Tensor) -> dict[str, Any]:
        rays = torch.cat([origin.expand_as(directions), directions], dim=1).contiguous()
        return dict(self._raycasting.cast_rays(rays.numpy(), nthreads=1))

    def _shade_block(
        self, origin: Tensor, directions: Tensor, spread: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        hits = self._cast(origin, directions)
        distance = torch.from_numpy(hits["t_hit"].numpy()).clamp(max=FAR)
        sky = distance >= FAR
        triangle = torch.from_numpy(hits["primitive_ids"].numpy().astype(np.int64))
        triangle = torch.where(sky, 0, triangle)
        normals = torch.from_numpy(hits["primitive_normals"].numpy())
        normals = normals / torch.linalg.vector_norm(normals, dim=1, keepdim=True).clamp(min=1e-9)
        facing = (normals * directions).sum(-1, keepdim=True)
        normals = torch.where(facing > 0, -normals, normals)
        points = origin + distance[:, None].clamp(max=1e4) * directions
        second, third = torch.from_numpy(hits["primitive_uvs"].numpy()).unbind(dim=1)
        weights = torch.stack([1 - second - third, second, third], dim=1)
        within = (self._uv[triangle] * weights[..., None]).sum(dim=1).remainder(1.0)
        width = distance.clamp(max=1e4) * spread * self._density[triangle]
        colour = self._textures.lookup(self._tile[triangle], within, width)
        colour = colour * brightness(points, normals, self._light)[:, None]
        colour = torch.where(sky[:, None], self._sky, colour)
        normals = torch.where(sky[:, None], torch.nan, normals)
        return colour.clamp(0.0, 1.0), distance, normals


def _flight_volume(meshes: TexturedMeshes) -> tuple[Vector, Vector]:
    """Return the corners of what lies within the outer walls, 0.4 to 2 m above the ground."""
    vertices = meshes.corners.reshape(-1, 3)
    low, high = (vertices.min(axis=0) + _MARGIN, vertices.max(axis=0) - _MARGIN)
    return (float(low[0]), float(low[1]), _LOWEST), (float(high[0]), float(high[1]), _HIGHEST)


def _texture_density(meshes: TexturedMeshes) -> NDArray[np.float32]:
    """Return how many sides of its texture a metre on each triangle covers, (T,)."""
    edges = meshes.corners[:, 1:] - meshes.corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    across = (meshes.uv[:, 1:] - meshes.uv[:, :1]).astype(np.float64)
    covered = np.abs(across[:, 0, 0] * across[:, 1, 1] - across[:, 0, 1] * across[:, 1, 0])
    return np.sqrt(covered / np.maximum(area, 1e-12)).astype(np.float32)
