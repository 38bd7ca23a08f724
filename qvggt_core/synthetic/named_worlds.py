"""A handful of regular worlds by name: where samples fly, tests look and networks are judged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qvggt_core.errors import ParameterError
from qvggt_core.synthetic.world import (
    Box,
    Cylinder,
    HeightField,
    Light,
    Rectangle,
    Sphere,
    Texture,
    World,
)


def make_world(name: str, seed: int = 0) -> World:
    """Return the world of a family and a seed; equal arguments give equal worlds.

    Args:
        name: "studio", "room", "corridor", "arena" or "terrain".
        seed: layout, colours and textures.

    Raises:
        ParameterError: there is no such family.
    """
    if name not in WORLDS:
        raise ParameterError(f"there is no world {name!r}; known: {', '.join(WORLDS)}")
    return WORLDS[name](seed)


def _room(seed: int) -> World:
    rng = np.random.default_rng([1, seed])
    length, width, height = 6.0, 5.0, 2.8
    shell = _shell(rng, length, width, height)
    posters = _posters(rng, length, width, height, per_wall=4)
    # Furniture stands along the walls, so that the middle is free to fly in.
    boxes, cylinders, spheres = [], [], []
    for angle in np.linspace(0.0, 2.0 * np.pi, 8, endpoint=False) + rng.uniform(0.0, 0.6):
        direction = np.array([np.cos(angle), np.sin(angle)])
        reach = 0.82 / np.max(np.abs(direction) / np.array([length / 2, width / 2]))
        x, y = direction * reach
        half = rng.uniform([0.22, 0.22, 0.25], [0.45, 0.4, 0.75])
        texture = _texture(rng, str(rng.choice(["checker", "stripes", "poster", "bricks"])), 0.3)
        if rng.uniform() < 0.7:
            boxes.append(
                Box((x, y, half[2]), (half[0], half[1], half[2]), rng.uniform(-0.6, 0.6), texture)
            )
        else:
            cylinders.append(Cylinder((x, y, 1.6 * half[2]), 0.22, 1.6 * half[2], texture))
    for corner in ((-1, 1), (1, -1), (1, 1)):
        spheres.append(
            Sphere(
                (corner[0] * length * 0.3, corner[1] * width * 0.3, rng.uniform(2.0, 2.3)),
                rng.uniform(0.16, 0.26),
                _texture(rng, "stripes", 0.12),
            )
        )
    return World(
        name="room",
        seed=seed,
        rectangles=(*shell, *posters),
        boxes=tuple(boxes),
        spheres=tuple(spheres),
        cylinders=tuple(cylinders),
        light=Light((0.6, -0.4, height - 0.3), 6.0),
        sky=(0.5, 0.6, 0.8),
        flight_low=(-length / 2 + 0.6, -width / 2 + 0.6, 0.7),
        flight_high=(length / 2 - 0.6, width / 2 - 0.6, 1.9),
    )


def _studio(seed: int) -> World:
    """A room that cameras look into from one side, as from behind a stage's front edge."""
    rng = np.random.default_rng([7, seed])
    length, width, height = 6.0, 5.0, 2.8
    boxes, cylinders, spheres = [], [], []
    for index, y in enumerate(np.linspace(-2.0, 2.0, 5)):
        half = rng.uniform([0.22, 0.22, 0.3], [0.4, 0.4, 0.75])
        x = rng.uniform(1.3, 2.4)
        kind = ("checker", "poster", "bricks", "stripes", "poster")[index]
        boxes.append(
            Box(
                (x, y, half[2]),
                (half[0], half[1], half[2]),
                rng.uniform(-0.7, 0.7),
                _texture(rng, kind, 0.3),
            )
        )
    for x, y in ((0.9, -1.75), (1.0, 1.75), (1.2, 0.4)):
        half_height = rng.uniform(0.5, 1.2)
        texture = _texture(rng, str(rng.choice(["bricks", "stripes", "poster"])), 0.25)
        cylinders.append(Cylinder((x, y, half_height), 0.2, half_height, texture))
    for x, y in ((1.6, -0.9), (2.0, 1.2)):
        texture = _texture(rng, "stripes", 0.15)
        spheres.append(Sphere((x, y, rng.uniform(1.9, 2.3)), rng.uniform(0.2, 0.3), texture))
    return World(
        name="studio",
        seed=seed,
        rectangles=(
            *_shell(rng, length, width, height),
            *_posters(rng, length, width, height, per_wall=4),
        ),
        boxes=tuple(boxes),
        spheres=tuple(spheres),
        cylinders=tuple(cylinders),
        light=Light((0.3, -0.4, height - 0.3), 6.0),
        sky=(0.5, 0.6, 0.8),
        flight_low=(-2.4, -1.4, 0.8),
        flight_high=(0.4, 1.4, 1.8),
        yaw_range=(-0.9, 0.9),
    )


def _corridor(seed: int) -> World:
    rng = np.random.default_rng([2, seed])
    length, width, height = 24.0, 2.6, 2.6
    boxes = tuple(
        Box(
            (x, float(rng.choice([-1.0, 1.0])) * (width / 2 - 0.2), half_height),
            (0.3, 0.2, half_height),
            0.0,
            _texture(rng, "checker", 0.2),
        )
        for x, half_height in zip(
            np.linspace(-10.5, 10.5, 8), rng.uniform(0.3, 0.9, size=8), strict=True
        )
    )
    return World(
        name="corridor",
        seed=seed,
        rectangles=(
            *_shell(rng, length, width, height),
            *_posters(rng, length, width, height, per_wall=10),
        ),
        boxes=boxes,
        light=Light((0.0, 0.0, height - 0.2), 14.0),
        sky=(0.5, 0.6, 0.8),
        flight_low=(-length / 2 + 0.8, -width / 2 + 0.85, 0.8),
        flight_high=(length / 2 - 0.8, width / 2 - 0.85, 1.8),
    )


def _arena(seed: int) -> World:
    rng = np.random.default_rng([3, seed])
    extent = 12.0
    flat = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    ground = Rectangle(*flat, (60.0, 60.0), _texture(rng, "noise", 1.5))
    boxes, cylinders, spheres = [], [], []
    for _ in range(10):
        angle, reach = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(5.0, extent)
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        half = rng.uniform([0.4, 0.4, 0.5], [1.6, 1.6, 2.5])
        boxes.append(
            Box(
                (x, y, half[2]),
                (half[0], half[1], half[2]),
                rng.uniform(-np.pi, np.pi),
                _texture(rng, str(rng.choice(["bricks", "checker", "stripes"])), 0.5),
            )
        )
        angle += 0.6
        cylinders.append(
            Cylinder(
                (reach * np.cos(angle), reach * np.sin(angle), 1.5),
                rng.uniform(0.15, 0.5),
                1.5,
                _texture(rng, "noise", 0.3),
            )
        )
    for _ in range(4):
        angle, radius = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.4, 1.0)
        spheres.append(
            Sphere(
                (7.0 * np.cos(angle), 7.0 * np.sin(angle), radius),
                radius,
                _texture(rng, "checker", 0.4),
            )
        )
    return World(
        name="arena",
        seed=seed,
        rectangles=(ground,),
        boxes=tuple(boxes),
        spheres=tuple(spheres),
        cylinders=tuple(cylinders),
        light=Light((8.0, -6.0, 25.0), 60.0),
        sky=(0.5, 0.65, 0.9),
        flight_low=(-extent, -extent, 0.8),
        flight_high=(extent, extent, 3.0),
    )


def _terrain(seed: int) -> World:
    rng = np.random.default_rng([4, seed])
    waves = tuple(
        (
            float(0.9 * wavelength / 18.0 * rng.uniform(0.5, 1.0)),
            float(2.0 * np.pi / wavelength * np.cos(heading)),
            float(2.0 * np.pi / wavelength * np.sin(heading)),
            float(rng.uniform(0.0, 2.0 * np.pi)),
        )
        for wavelength, heading in zip(
            (31.0, 23.0, 13.0, 7.0), rng.uniform(0.0, np.pi, size=4), strict=True
        )
    )
    highest = sum(amplitude for amplitude, _, _, _ in waves)
    ground = HeightField(waves, _texture(rng, "noise", 1.0))
    cylinders = []
    for _ in range(16):
        x, y = rng.uniform(-14.0, 14.0, size=2)
        foot = float(ground.height(x, y))
        cylinders.append(
            Cylinder((x, y, foot + 0.8), rng.uniform(0.15, 0.35), 1.4, _texture(rng, "noise", 0.2))
        )
    return World(
        name="terrain",
        seed=seed,
        cylinders=tuple(cylinders),
        height_field=ground,
        light=Light((15.0, -20.0, 40.0), 90.0),
        sky=(0.55, 0.7, 0.95),
        flight_low=(-12.0, -12.0, -highest),
        flight_high=(12.0, 12.0, highest + 4.0),
    )


WORLDS: dict[str, Callable[[int], World]] = {
    "studio": _studio,
    "room": _room,
    "corridor": _corridor,
    "arena": _arena,
    "terrain": _terrain,
}


def _texture(rng: np.random.Generator, kind: str, period: float) -> Texture:
    first = rng.uniform(0.15, 0.95, size=3)
    second = rng.uniform(0.15, 0.95, size=3)
    # Two colours of equal brightness would leave no pattern to see.
    if abs(first.mean() - second.mean()) < 0.25:
        second = np.clip(second * (0.35 if first.mean() > 0.5 else 1.9), 0.05, 1.0)
    return Texture(
        kind,
        (float(first[0]), float(first[1]), float(first[2])),
        (float(second[0]), float(second[1]), float(second[2])),
        period,
        int(rng.integers(0, 2**15)),
    )


def _shell(
    rng: np.random.Generator, length: float, width: float, height: float
) -> tuple[Rectangle, ...]:
    """Return floor, ceiling and four walls, normals inward."""
    x, y, z = length / 2, width / 2, height / 2
    return (
        Rectangle((0, 0, 0), (1, 0, 0), (0, 1, 0), (x, y), _texture(rng, "checker", 0.8)),
        Rectangle((0, 0, height), (1, 0, 0), (0, -1, 0), (x, y), _texture(rng, "stripes", 1.0)),
        Rectangle((x, 0, z), (0, -1, 0), (0, 0, 1), (y, z), _texture(rng, "bricks", 0.5)),
        Rectangle((0, y, z), (1, 0, 0), (0, 0, 1), (x, z), _texture(rng, "noise", 0.5)),
        Rectangle((-x, 0, z), (0, 1, 0), (0, 0, 1), (y, z), _texture(rng, "stripes", 0.45)),
        Rectangle((0, -y, z), (-1, 0, 0), (0, 0, 1), (x, z), _texture(rng, "noise", 0.8)),
    )


def _posters(
    rng: np.random.Generator, length: float, width: float, height: float, per_wall: int
) -> tuple[Rectangle, ...]:
    """Return posters a centimetre in front of the four walls, none like another."""
    posters = []
    walls = (
        ((length / 2 - 0.01, 0.0), (0.0, -1.0), width),
        ((0.0, width / 2 - 0.01), (1.0, 0.0), length),
        ((-length / 2 + 0.01, 0.0), (0.0, 1.0), width),
        ((0.0, -width / 2 + 0.01), (-1.0, 0.0), length),
    )
    for middle, axis, extent in walls:
        slot = extent / per_wall
        for index in range(per_wall):
            along = -extent / 2 + (index + 0.5) * slot + rng.uniform(-0.1, 0.1) * slot
            half_u, half_v = 0.36 * slot * rng.uniform(0.7, 1.0), rng.uniform(0.3, 0.6)
            posters.append(
                Rectangle(
                    (
                        middle[0] + axis[0] * along,
                        middle[1] + axis[1] * along,
                        height * 0.55 + rng.uniform(-0.3, 0.3),
                    ),
                    (axis[0], axis[1], 0.0),
                    (0.0, 0.0, 1.0),
                    (half_u, half_v),
                    _texture(rng, "poster", rng.uniform(0.16, 0.3)),
                )
            )
    return tuple(posters)
