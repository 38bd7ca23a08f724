"""Procedural worlds as plain data: surfaces with textures, a light, and where one may fly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Colour = tuple[float, float, float]

TEXTURE_KINDS = ("noise", "checker", "bricks", "stripes", "poster", "fractal", "photo")


@dataclass(frozen=True)
class Texture:
    """What a surface looks like, as a function of its own metric coordinates (u, v).

    Attributes:
        kind: one of TEXTURE_KINDS; posters do not repeat, the others do.
        first: linear RGB in [0, 1]; of a photo, the factor on its colours.
        second: linear RGB in [0, 1], of the other squares, the mortar, the other stripes.
        period: metres after which the pattern repeats; size of a poster's cell.
        seed: shifts the fine structure and chooses a poster's colours.
        grain: amplitude of the fine noise that multiplies the colour.
        tile: number of a photo in the atlas that the scene is given.
    """

    kind: str
    first: Colour
    second: Colour
    period: float
    seed: int = 0
    grain: float = 0.25
    tile: int = 0


@dataclass(frozen=True)
class Rectangle:
    """A flat piece of wall; `u_axis` and `v_axis` are orthonormal, the normal is u x v."""

    centre: Vector
    u_axis: Vector
    v_axis: Vector
    half_size: tuple[float, float]
    texture: Texture


@dataclass(frozen=True)
class Box:
    """A box that stands upright, turned by `yaw` radians about the vertical."""

    centre: Vector
    half_size: Vector
    yaw: float
    texture: Texture


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    centre: Vector
    radius: float
    texture: Texture


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder with both caps; `centre` is the middle of its axis."""

    centre: Vector
    radius: float
    half_height: float
    texture: Texture


@dataclass(frozen=True)
class HeightField:
    """Ground z(x, y) = sum of amplitude * sin(kx * x + ky * y + phase), without an edge.

    Attributes:
        waves: rows of (amplitude, kx, ky, phase), in metres and radians per metre.
        texture: of the ground; (u, v) are (x, y).
    """

    waves: tuple[tuple[float, float, float, float], ...]
    texture: Texture

    def height(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Return the ground's z in metres at `x`, `y` (any equal shapes)."""
        total = np.zeros(np.shape(x))
        for amplitude, kx, ky, phase in self.waves:
            total = total + amplitude * np.sin(kx * np.asarray(x) + ky * np.asarray(y) + phase)
        return total


@dataclass(frozen=True)
class Light:
    """A point light with an ambient part; brightness falls off beyond `reach` metres."""

    position: Vector
    reach: float
    ambient: float = 0.45


@dataclass(frozen=True)
class World:
    """A place with known geometry, z-up, in metres.

    Attributes:
        name: family that it was made from.
        seed: seed that it was made with.
        sky: linear RGB where a ray hits nothing.
        flight_low: lower corner of the volume in which cameras may be.
        flight_high: upper corner of that volume.
        yaw_range: headings, radians from +x, in which cameras may look.
    """

    name: str
    seed: int
    light: Light
    sky: Colour
    flight_low: Vector
    flight_high: Vector
    yaw_range: tuple[float, float] = (-np.pi, np.pi)
    rectangles: tuple[Rectangle, ...] = ()
    boxes: tuple[Box, ...] = ()
    spheres: tuple[Sphere, ...] = ()
    cylinders: tuple[Cylinder, ...] = ()
    height_field: HeightField | None = None

    def clearance(self, points: NDArray) -> NDArray[np.float64]:
        """Return the distance in metres from points (N, 3) to the nearest surface, (N,).

        Negative inside a solid. Over a height field the distance is a lower bound: the
        vertical one divided by the steepest slope's factor.
        """
        points = np.asarray(points, dtype=np.float64)
        nearest = np.full(len(points), np.inf)
        for rectangle in self.rectangles:
            nearest = np.minimum(nearest, _rectangle_distance(rectangle, points))
        for box in self.boxes:
            nearest = np.minimum(nearest, _box_distance(box, points))
        for sphere in self.spheres:
            offset = points - np.array(sphere.centre)
            nearest = np.minimum(nearest, np.linalg.norm(offset, axis=1) - sphere.radius)
        for cylinder in self.cylinders:
            nearest = np.minimum(nearest, _cylinder_distance(cylinder, points))
        if self.height_field is not None:
            above = points[:, 2] - self.height_field.height(points[:, 0], points[:, 1])
            slope = sum(a * np.hypot(kx, ky) for a, kx, ky, _ in self.height_field.waves)
            nearest = np.minimum(nearest, above / np.hypot(1.0, slope))
        return nearest


def _rectangle_distance(rectangle: Rectangle, points: NDArray) -> NDArray[np.float64]:
    offset = points - np.array(rectangle.centre)
    u_axis, v_axis = np.array(rectangle.u_axis), np.array(rectangle.v_axis)
    beyond_u = np.maximum(np.abs(offset @ u_axis) - rectangle.half_size[0], 0.0)
    beyond_v = np.maximum(np.abs(offset @ v_axis) - rectangle.half_size[1], 0.0)
    return np.sqrt(beyond_u**2 + beyond_v**2 + (offset @ np.cross(u_axis, v_axis)) ** 2)


def _box_distance(box: Box, points: NDArray) -> NDArray[np.float64]:
    cosine, sine = np.cos(box.yaw), np.sin(box.yaw)
    offset = points - np.array(box.centre)
    local = np.stack(
        [
            cosine * offset[:, 0] + sine * offset[:, 1],
            -sine * offset[:, 0] + cosine * offset[:, 1],
            offset[:, 2],
        ],
        axis=1,
    )
    beyond = np.abs(local) - np.array(box.half_size)
    outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=1)
    return outside + np.minimum(beyond.max(axis=1), 0.0)


def _cylinder_distance(cylinder: Cylinder, points: NDArray) -> NDArray[np.float64]:
    offset = points - np.array(cylinder.centre)
    beyond = np.stack(
        [
            np.hypot(offset[:, 0], offset[:, 1]) - cylinder.radius,
            np.abs(offset[:, 2]) - cylinder.half_height,
        ],
        axis=1,
    )
    outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=1)
    return outside + np.minimum(beyond.max(axis=1), 0.0)
