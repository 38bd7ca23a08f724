"""A vectorised ray caster: worlds in, colour, z-depth and normals out, on CPU or GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.synthetic.ray_caster import FAR, RayCaster, brightness
from qvggt_core.synthetic.texture_colour import PhotographTable, TextureColours
from qvggt_core.synthetic.world import World

_NEAR = 1e-4
# Height fields are marched up to here and then refined by bisection.
_MARCH_REACH = 80.0
_MARCH_STEPS = 320
_BISECTIONS = 24


@dataclass(frozen=True)
class _Hits:
    """Nearest intersections of N rays: distance along the ray, surface number or -1."""

    distance: Tensor
    surface: Tensor


class Scene(RayCaster):
    """A world as tensors on one device, ready to be rendered.

    Surfaces are numbered rectangles first, then boxes, spheres, cylinders, height field.
    """

    def __init__(
        self,
        world: World,
        device: str | torch.device = "cpu",
        photographs: PhotographTable | None = None,
    ):
        self.place = self.world = world
        self.device = torch.device(device)
        self._rectangle_frames = self._tensor(
            [(r.u_axis, r.v_axis, tuple(np.cross(r.u_axis, r.v_axis))) for r in world.rectangles],
            (-1, 3, 3),
        )
        self._rectangle_centres = self._tensor([r.centre for r in world.rectangles], (-1, 3))
        self._rectangle_halves = self._tensor([r.half_size for r in world.rectangles], (-1, 2))
        self._box_centres = self._tensor([b.centre for b in world.boxes], (-1, 3))
        self._box_halves = self._tensor([b.half_size for b in world.boxes], (-1, 3))
        self._box_frames = self._tensor([_upright(b.yaw) for b in world.boxes], (-1, 3, 3))
        self._sphere_centres = self._tensor([s.centre for s in world.spheres], (-1, 3))
        self._sphere_radii = self._tensor([s.radius for s in world.spheres], (-1,))
        self._cylinder_centres = self._tensor([c.centre for c in world.cylinders], (-1, 3))
        self._cylinder_radii = self._tensor([c.radius for c in world.cylinders], (-1,))
        self._cylinder_halves = self._tensor([c.half_height for c in world.cylinders], (-1,))
        ground = [] if world.height_field is None else [world.height_field]
        self._waves = self._tensor([w for g in ground for w in g.waves], (-1, 4))

        groups = (world.rectangles, world.boxes, world.spheres, world.cylinders, ground)
        self._first = np.cumsum([0, *(len(group) for group in groups)]).tolist()
        textures = [surface.texture for group in groups for surface in group]
        self._textures = TextureColours(textures, self.device, photographs)

    def distances(self, origin: NDArray, directions: NDArray) -> NDArray[np.float64]:
        """Return how many lengths of its direction (N, 3) each ray from `origin` goes, (N,)."""
        start, rays = self._tensor(origin, (3,)), self._tensor(directions, (-1, 3))
        return self._intersect(start, rays).distance.double().cpu().numpy()

    def _shade_block(
        self, origin: Tensor, directions: Tensor, spread: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        hits = self._intersect(origin, directions)
        points = origin + hits.distance[:, None].clamp(max=1e4) * directions
        normals, uv, face = self._surface_coordinates(points, hits.surface)
        facing = (normals * directions).sum(-1, keepdim=True)
        normals = torch.where(facing > 0, -normals, normals)
        width = hits.distance * spread
        colour = self._textures.colour(hits.surface.clamp(min=0), uv, face, width)
        colour = colour * brightness(points, normals, self.world.light)[:, None]
        sky = hits.surface < 0
        colour = torch.where(sky[:, None], self._tensor(self.world.sky, (3,)), colour)
        normals = torch.where(sky[:, None], torch.nan, normals)
        return colour.clamp(0.0, 1.0), hits.distance, normals

    def _intersect(self, origin: Tensor, directions: Tensor) -> _Hits:
        distances = torch.cat(
            [
                self._hit_rectangles(origin, directions),
                self._hit_boxes(origin, directions),
                self._hit_spheres(origin, directions),
                self._hit_cylinders(origin, directions),
                self._hit_ground(origin, directions),
            ],
            dim=1,
        )
        distance, surface = distances.min(dim=1)
        return _Hits(distance, torch.where(distance < FAR, surface, -1))

    def _hit_rectangles(self, origin: Tensor, directions: Tensor) -> Tensor:
        frames = self._rectangle_frames
        local_origin = torch.einsum("pij,pj->pi", frames, origin - self._rectangle_centres)
        u_slope, v_slope, n_slope = (directions @ frames[:, i].T for i in range(3))
        distance = -local_origin[:, 2] / n_slope
        u = local_origin[:, 0] + distance * u_slope
        v = local_origin[:, 1] + distance * v_slope
        halves = self._rectangle_halves
        inside = (u.abs() <= halves[:, 0]) & (v.abs() <= halves[:, 1]) & (distance > _NEAR)
        return torch.where(inside, distance, FAR)

    def _hit_boxes(self, origin: Tensor, directions: Tensor) -> Tensor:
        frames = self._box_frames
        local_origin = torch.einsum("pij,pj->pi", frames, origin - self._box_centres)
        entry = torch.full((len(directions), len(frames)), -FAR, device=self.device)
        leave = torch.full_like(entry, FAR)
        for axis in range(3):
            slope = 1.0 / (directions @ frames[:, axis].T)
            first = (-self._box_halves[:, axis] - local_origin[:, axis]) * slope
            second = (self._box_halves[:, axis] - local_origin[:, axis]) * slope
            entry = torch.maximum(entry, torch.minimum(first, second))
            leave = torch.minimum(leave, torch.maximum(first, second))
        return torch.where((entry <= leave) & (entry > _NEAR), entry, FAR)

    def _hit_spheres(self, origin: Tensor, directions: Tensor) -> Tensor:
        offset = origin - self._sphere_centres
        a = directions.square().sum(-1, keepdim=True)
        half_b = directions @ offset.T
        c = offset.square().sum(-1) - self._sphere_radii.square()
        root = half_b.square() - a * c
        distance = (-half_b - root.clamp(min=0).sqrt()) / a
        return torch.where((root > 0) & (distance > _NEAR), distance, FAR)

    def _hit_cylinders(self, origin: Tensor, directions: Tensor) -> Tensor:
        offset = origin - self._cylinder_centres
        flat = directions[:, :2]
        a = flat.square().sum(-1, keepdim=True).clamp(min=1e-12)
        half_b = flat @ offset[:, :2].T
        c = offset[:, :2].square().sum(-1) - self._cylinder_radii.square()
        root = half_b.square() - a * c
        side = (-half_b - root.clamp(min=0).sqrt()) / a
        z = offset[:, 2] + side * directions[:, 2:]
        on_side = (root > 0) & (z.abs() <= self._cylinder_halves) & (side > _NEAR)
        best = torch.where(on_side, side, FAR)
        for sign in (-1.0, 1.0):
            cap = (sign * self._cylinder_halves - offset[:, 2]) / directions[:, 2:]
            x = offset[:, 0] + cap * directions[:, :1]
            y = offset[:, 1] + cap * directions[:, 1:2]
            on_cap = (x.square() + y.square() <= self._cylinder_radii.square()) & (cap > _NEAR)
            best = torch.where(on_cap & (cap < best), cap, best)
        return best

    def _ground_height(self, xy: Tensor) -> Tensor:
        phase = xy @ self._waves[:, 1:3].T + self._waves[:, 3]
        return phase.sin() @ self._waves[:, 0]

    def _hit_ground(self, origin: Tensor, directions: Tensor) -> Tensor:
        if len(self._waves) == 0:
            return torch.empty((len(directions), 0), device=self.device)

        def above(distance: Tensor) -> Tensor:
            point = origin + distance[:, None] * directions
            return point[:, 2] - self._ground_height(point[:, :2])

        below = torch.zeros(len(directions), device=self.device)
        found = torch.full_like(below, FAR)
        growth = (_MARCH_REACH / 0.1) ** (1.0 / (_MARCH_STEPS - 1))
        distance = 0.1
        for _ in range(_MARCH_STEPS):
            under = (above(torch.full_like(below, distance)) <= 0) & (found >= FAR)
            found = torch.where(under, distance, found)
            below = torch.where(found >= FAR, distance, below)
            distance *= growth
        hit = found < FAR
        low, high = below, torch.where(hit, found, 0.0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            under = above(middle) <= 0
            high = torch.where(under, middle, high)
            low = torch.where(under, low, middle)
        return torch.where(hit, 0.5 * (low + high), FAR)[:, None]

    def _surface_coordinates(
        self, points: Tensor, surface: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return normals (N, 3), metric texture coordinates (N, 2) and face numbers (N,)."""
        normals = torch.zeros_like(points)
        uv = torch.zeros_like(points[:, :2])
        face = torch.zeros_like(surface, dtype=torch.int32)
        coordinates = (
            self._on_rectangles,
            self._on_boxes,
            self._on_spheres,
            self._on_cylinders,
            self._on_ground,
        )
        for group, on_surface in enumerate(coordinates):
            first, last = self._first[group], self._first[group + 1]
            rows = torch.nonzero((surface >= first) & (surface < last))[:, 0]
            if len(rows):
                normals[rows], uv[rows], face[rows] = on_surface(
                    points[rows], surface[rows] - first
                )
        return normals, uv, face

    def _on_rectangles(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frames = self._rectangle_frames[index]
        local = torch.einsum("nij,nj->ni", frames, points - self._rectangle_centres[index])
        # Posters count their cells from a corner, so that no cell is cut in the middle.
        return (
            frames[:, 2],
            local[:, :2] + self._rectangle_halves[index],
            torch.zeros_like(index, dtype=torch.int32),
        )

    def _on_boxes(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frames = self._box_frames[index]
        local = torch.einsum("nij,nj->ni", frames, points - self._box_centres[index])
        axis = (local.abs() - self._box_halves[index]).argmax(dim=1)
        rows = torch.arange(len(index), device=self.device)
        positive = local[rows, axis] > 0
        normals = frames[rows, axis] * torch.where(positive, 1.0, -1.0)[:, None]
        corner = local + self._box_halves[index]
        u = torch.where(axis == 0, corner[:, 1], corner[:, 0])
        v = torch.where(axis == 2, corner[:, 1], corner[:, 2])
        return normals, torch.stack([u, v], dim=1), (2 * axis + positive).int()

    def _on_spheres(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        radius = self._sphere_radii[index, None]
        normals = (points - self._sphere_centres[index]) / radius
        u = torch.atan2(normals[:, 1], normals[:, 0]) * radius[:, 0]
        v = torch.asin(normals[:, 2].clamp(-1.0, 1.0)) * radius[:, 0]
        return normals, torch.stack([u, v], dim=1), torch.zeros_like(index, dtype=torch.int32)

    def _on_cylinders(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        local = points - self._cylinder_centres[index]
        radius = self._cylinder_radii[index]
        over = local[:, 2].abs() - self._cylinder_halves[index]
        on_cap = over >= torch.linalg.vector_norm(local[:, :2], dim=1) - radius
        side = torch.cat([local[:, :2] / radius[:, None], torch.zeros_like(local[:, :1])], dim=1)
        up = torch.zeros_like(side)
        up[:, 2] = local[:, 2].sign()
        around = torch.stack([torch.atan2(local[:, 1], local[:, 0]) * radius, local[:, 2]], dim=1)
        uv = torch.where(on_cap[:, None], local[:, :2], around)
        return torch.where(on_cap[:, None], up, side), uv, on_cap.int()

    def _on_ground(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        phase = points[:, :2] @ self._waves[:, 1:3].T + self._waves[:, 3]
        slope = (phase.cos() * self._waves[:, 0]) @ self._waves[:, 1:3]
        normals = torch.cat([-slope, torch.ones_like(slope[:, :1])], dim=1)
        normals = normals / torch.linalg.vector_norm(normals, dim=1, keepdim=True)
        return normals, points[:, :2], torch.zeros_like(index, dtype=torch.int32)


def _upright(yaw: float) -> NDArray[np.float64]:
    """Return the rows of box_from_world."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
