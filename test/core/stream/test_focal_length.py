"""The focal length of a camera without a calibration is that by which its points moved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.stream.focal_length import (
    FocalLength,
    TrackedKeyframe,
    _Steps,
    estimate_focal_length,
    focal_length_of,
)
from qvggt_core.stream.tracks import Tracks

WIDTH, HEIGHT = 640, 480


def seen(focal: float, turns: np.ndarray, places: np.ndarray) -> list[TrackedKeyframe]:
    """Return what a pinhole camera sees of 150 points around (0, 0, 4), to 0.3 pixels."""
    rng = np.random.default_rng(4)
    points = rng.uniform((-3.0, -2.0, 2.5), (3.0, 2.0, 7.0), (150, 3))
    middle = np.array([WIDTH - 1, HEIGHT - 1]) / 2
    keyframes = []
    for turn, place in zip(turns, places, strict=True):
        local = Rotation.from_euler("yxz", turn).apply(points - place, inverse=True)
        pixels = focal * local[:, :2] / local[:, 2:] + middle
        pixels += rng.normal(scale=0.3, size=pixels.shape)
        is_seen = (local[:, 2] > 0.1) & (abs(pixels - middle) < middle).all(axis=1)
        ids = np.flatnonzero(is_seen).astype(np.int64)
        rays = (pixels[is_seen] - middle) / WIDTH
        keyframes.append(TrackedKeyframe(Tracks(ids, pixels[is_seen], rays, WIDTH), WIDTH))
    return keyframes


def a_walk(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    way = np.linspace(0.0, 1.0, count)[:, None]
    turns = np.hstack([0.5 * np.sin(3 * way), 0.15 * np.sin(5 * way), 0.3 * way])
    return turns, np.hstack([1.2 * way, 0.4 * np.sin(4 * way), 0.5 * way])


@pytest.mark.parametrize("focal", [320.0, 900.0])
def test_it_is_that_of_the_camera(focal):
    given = []
    steps = _Steps(lambda done, total: given.append((done, total)))
    found = focal_length_of(seen(focal, *a_walk()), steps)
    assert isinstance(found, FocalLength)
    assert found.pixels == pytest.approx(focal, rel=0.02)
    assert found.sigma < 0.05
    # Each focal length that was tried is a step.
    done = [done for done, _ in given]
    assert done == sorted(done)
    assert len(set(done)) > 1 + 1 + 6
    assert done[-1] <= given[-1][1]


def test_its_camera_looks_through_the_middle():
    camera = FocalLength(550.0, 0.02).camera(WIDTH, HEIGHT)
    assert np.allclose(camera.intrinsics, [[550, 0, 319.5], [0, 550, 239.5], [0, 0, 1]])


def test_a_way_straight_ahead_does_not_show_it():
    turns, places = a_walk()
    ahead = np.zeros_like(places)
    ahead[:, 2] = np.linspace(0.0, 1.5, len(places))
    found = focal_length_of(seen(550.0, np.zeros_like(turns), ahead))
    assert isinstance(found, str) or abs(np.log(found.pixels / 550.0)) < 2 * found.sigma


def test_a_camera_that_hardly_moves_does_not_show_it():
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    found = estimate_focal_length([image] * 40)
    assert isinstance(found, str)
    assert "hardly moved" in found


def test_progress_goes_from_none_to_all_of_the_search():
    given = []
    images = np.zeros((5, 96, 128, 3), np.uint8)
    estimate_focal_length(images, lambda done, total: given.append((done, total)))
    (total,) = {total for _, total in given}
    done = [done for done, _ in given]
    assert done[0] == 0
    assert done[-1] == total
    assert done == sorted(done)
    assert len(set(done)) >= 3


def test_noise_has_none():
    rng = np.random.default_rng(1)
    found = estimate_focal_length(rng.integers(0, 255, (30, 96, 128, 3), np.uint8))
    assert isinstance(found, str)
