"""Families of worlds that no seed makes twice alike: rooms, hallways, streets, clutter, panels.

They are what a network for unknown places is trained on; the fewer, more regular worlds of
`named_worlds` are kept apart, to measure how well that goes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qvggt_core.synthetic.world import (
    Box,
    Cylinder,
    Light,
    Rectangle,
    Sphere,
    Texture,
    Vector,
    World,
)

_KINDS = ("photo", "fractal", "noise", "bricks", "checker", "stripes", "poster", "plain")
_SHARES = np.array([0.5, 0.14, 0.08, 0.06, 0.06, 0.05, 0.05, 0.06])


class _Builder:
    """Draws surfaces and solids for one world."""

    def __init__(self, family: int, seed: int, photographs: int) -> None:
        self.rng = np.random.default_rng([13, family, seed])
        self.photographs = photographs
        self.rectangles: list[Rectangle] = []
        self.boxes: list[Box] = []
        self.spheres: list[Sphere] = []
        self.cylinders: list[Cylinder] = []

    def texture(self, size: float) -> Texture:
        """Draw the look of a surface that is about `size` metres across."""
        rng = self.rng
        shares = _SHARES if self.photographs else _SHARES * (np.array(_KINDS) != "photo")
        kind = str(rng.choice(_KINDS, p=shares / shares.sum()))
        period = size * float(np.exp(rng.uniform(np.log(0.06), np.log(0.45))))
        # Mostly muted colours, as things have.
        chroma = 0.25 * rng.uniform() ** 2
        first = rng.uniform(0.05, 0.95) + rng.normal(0.0, chroma, size=3)
        second = rng.uniform(0.05, 0.95) + rng.normal(0.0, chroma, size=3)
        if kind == "plain":
            kind, second = "noise", first + rng.normal(0.0, 0.06, size=3)
        if kind == "photo":
            first = rng.uniform(0.35, 1.0) * (1.0 + rng.normal(0.0, 0.12, size=3))
            period = size * float(np.exp(rng.uniform(np.log(0.12), np.log(0.9))))
        seed = int(rng.integers(2**15))
        return Texture(
            kind,
            _colour(first),
            _colour(second),
            period,
            seed,
            grain=float(rng.uniform(0.0, 0.25)),
            tile=seed % self.photographs if kind == "photo" else 0,
        )

    def rectangle(
        self, centre: Vector, u_axis: Vector, v_axis: Vector, half: tuple[float, float]
    ) -> None:
        """Add a flat surface."""
        texture = self.texture(2.0 * max(half))
        self.rectangles.append(Rectangle(centre, u_axis, v_axis, half, texture))

    def solid(self, x: float, y: float, z: float, size: float) -> None:
        """Add a box, cylinder, pole or ball about `size` across, its lowest point at `z`."""
        rng = self.rng
        draw = rng.uniform()
        if draw < 0.5:
            half = 0.5 * size * rng.uniform(0.3, 1.0, size=3)
            yaw = float(rng.uniform(-np.pi, np.pi))
            centre = (x, y, z + float(half[2]))
            self.boxes.append(Box(centre, _vector(half), yaw, self.texture(size)))
        elif draw < 0.7:
            half_height = float(0.5 * size * rng.uniform(0.4, 1.5))
            radius = float(0.5 * size * rng.uniform(0.2, 0.8))
            centre = (x, y, z + half_height)
            self.cylinders.append(Cylinder(centre, radius, half_height, self.texture(size)))
        elif draw < 0.85:
            # Thin things: legs, poles, pipes.
            half_height = float(size * rng.uniform(0.5, 1.5))
            radius = float(size * rng.uniform(0.02, 0.06))
            centre = (x, y, z + half_height)
            self.cylinders.append(Cylinder(centre, radius, half_height, self.texture(0.3 * size)))
        else:
            radius = float(0.5 * size * rng.uniform(0.4, 1.0))
            self.spheres.append(Sphere((x, y, z + radius), radius, self.texture(size)))

    def shell(self, length: float, width: float, height: float) -> None:
        """Add floor, ceiling and four walls, normals inward."""
        x, y, z = length / 2, width / 2, height / 2
        self.rectangle((0, 0, 0), (1, 0, 0), (0, 1, 0), (x, y))
        self.rectangle((0, 0, height), (1, 0, 0), (0, -1, 0), (x, y))
        self.rectangle((x, 0, z), (0, -1, 0), (0, 0, 1), (y, z))
        self.rectangle((0, y, z), (1, 0, 0), (0, 0, 1), (x, z))
        self.rectangle((-x, 0, z), (0, 1, 0), (0, 0, 1), (y, z))
        self.rectangle((0, -y, z), (-1, 0, 0), (0, 0, 1), (x, z))

    def interior(
        self,
        smallest: tuple[float, float, float],
        largest: tuple[float, float, float],
        pictures: tuple[int, int],
    ) -> tuple[float, float, float]:
        """Add a shell of random size with pictures on it; return length, width and height."""
        length, width, height = (float(v) for v in self.rng.uniform(smallest, largest))
        self.shell(length, width, height)
        self.pictures(length, width, height, int(self.rng.integers(*pictures)))
        return length, width, height

    def pictures(self, length: float, width: float, height: float, count: int) -> None:
        """Add pictures, doors and windows a centimetre in front of random walls."""
        rng = self.rng
        walls = (
            ((length / 2 - 0.01, 0.0), (0.0, -1.0), width),
            ((0.0, width / 2 - 0.01), (1.0, 0.0), length),
            ((-length / 2 + 0.01, 0.0), (0.0, 1.0), width),
            ((0.0, -width / 2 + 0.01), (-1.0, 0.0), length),
        )
        for index in range(count):
            middle, axis, extent = walls[int(rng.integers(4))]
            half_u = float(rng.uniform(0.15, min(1.2, 0.3 * extent)))
            half_v = float(rng.uniform(0.15, 0.42 * height))
            along = float(rng.uniform(-1.0, 1.0) * (0.5 * extent - half_u))
            z = float(rng.uniform(half_v, height - half_v))
            # Each lies a little further out than the last, so that none flickers with another.
            off = 0.002 * index
            x = middle[0] * (1 - off) + axis[0] * along
            y = middle[1] * (1 - off) + axis[1] * along
            self.rectangle((x, y, z), (axis[0], axis[1], 0.0), (0.0, 0.0, 1.0), (half_u, half_v))

    def world(self, name: str, seed: int, low: Vector, high: Vector, light: Light) -> World:
        """Return what was added so far as a world."""
        grey = self.rng.uniform(0.2, 1.0)
        return World(
            name=name,
            seed=seed,
            rectangles=tuple(self.rectangles),
            boxes=tuple(self.boxes),
            spheres=tuple(self.spheres),
            cylinders=tuple(self.cylinders),
            light=light,
            sky=_colour(grey * np.array([0.85, 0.95, 1.1])),
            flight_low=low,
            flight_high=high,
        )


def rooms(seed: int, photographs: int = 0) -> World:
    """Return a furnished room of random size, with things that stand, lie and hang in it."""
    make = _Builder(1, seed, photographs)
    rng = make.rng
    length, width, height = make.interior((2.5, 2.5, 2.2), (10.0, 8.0, 4.5), (6, 24))
    for _ in range(int(rng.integers(8, 30))):
        # Most things stand near walls, some anywhere.
        reach = rng.uniform(0.3, 0.95) ** 0.5
        angle = rng.uniform(-np.pi, np.pi)
        x, y = 0.5 * length * reach * np.cos(angle), 0.5 * width * reach * np.sin(angle)
        hanging = rng.uniform() < 0.25
        z = rng.uniform(0.4, 0.8) * height if hanging else 0.0
        make.solid(float(x), float(y), float(z), float(rng.uniform(0.2, 1.4)))
    lamp = _vector(rng.uniform([-0.4, -0.4, 0.6], [0.4, 0.4, 0.95]) * [length, width, height])
    light = Light(lamp, float(rng.uniform(2.0, 10.0)), float(rng.uniform(0.25, 0.7)))
    low = (-length / 2 + 0.3, -width / 2 + 0.3, 0.3)
    high = (length / 2 - 0.3, width / 2 - 0.3, height - 0.3)
    return make.world("rooms", seed, low, high, light)


def hallways(seed: int, photographs: int = 0) -> World:
    """Return a long, narrow room with pillars, cupboards and pictures."""
    make = _Builder(2, seed, photographs)
    rng = make.rng
    length, width, height = make.interior((8.0, 1.6, 2.2), (30.0, 4.0, 4.0), (8, 30))
    for _ in range(int(rng.integers(4, 16))):
        side = float(rng.choice([-1.0, 1.0]))
        x, size = float(rng.uniform(-0.48, 0.48) * length), float(rng.uniform(0.2, 0.9))
        z = float(rng.uniform(0.5, 0.8) * height) if rng.uniform() < 0.2 else 0.0
        make.solid(x, side * (0.5 * width - 0.3 * size), z, size)
    lamp = (float(rng.uniform(-0.3, 0.3) * length), 0.0, height - 0.2)
    light = Light(lamp, float(rng.uniform(5.0, 20.0)), float(rng.uniform(0.35, 0.7)))
    low, high = (-length / 2 + 0.4, -width / 2 + 0.3, 0.3), (length / 2 - 0.4, width / 2 - 0.3, 0.0)
    return make.world("hallways", seed, low, (high[0], high[1], height - 0.3), light)


def streets(seed: int, photographs: int = 0) -> World:
    """Return two rows of buildings along a road, with poles and boxes by the side of it."""
    make = _Builder(3, seed, photographs)
    rng = make.rng
    half_road = float(rng.uniform(2.5, 8.0))
    make.rectangle((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (80.0, 80.0))
    make.rectangles[-1] = _with_period(make.rectangles[-1], float(rng.uniform(0.8, 6.0)))
    for side in (-1.0, 1.0):
        x = -40.0
        while x < 40.0:
            front, depth, high = (float(v) for v in rng.uniform([2, 2, 2.5], [9, 6, 14]))
            if rng.uniform() < 0.85:
                centre = (x + front / 2, side * (half_road + depth + rng.uniform(0, 1.5)), high / 2)
                half = (front / 2, depth, high / 2)
                texture = make.texture(min(front, high))
                make.boxes.append(Box(centre, half, float(rng.normal(0.0, 0.04)), texture))
            x += front + float(rng.uniform(0.0, 3.0))
    for _ in range(int(rng.integers(6, 26))):
        x, side = float(rng.uniform(-25.0, 25.0)), float(rng.choice([-1.0, 1.0]))
        make.solid(x, side * half_road * float(rng.uniform(0.5, 1.0)), 0.0, rng.uniform(0.5, 3.0))
    light = Light(_vector(rng.uniform([-30, -30, 15], [30, 30, 40])), 80.0, rng.uniform(0.4, 0.7))
    low, high_corner = (-18.0, -half_road + 0.5, 0.5), (18.0, half_road - 0.5, 4.0)
    return make.world("streets", seed, low, high_corner, light)


def clutter(seed: int, photographs: int = 0) -> World:
    """Return solids of all sizes that stand on a floor and float above it, out to a far wall."""
    make = _Builder(4, seed, photographs)
    rng = make.rng
    extent = float(np.exp(rng.uniform(np.log(2.0), np.log(15.0))))
    make.rectangle((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (6 * extent, 6 * extent))
    make.rectangles[-1] = _with_period(make.rectangles[-1], extent * float(rng.uniform(0.1, 0.8)))
    for _ in range(int(rng.integers(12, 45))):
        angle, reach = rng.uniform(-np.pi, np.pi), extent * rng.uniform(0.15, 1.5)
        z = extent * rng.uniform(0.0, 0.6) if rng.uniform() < 0.4 else 0.0
        size = extent * float(np.exp(rng.uniform(np.log(0.06), np.log(0.5))))
        make.solid(float(reach * np.cos(angle)), float(reach * np.sin(angle)), float(z), size)
    for yaw in rng.uniform(0.0, 0.6) + 0.5 * np.pi * np.arange(4):
        if rng.uniform() < 0.6:
            c, s = float(np.cos(yaw)), float(np.sin(yaw))
            far = extent * float(rng.uniform(1.6, 3.0))
            make.rectangle((far * c, far * s, extent), (-s, c, 0.0), (0.0, 0.0, 1.0), (far, extent))
    light = Light(
        _vector(extent * rng.uniform([-1, -1, 1], [1, 1, 3])), 4 * extent, rng.uniform(0.3, 0.7)
    )
    low = (-extent, -extent, 0.1 * extent)
    return make.world("clutter", seed, low, (extent, extent, 0.6 * extent), light)


def panels(seed: int, photographs: int = 0) -> World:
    """Return large flat surfaces that lean in all directions, one behind another."""
    make = _Builder(5, seed, photographs)
    rng = make.rng
    for index in range(int(rng.integers(16, 40))):
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        place = normal * rng.uniform(1.5, 6.0) + rng.normal(0.0, 0.8, size=3)
        u = np.cross(normal, rng.standard_normal(3))
        u /= np.linalg.norm(u)
        # The far ones close the view.
        half = rng.uniform(0.4, 1.6, size=2) if index > 9 else rng.uniform(4.0, 8.0, size=2)
        far = place if index > 9 else place * 1.8
        v = np.cross(normal, u)
        make.rectangle(_vector(far), _vector(u), _vector(v), (float(half[0]), float(half[1])))
    light = Light(_vector(rng.uniform(-2.0, 2.0, size=3)), 10.0, float(rng.uniform(0.4, 0.8)))
    return make.world("panels", seed, (-1.2, -1.2, -1.2), (1.2, 1.2, 1.2), light)


FAMILIES: dict[str, Callable[[int, int], World]] = {
    "rooms": rooms,
    "hallways": hallways,
    "streets": streets,
    "clutter": clutter,
    "panels": panels,
}


def _with_period(rectangle: Rectangle, period: float) -> Rectangle:
    texture = Texture(**{**vars(rectangle.texture), "period": period})
    return Rectangle(**{**vars(rectangle), "texture": texture})


def _colour(values: np.ndarray) -> tuple[float, float, float]:
    return _vector(np.clip(values, 0.02, 1.0))


def _vector(values: np.ndarray) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
