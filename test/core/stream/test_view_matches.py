"""Matches between views: attention gives the patch, the images give the place."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from qvggt_core.stream.view_matches import match_views

HEIGHT, WIDTH, PATCH = 96, 128, 8
ROWS, COLUMNS = HEIGHT // PATCH, WIDTH // PATCH
SHIFT = np.array([11.3, -6.6])
"""Columns and rows by which the second view shows everything elsewhere."""


def texture():
    """Smooth noise, larger than the image, so that a shifted view shows more of it."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(0, 255, (40, 50, 3)).astype(np.float32)
    return cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def view(shift):
    """What a view shows whose content lies `shift` further than in the first."""
    move = np.array([[1, 0, -30 + shift[0]], [0, 1, -30 + shift[1]]], np.float32)
    image = cv2.warpAffine(texture(), move, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
    return image.round().clip(0, 255).astype(np.uint8)


def middles():
    rows, columns = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    return np.column_stack([columns * PATCH + 3.5, rows * PATCH + 3.5])


def similarity(shift, blur=1.0):
    """Attention that peaks at the true patch and falls off, as a network's does."""
    own = middles()
    result = np.zeros((2, 2, len(own), len(own)), np.float32)
    for i, j, move in ((0, 1, shift), (1, 0, -np.asarray(shift))):
        apart = (own[:, None] + move - own[None]) / PATCH
        result[i, j] = -0.5 * (apart**2).sum(axis=-1) / blur**2
    return result


def stays_inside(shift):
    there = middles() + shift
    return ((there > 6) & (there < [WIDTH - 7, HEIGHT - 7])).all(axis=1)


def test_places_are_right_to_a_part_of_a_pixel():
    found = match_views([view([0, 0]), view(SHIFT)], similarity(SHIFT), PATCH)
    assert np.array_equal(found.pixels, middles())
    inside = stays_inside(SHIFT)
    assert found.is_found[0, 1][inside].mean() > 0.95
    good = found.is_found[0, 1]
    off = np.linalg.norm(found.places[0, 1] - middles() - SHIFT, axis=1)[good]
    assert np.median(off) < 0.05
    assert np.quantile(off, 0.95) < 0.5


def test_what_leaves_the_image_is_not_found():
    found = match_views([view([0, 0]), view(SHIFT)], similarity(SHIFT), PATCH)
    there = middles() + SHIFT
    gone = (there < -1).any(axis=1) | (there > [WIDTH, HEIGHT]).any(axis=1)
    assert gone.any()
    assert found.is_found[0, 1][gone].mean() < 0.15
    assert not found.is_found[0, 0].any(), "a view is not matched with itself"


def test_a_patch_whose_match_does_not_lead_back_is_not_found():
    alike = similarity(SHIFT)
    alike[1, 0] = similarity(SHIFT + 5 * PATCH)[1, 0]
    found = match_views([view([0, 0]), view(SHIFT)], alike, PATCH)
    assert found.is_found[0, 1].mean() < 0.1


def test_attention_that_is_wrong_is_contradicted_by_the_images():
    wrong = SHIFT + np.array([3.0 * PATCH, 0.0])
    found = match_views([view([0, 0]), view(SHIFT)], similarity(wrong), PATCH)
    assert found.is_found[0, 1].mean() < 0.3


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_images_match_nowhere(value):
    blank = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
    found = match_views([blank, blank], similarity([0, 0]), PATCH)
    assert not found.is_found.any()


def test_patches_of_views_that_are_not_asked_for_are_not_looked_for():
    images, alike = [view([0, 0]), view(SHIFT)], similarity(SHIFT)
    every, some = (match_views(images, alike, PATCH, first_host=first) for first in (0, 1))
    assert every.is_found[0].any()
    assert not some.is_found[0].any()
    assert np.array_equal(some.is_found[1], every.is_found[1])
    assert np.array_equal(some.places[1], every.places[1])
    assert np.array_equal(some.pixels, every.pixels)


def test_images_that_are_searched_are_not_changed_by_what_is_searched_for():
    """Patches are found where they are, whichever others are looked for beside them."""
    alike = similarity(SHIFT)
    every = match_views([view([0, 0]), view(SHIFT)], alike, PATCH)
    kept = np.flatnonzero(every.is_found[0, 1])[::3]
    # All other patches are sent where they do not lead back from.
    fewer = alike.copy()
    others = np.setdiff1d(np.arange(ROWS * COLUMNS), kept)
    fewer[0, 1, others] = fewer[0, 1, others, ::-1]
    few = match_views([view([0, 0]), view(SHIFT)], fewer, PATCH)
    assert few.is_found[0, 1][kept].all()
    assert np.array_equal(few.places[0, 1][kept], every.places[0, 1][kept])
    assert few.is_found[0, 1][others].mean() < 0.1
