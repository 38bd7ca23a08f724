"""Keyframes that look alike are found as by comparing all, and the store stays bounded."""

import numpy as np
import pytest
from support import drifting_flight as flights

from qvggt_core.geometry.poses import transform
from qvggt_core.stream.image_features import Features
from qvggt_core.stream.keyframe_store import (
    KeyframeStore,
    StoredKeyframe,
    packed_depth,
    packed_tokens,
    thinned,
)
from qvggt_core.stream.loop_verification import Corners
from qvggt_core.stream.place_index import PlaceIndex, place_descriptor


def index_of(descriptors):
    index = PlaceIndex()
    for each in descriptors:
        index.append(each)
    return index


def test_the_search_is_that_by_brute_force():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 40)) + 3.0).astype(np.float32)
    index = index_of(rows)
    allowed = rng.random(300) < 0.5
    for wanted in (rng.normal(size=(20, 40)) + 3.0).astype(np.float32):
        mean = rows.mean(axis=0)
        cosines = [
            np.dot(row - mean, wanted - mean)
            / np.linalg.norm(row - mean)
            / np.linalg.norm(wanted - mean)
            for row in rows
        ]
        expected = sorted(np.flatnonzero(allowed), key=lambda number: -cosines[number])[:5]
        assert index.nearest(wanted, allowed, 5).tolist() == expected


def test_what_is_left_out_is_not_found():
    rows = np.eye(6, dtype=np.float32)
    index = index_of(rows)
    index.keep(np.array([1, 4]))
    assert len(index) == 2
    assert index.nearest(rows[4], np.ones(2, bool), 1).tolist() == [1]


def test_a_place_is_the_mean_and_the_spread_of_tokens():
    rng = np.random.default_rng(1)
    tokens = rng.normal(2.0, 1.5, (50, 8)).astype(np.float32)
    found = place_descriptor(tokens, np.zeros((4, 4, 3), np.uint8))
    np.testing.assert_allclose(found, np.r_[tokens.mean(axis=0), tokens.std(axis=0)], rtol=1e-5)


def test_tokens_that_are_no_array_leave_the_picture():
    one, other = (flights.depth_and_image(pose)[1] for pose in flights.circle(2, 0.3))
    dimmed = (0.8 * one).astype(np.uint8)
    index = index_of([place_descriptor(7, image) for image in (other, one)])
    assert index.nearest(place_descriptor(7, dimmed), np.ones(2, bool), 1).tolist() == [1]


def test_depth_survives_sixteen_bits_in_any_unit():
    depth = np.random.default_rng(2).uniform(1, 20, (30, 40)).astype(np.float32)
    depth[3, 4] = np.nan
    for factor in (1e-4, 1.0, 1e6):
        packed, unit = packed_depth(np.float32(factor) * depth)
        assert packed.dtype == np.float16
        np.testing.assert_allclose(unit * packed.astype(np.float64), factor * depth, rtol=1e-3)


def keyframe(size=1000):
    nothing = Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    corners = Corners(nothing, np.empty((0, 2)), np.empty(0, np.float32), 1.0, 1.0)
    image = np.zeros((1, 1, 3), np.uint8)
    depth = np.ones((1, size), np.float16)
    return StoredKeyframe(0, image, np.eye(3), packed_tokens(3), depth, 2.0, corners)


@pytest.mark.parametrize(("most", "size"), [(20, 10**9), (10**9, 40_000)])
def test_the_store_is_full_by_number_or_by_size(most, size):
    store = KeyframeStore(most, size)
    while not store.is_full:
        store.append(keyframe())
    assert len(store) in (20, 21)
    store.keep(np.arange(10))
    assert len(store) == len(store.index) == 10
    assert not store.is_full


def test_another_unit_scales_depth():
    assert keyframe().scaled(3.0).unit == 6.0


def test_keyframes_go_where_they_are_densest_and_not_at_loops():
    places = np.r_[np.arange(0, 30, 1.0), np.arange(30, 32, 0.02), np.arange(32, 90, 1.0)]
    poses = np.stack([transform(np.eye(3), [place, 0, 0]) for place in places])
    needed = np.zeros(len(poses), bool)
    needed[40:50] = True
    kept = thinned(poses, needed, depth=2.0)
    gone = np.setdiff1d(np.arange(len(poses)), kept)
    assert len(gone) == len(poses) // 10
    assert ((gone >= 30) & (gone < 131)).all()
    assert not needed[gone].any()
    assert (np.diff(gone) > 1).all()
