"""Depth from where other views show each pixel, against rendered rooms whose depth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from qvggt_core.evaluate.depth import window_depth_errors
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.stream.dense_triangulation import triangulate_depth
from qvggt_core.training.clips import PoolConfig, render_clip


@dataclass
class Seen:
    """Views of a rendered room."""

    images: np.ndarray
    camera_from_world: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray

    def triangulated(self, first, count=None):
        """Return the result for the last views, all if no number is given."""
        return triangulate_depth(
            self.images, self.camera_from_world, self.intrinsics, first[-(count or len(first)) :]
        )


@pytest.fixture(scope="module")
def room():
    config = PoolConfig(
        worlds=("room",), clips=1, frames=4, height=96, width=128, flights=("arc",), samples=2
    )
    clip = render_clip(config, 3)
    return Seen(
        clip.images,
        inverse(clip.world_from_camera),
        np.tile(clip.intrinsics, (4, 1, 1)),
        clip.depth.astype(np.float32),
    )


def wrong(depth, size=0.2, seed=1):
    """Depth that is off as a network's is: by a smooth factor, another in each view."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: depth.shape[1], : depth.shape[2]] / depth.shape[2]
    waves = [
        sum(np.sin(a * rows + b * columns + c) for a, b, c in rng.uniform(0, 2 * np.pi, (4, 3)))
        for _ in depth
    ]
    factor = np.stack([np.exp(size * (wave - wave.mean()) / wave.std()) for wave in waves])
    return (depth * factor).astype(np.float32)


def error(depth, truth):
    return window_depth_errors(depth, truth).abs_rel


def test_wrong_depth_becomes_right_where_other_views_show_the_pixels(room):
    first = wrong(room.depth)
    found = room.triangulated(first)
    assert found.depth.dtype == np.float32
    assert error(first, room.depth) > 0.15
    assert error(found.depth, room.depth) < 0.5 * error(first, room.depth)
    assert found.agrees.mean() > 0.7
    off = np.abs(found.depth / room.depth - 1.0)
    assert np.median(off[found.agrees]) < 0.05


def test_sigma_is_larger_where_depth_is_off_more(room):
    found = room.triangulated(wrong(room.depth))
    off = np.abs(np.log(found.depth / room.depth))
    sure, unsure = (np.percentile(found.sigma, share) for share in (30, 80))
    assert np.median(off[found.sigma < sure]) < 0.5 * np.median(off[found.sigma > unsure])
    assert 0.3 < np.median(off[found.agrees] / found.sigma[found.agrees]) < 2.0
    assert found.sigma[~found.agrees].max() < 0.3, "no more than the first depth's"


def test_right_depth_stays_right(room):
    found = room.triangulated(room.depth)
    assert error(found.depth, room.depth) < 0.05


def test_only_the_newest_views_may_have_depth(room):
    first = wrong(room.depth)
    found = room.triangulated(first, 2)
    assert found.depth.shape == (2, 96, 128)
    assert error(found.depth, room.depth[2:]) < 0.6 * error(first[2:], room.depth[2:])


def test_views_that_look_elsewhere_change_nothing(room):
    back = transform(np.diag([-1.0, 1.0, -1.0]), np.zeros(3))
    poses = room.camera_from_world.copy()
    poses[0] = back @ poses[0]
    apart = Seen(room.images[:2], poses[:2], room.intrinsics[:2], room.depth[:2])
    first = wrong(apart.depth)
    found = apart.triangulated(first)
    np.testing.assert_array_equal(found.depth, first)
    assert not found.agrees.any()


def test_a_camera_that_only_turns_shows_no_distances(room):
    turned = np.tile(room.camera_from_world[:1], (2, 1, 1))
    still = Seen(room.images[[0, 0]], turned, room.intrinsics[:2], room.depth[[0, 0]])
    first = wrong(still.depth)
    found = still.triangulated(first)
    np.testing.assert_allclose(found.depth, first, rtol=1e-3)


def test_depth_of_a_false_pose_is_not_confirmed(room):
    poses = room.camera_from_world.copy()
    poses[1::2, :3, 3] *= -1.0
    false = Seen(room.images, poses, room.intrinsics, room.depth)
    right, found = room.triangulated(room.depth), false.triangulated(room.depth)
    assert found.agrees.mean() < 0.6 * right.agrees.mean()


def test_unknown_depth_stays_unknown(room):
    first = wrong(room.depth)
    first[:, :40] = np.nan
    found = room.triangulated(first)
    assert np.isnan(found.depth[:, :40]).all()
    assert not found.agrees[:, :40].any()
    assert np.isfinite(found.depth[:, 40:]).all()
    known = slice(None), slice(40, None)
    assert error(found.depth[known], room.depth[known]) < 0.6 * error(
        first[known], room.depth[known]
    )


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 16), (8, 128), (48, 64)])
def test_images_of_any_size_have_depth(size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, *size, 3), np.uint8)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0.0, -0.1, -0.2]
    intrinsics = np.array([[size[1], 0, 0.5 * size[1]], [0, size[1], 0.5 * size[0]], [0, 0, 1]])
    found = triangulate_depth(
        images, poses, np.tile(intrinsics, (3, 1, 1)), np.full((2, *size), 2.0, np.float32)
    )
    assert found.depth.shape == found.sigma.shape == found.agrees.shape == (2, *size)
    assert np.isfinite(found.depth).all()
    assert (found.sigma > 0).all()


def test_a_single_view_keeps_its_depth(room):
    one = Seen(*(getattr(room, name)[:1] for name in vars(room)))
    found = one.triangulated(wrong(one.depth))
    np.testing.assert_array_equal(found.depth, wrong(one.depth))
