"""Points are followed where there is texture, found again after a gap, and never in nothing."""

from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from support import known_room as room

from qvggt_core.geometry.camera import Camera
from qvggt_core.stream.image_features import features_of
from qvggt_core.stream.tracks import Tracker

WIDTH, HEIGHT = 320, 240
CAMERA = Camera(WIDTH, HEIGHT, np.array([[200.0, 0, 160], [0, 200.0, 120], [0, 0, 1]]))


def texture(seed=0):
    """A smooth random image, larger than a view so that views can be cut out of it."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (100, 120))
    image = np.kron(coarse, np.ones((6, 6)))
    kernel = np.ones(9) / 9
    for axis in (0, 1):
        image = np.apply_along_axis(np.convolve, axis, image, kernel, "same")
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def view(image, column, row):
    return np.ascontiguousarray(image[row : row + HEIGHT, column : column + WIDTH])


def flat(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def test_points_move_as_the_image_does():
    tracker, image = Tracker(), texture()
    before = tracker.track(view(image, 100, 100), CAMERA)
    after = tracker.track(view(image, 107, 96), CAMERA)
    _, one, other = np.intersect1d(before.ids, after.ids, return_indices=True)
    assert len(one) > 0.6 * len(before.ids)
    moved = after.pixels[other] - before.pixels[one]
    assert np.abs(np.median(moved, axis=0) - [-7, 4]).max() < 0.05
    assert np.percentile(np.linalg.norm(moved - [-7, 4], axis=1), 95) < 0.3


@pytest.mark.parametrize("gain", [0.6, 0.8, 0.9, 1.15, 1.3])
def test_points_are_followed_through_a_change_of_exposure(gain):
    tracker, image = Tracker(), (0.6 * texture(4)).astype(np.uint8)
    before = tracker.track(view(image, 100, 100), CAMERA)
    other = np.clip(gain * view(image, 105, 98), 0, 255).astype(np.uint8)
    after = tracker.track(other, CAMERA)
    _, one, two = np.intersect1d(before.ids, after.ids, return_indices=True)
    assert len(one) > 0.6 * len(before.ids)
    moved = after.pixels[two] - before.pixels[one]
    assert np.abs(np.median(moved, axis=0) - [-5, 2]).max() < 0.1


def test_strong_texture_does_not_take_the_points_of_the_rest():
    image = view(texture(5), 100, 100) // 2 + 40
    strong = np.random.default_rng(5).integers(0, 256, (HEIGHT // 5, WIDTH // 10, 3), np.uint8)
    image[:, : WIDTH // 2] = np.kron(strong, np.ones((5, 5, 1), np.uint8))
    found = Tracker().track(image, CAMERA).pixels
    assert 0.4 < (found[:, 0] < WIDTH // 2).mean() < 0.6


def test_others_come_for_points_that_are_of_no_use():
    tracker, image = Tracker(100), texture(6)
    first = tracker.track(view(image, 100, 100), CAMERA)
    useless = first.ids[: len(first.ids) // 2]
    second = tracker.track(view(image, 101, 100), CAMERA, of_no_use=useless.tolist())
    kept = np.isin(second.ids, useless)
    assert kept.sum() > 0.7 * len(useless)
    assert (~kept).sum() > 0.9 * 100


def test_rays_are_those_of_the_lens():
    bent = Camera(WIDTH, HEIGHT, CAMERA.intrinsics, "plumb_bob", (-0.2, 0.05, 0.0, 0.0, 0.0))
    tracks = Tracker().track(view(texture(), 100, 100), bent)
    points = np.column_stack([tracks.rays, np.ones(len(tracks.rays))])
    np.testing.assert_allclose(bent.project(points), tracks.pixels, atol=0.05)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("value", [5, 120, 250])
def test_a_blank_image_has_no_points(value, sigma):
    rng = np.random.default_rng(value)
    noisy = np.clip(flat(value) + rng.normal(0, sigma, (HEIGHT, WIDTH, 3)), 0, 255)
    assert len(Tracker().track(noisy.astype(np.uint8), CAMERA).ids) == 0


def test_next_to_nothing_is_followed_through_noise():
    tracker, rng = Tracker(), np.random.default_rng(3)
    images = rng.integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    tracks = [tracker.track(image, CAMERA) for image in images]
    for before, after in pairwise(tracks):
        assert np.isin(before.ids, after.ids).mean() < 0.1


def test_points_are_found_again_once_the_lens_is_free():
    tracker, image = Tracker(), texture(1)
    before = tracker.track(view(image, 100, 100), CAMERA)
    for _ in range(5):
        assert len(tracker.track(flat(0), CAMERA).ids) == 0
    after = tracker.track(view(image, 180, 140), CAMERA)
    _, one, other = np.intersect1d(before.ids, after.ids, return_indices=True)
    assert len(one) >= 30
    moved = after.pixels[other] - before.pixels[one]
    assert np.abs(np.median(moved, axis=0) - [-80, -40]).max() < 0.2


def test_an_image_is_described_once_however_often_it_is_compared():
    described = []

    def noting(grey, most):
        described.append(grey)
        return features_of(grey, most)

    image, places = texture(1), [(100, 100), (180, 140), (90, 190), (190, 90)]
    covered = [flat(0), flat(1)]
    images = [view(image, *places[0]), *covered, *(view(image, *place) for place in places[1:])]
    with patch("qvggt_core.stream.tracks.features_of", noting):
        tracker = Tracker()
        followed = [tracker.track(each, CAMERA) for each in images]
    assert len(described) == len(images)
    assert len({grey.tobytes() for grey in described}) == len(images)
    assert len(np.intersect1d(followed[0].ids, followed[-1].ids)) >= 20


def test_what_a_mask_covers_has_no_points():
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :160] = 0
    tracks = Tracker().track(view(texture(), 100, 100), CAMERA, mask)
    assert len(tracks.ids) > 50
    assert tracks.pixels[:, 0].min() >= 159


def test_numbers_are_not_used_twice():
    tracker = Tracker()
    first = tracker.track(room.image_of(room.straight(1)[0]), room.CAMERA)
    tracker.reset()
    second = tracker.track(room.image_of(room.straight(1)[0]), room.CAMERA)
    assert not np.isin(first.ids, second.ids).any()
