"""Procedural worlds: the same for the same seed, with distances one can trust; split seeds."""

from __future__ import annotations

import numpy as np
import pytest
from support.worlds import made_world

from qvggt_core.errors import ParameterError, TrainingError
from qvggt_core.synthetic import world as shapes
from qvggt_core.synthetic.named_worlds import WORLDS, make_world
from qvggt_core.training.clips import PoolConfig, render_clip
from qvggt_core.training.seeds import evaluation_seed, training_seed

PLAIN = shapes.Texture("noise", (0.5, 0.5, 0.5), (0.9, 0.9, 0.9), 1.0)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_worlds_are_functions_of_their_seed(name: str) -> None:
    assert make_world(name, 3) == make_world(name, 3)
    assert make_world(name, 3) != make_world(name, 4)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_there_is_room_to_fly(name: str) -> None:
    world = make_world(name, 0)
    low, high = np.array(world.flight_low), np.array(world.flight_high)
    points = low + (high - low) * np.random.default_rng(0).random((500, 3))
    assert (world.clearance(points) > 0.4).mean() > 0.2


def test_unknown_worlds_are_refused_by_name() -> None:
    with pytest.raises(ParameterError, match="swamp"):
        make_world("swamp")


@pytest.mark.parametrize(
    ("parts", "point", "distance"),
    [
        ({"spheres": (shapes.Sphere((1, 0, 0), 0.5, PLAIN),)}, (3, 0, 0), 1.5),
        ({"spheres": (shapes.Sphere((1, 0, 0), 0.5, PLAIN),)}, (1, 0, 0.2), -0.3),
        ({"boxes": (shapes.Box((0, 0, 0), (1, 2, 3), 0.0, PLAIN),)}, (4, 6, 0), 5.0),
        ({"boxes": (shapes.Box((0, 0, 0), (1, 2, 3), np.pi / 2, PLAIN),)}, (5, 5, 0), 5.0),
        ({"boxes": (shapes.Box((0, 0, 0), (1, 2, 3), 0.0, PLAIN),)}, (0.5, 0, 0), -0.5),
        ({"cylinders": (shapes.Cylinder((0, 0, 0), 1.0, 2.0, PLAIN),)}, (4, 0, 6), 5.0),
        ({"cylinders": (shapes.Cylinder((0, 0, 0), 1.0, 2.0, PLAIN),)}, (0, 3, 1), 2.0),
        (
            {"rectangles": (shapes.Rectangle((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1), PLAIN),)},
            (4, 5, 0),
            5.0,
        ),
        (
            {"rectangles": (shapes.Rectangle((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1), PLAIN),)},
            (0.5, 0.5, -2),
            2.0,
        ),
    ],
)
def test_clearance_is_the_distance(parts: dict, point: tuple, distance: float) -> None:
    assert made_world(**parts).clearance(np.array([point])) == pytest.approx([distance])


def test_clearance_over_ground_is_never_too_large() -> None:
    ground = shapes.HeightField(((0.5, 1.0, 0.3, 0.2), (0.2, -0.5, 2.0, 1.0)), PLAIN)
    world = made_world(height_field=ground)
    rng = np.random.default_rng(1)
    points = rng.uniform([-2, -2, 1], [2, 2, 5], size=(40, 3))
    x, y = np.meshgrid(np.linspace(-6, 6, 300), np.linspace(-6, 6, 300))
    surface = np.stack([x, y, ground.height(x, y)], axis=-1).reshape(-1, 3)
    true = np.array([np.linalg.norm(surface - p, axis=1).min() for p in points])
    claimed = world.clearance(points)
    assert (claimed <= true + 1e-9).all()
    assert (claimed > 0.4 * true).all()


def test_no_seed_is_of_both_splits() -> None:
    training = {training_seed(i) for i in range(1000)}
    evaluation = {evaluation_seed(i) for i in range(1000)}
    assert not training & evaluation
    with pytest.raises(TrainingError, match="-1"):
        training_seed(-1)


def test_training_and_evaluation_clips_share_the_room_and_no_flight() -> None:
    small = {"worlds": ("studio",), "height": 16, "width": 16, "frames": 2, "samples": 0}
    training = [render_clip(PoolConfig(**small), i) for i in range(4)]
    evaluation = [render_clip(PoolConfig(**small, evaluation=True), i) for i in range(4)]
    starts = [tuple(clip.world_from_camera[0].ravel()) for clip in training + evaluation]
    assert len(set(starts)) == 8
