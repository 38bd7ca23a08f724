"""Pairs of images of a room whose geometry is known: how they lie to each other, and whether."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from support import drifting_flight as flights

from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.geometry.similarities import rotation_of, scale_of
from qvggt_core.stream.image_features import Features, features_of, matched
from qvggt_core.stream.loop_finder import NewKeyframe, corners_of
from qvggt_core.stream.loop_verification import FEWEST_MATCHES, Sameness, compare

POSES = flights.circle(40, 1.0)
NEAR = flights.circle(41, 1.0, radius=2.3)[:40]


def corners(pose, depth_factor=1.0):
    ((frame, preprocessor, result),) = flights.reconstructions(pose[None], pose[None])
    geometry = result.frames[0].scaled(depth_factor)

    def view_pixels(pixels, rays):
        return preprocessor.view_pixels(frame, geometry.view, pixels, rays)

    return corners_of(
        NewKeyframe(0, geometry, np.eye(7), None, frame.image, flights.CAMERA, view_pixels)
    )


def test_matches_are_those_of_opencv_with_the_ratio_test_both_ways():
    one, other = (
        features_of(flights.depth_and_image(pose)[1][..., 0], 300) for pose in (POSES[0], NEAR[0])
    )
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    first, second = (each.descriptors.astype(np.float32) for each in (one, other))
    first, second = (each / np.linalg.norm(each, axis=1)[:, None] for each in (first, second))
    back = {m.queryIdx: m.trainIdx for m in matcher.match(second, first)}
    expected = {
        (best.queryIdx, best.trainIdx)
        for best, next_best in matcher.knnMatch(first, second, k=2)
        if best.distance < 0.8 * next_best.distance and back[best.trainIdx] == best.queryIdx
    }
    found = set(zip(*map(np.ndarray.tolist, matched(one, other)), strict=True))
    assert len(found) > 50
    assert len(found ^ expected) <= 2


@pytest.mark.parametrize("number", [0, 13, 27])
def test_two_views_of_a_place_give_how_they_lie_to_each_other(number):
    found = compare(corners(POSES[number]), corners(NEAR[number]))
    assert isinstance(found, Sameness)
    assert found.agreeing >= FEWEST_MATCHES
    true = inverse(POSES[number]) @ NEAR[number]
    apart = inverse(true) @ found.first_from_second
    assert rotation_angle(rotation_of(apart)) < np.radians(0.3)
    assert np.linalg.norm(found.first_from_second[:3, 3] - true[:3, 3]) < 0.03
    assert scale_of(found.first_from_second) == pytest.approx(1.0, abs=0.02)


def test_another_unit_of_the_second_view_is_the_scale():
    found = compare(corners(POSES[5]), corners(NEAR[5], depth_factor=0.25))
    true = inverse(POSES[5]) @ NEAR[5]
    assert scale_of(found.first_from_second) == pytest.approx(4.0, rel=0.02)
    assert np.linalg.norm(found.first_from_second[:3, 3] - true[:3, 3]) < 0.03
    # A metre of the first one is a quarter in the unit in which the covariance is.
    same = compare(corners(POSES[5]), corners(NEAR[5]))
    shrunk = np.sqrt(np.diag(found.covariance) / np.diag(same.covariance))
    np.testing.assert_allclose(shrunk, [1, 1, 1, 0.25, 0.25, 0.25, 1], rtol=0.2)


def test_two_places_have_nothing_in_common():
    assert compare(corners(POSES[0]), corners(POSES[20])) == "few corners look alike"


def test_corners_that_look_alike_but_lie_otherwise_are_refused():
    one, other = corners(POSES[0]), corners(NEAR[0])
    mixed = np.random.default_rng(0).permutation(len(other.rays))
    found = compare(one, replace(other, rays=other.rays[mixed], depth=other.depth[mixed]))
    assert found in ("corners agree on no pose", "few corners agree on a pose")


def test_one_thing_that_is_in_both_images_is_not_enough():
    one, other = corners(POSES[0]), corners(NEAR[0])
    pixels = one.features.pixels
    inside = (np.abs(pixels - [150, 150]) < 35).all(axis=1)
    poster = replace(
        one,
        features=Features(pixels[inside], one.features.descriptors[inside]),
        rays=one.rays[inside],
        depth=one.depth[inside],
    )
    assert isinstance(compare(one, other), Sameness)
    assert isinstance(compare(poster, other), str)


def test_depth_without_a_common_ratio_is_refused():
    one, other = corners(POSES[0]), corners(NEAR[0])
    rng = np.random.default_rng(1)
    wrong = other.depth * np.exp(rng.uniform(-2, 2, len(other.depth))).astype(np.float32)
    assert isinstance(compare(one, replace(other, depth=wrong)), str)


def test_an_image_without_corners_is_no_error():
    blank = features_of(np.full((60, 80), 90, np.uint8), 100)
    assert len(blank) == 0
    one = corners(POSES[0])
    empty = replace(one, features=blank, rays=one.rays[:0], depth=one.depth[:0])
    assert compare(empty, one) == "few corners look alike"
