"""Covariances of poses: carried along, given one scale, and while a map knows no distances."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import expm

from qvggt_core.geometry.poses import cross_matrix, inverse, transform
from qvggt_core.stream.adjustment import adjust
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.local_map import LocalMap
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.tracks import Tracks
from qvggt_core.stream.uncertainty import adrift, at_one_scale, bounded, carried

FOCAL = 300.0


def moved(step):
    """The small motion (rotation, translation) as a matrix, by the matrix exponential."""
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = cross_matrix(step[:3]), step[3:6]
    return expm(generator)


def small_motion(pose):
    turn = pose[:3, :3] - pose[:3, :3].T
    return np.r_[0.5 * turn[2, 1], 0.5 * turn[0, 2], 0.5 * turn[1, 0], pose[:3, 3]]


def random_covariance(rng, size, sigma):
    root = sigma * rng.normal(size=(size, size))
    return root @ root.T


def test_a_pose_carries_the_errors_of_the_one_before_it_and_of_the_scale():
    rng = np.random.default_rng(0)
    before = moved(rng.normal(size=6))
    motion = moved(np.r_[0.3, -0.2, 0.5, 1.0, 2.0, -0.5])
    covariance = random_covariance(rng, 7, 1e-3)
    found = []
    for error in rng.multivariate_normal(np.zeros(7), covariance, 4000):
        scaled = motion.copy()
        scaled[:3, 3] *= np.exp(error[6])
        after = scaled @ moved(error) @ before
        found.append(np.r_[small_motion(after @ inverse(motion @ before)), error[6]])
    np.testing.assert_allclose(
        carried(covariance, motion), np.cov(np.transpose(found)), atol=3e-6, rtol=0.1
    )


def test_a_scale_that_is_exact_is_a_condition_on_all_poses():
    rng = np.random.default_rng(1)
    covariance, direction = random_covariance(rng, 12, 1.0), rng.normal(size=12)
    samples = rng.multivariate_normal(np.zeros(12), covariance, 400_000)
    near = samples[np.abs(samples @ direction) < 0.02 * np.std(samples @ direction)]
    found = at_one_scale(covariance, direction)
    np.testing.assert_allclose(found @ direction, 0.0, atol=1e-9)
    np.testing.assert_allclose(found, np.cov(near.T), atol=0.1 * np.abs(found).max())


def two_views(count):
    """Points before two cameras; only the points' priors know how long the baseline is."""
    rng = np.random.default_rng(2)
    places = np.column_stack([rng.uniform(-2, 2, (count, 2)), rng.uniform(3, 6, count)])
    cameras = np.stack([np.eye(4), transform(np.eye(3), np.array([-0.5, 0.0, 0.0]))])
    distance = np.linalg.norm(places, axis=1)
    points = Points(
        np.arange(count),
        np.zeros((count, 3)),
        places / distance[:, None],
        1.0 / distance,
        0.1 / distance,
        1.0 / distance,
        0.5 / distance,
    )
    seen = [(places + pose[:3, 3])[:, :2] / (places + pose[:3, 3])[:, 2:] for pose in cameras]
    return Bundle(
        cameras,
        np.array([False, True]),
        points,
        np.repeat([0, 1], count),
        np.tile(np.arange(count), 2),
        np.concatenate(seen),
        1e-4,
    )


@pytest.mark.parametrize("count", [40, 160])
def test_what_all_points_expect_alike_is_known_no_better_for_their_number(count):
    found = adjust(two_views(count), with_covariance=True)
    baseline_sigma = np.sqrt(found.covariance[3, 3]) / 0.5
    assert baseline_sigma == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("noise", range(6))
def test_what_nothing_observes_is_uncertain_and_not_infinite(noise):
    bundle = two_views(40)
    rng = np.random.default_rng(noise)
    # Nothing holds the gauge, and the prior is too weak for the unit.
    adrift_bundle = replace(
        bundle,
        is_free=np.array([True, True]),
        points=replace(bundle.points, prior_sigma=np.full(40, 1e9)),
        rays=bundle.rays + 1e-5 * rng.normal(size=bundle.rays.shape),
    )
    covariance = adjust(adrift_bundle, with_covariance=True).covariance
    assert np.isfinite(covariance).all()
    assert (np.diag(covariance) > 1.0).all()
    kept = bounded(covariance, 4.0)
    assert np.linalg.eigvalsh(kept)[0] > -1e-6
    sigma = np.sqrt(np.diag(kept)).reshape(-1, 2, 3)
    assert (sigma[:, 0] <= 1.001 * np.pi).all()
    assert (sigma[:, 1] <= 40.001).all()


def test_a_covariance_that_a_camera_can_have_stays_as_it_is():
    covariance = random_covariance(np.random.default_rng(6), 12, 0.5)
    np.testing.assert_array_equal(bounded(covariance, 4.0), covariance)


def scene(rng, count=300):
    return np.column_stack(
        [rng.uniform(-4, 4, count), rng.uniform(-3, 3, count), rng.uniform(2, 8, count)]
    )


def tracks_of(places, pose, rng, noise=0.2):
    local = places @ pose[:3, :3].T + pose[:3, 3]
    rays = local[:, :2] / local[:, 2:] + noise / FOCAL * rng.normal(size=(len(places), 2))
    seen = (local[:, 2] > 0.5) & (np.abs(rays) < 0.7).all(axis=1)
    pixels = FOCAL * rays[seen] + 320.0
    return Tracks(np.flatnonzero(seen), pixels, rays[seen], FOCAL)


def looking_at(angle, centre, radius):
    """A camera on a circle that keeps a point in the middle of its image."""
    turn = moved(np.r_[0.0, angle, 0.0, 0.0, 0.0, 0.0])[:3, :3]
    place = centre - radius * turn.T[:, 2]
    return transform(turn, -turn @ place)


def floor_and_wall(rng, count=150):
    """What an indoor camera sees: depth grows smoothly up the image, as a turn's effect might."""
    wide = rng.uniform(-4, 4, (2, count))
    floor = np.column_stack([wide[0], np.full(count, 1.2), rng.uniform(1.8, 6, count)])
    wall = np.column_stack([wide[1], rng.uniform(-3, 1.2, count), np.full(count, 6.0)])
    return np.concatenate([floor, wall])


def test_before_a_map_knows_distances_its_poses_say_how_wrong_they_may_be():
    rng = np.random.default_rng(3)
    places = floor_and_wall(rng)
    angles = np.radians(np.arange(10))
    poses = [looking_at(angle, np.array([0.0, 0.0, 4.0]), 4.0) for angle in angles]
    local_map = LocalMap(tracks_of(places, poses[0], rng), poses[0], distance=4.0)
    by_points_alone = []
    for pose in poses[1:]:
        located = local_map.locate(tracks_of(places, pose, rng))
        error = np.linalg.norm(small_motion(located.camera_from_map @ inverse(pose))[:3])
        assert not local_map.is_founded
        by_points_alone.append(error / np.sqrt(np.trace(located.covariance[:3, :3])))
        variance = adrift(located.adrift, 4.0)[:3, :3]
        assert error < 3.0 * np.sqrt(np.trace(located.covariance[:3, :3] + variance))
    # Seen from the points alone, all of this is certain.
    assert np.median(by_points_alone) > 3.0


def test_a_map_that_has_stood_for_a_while_is_as_certain_as_its_adjustment():
    rng = np.random.default_rng(4)
    places = scene(rng)
    poses = [transform(np.eye(3), np.array([-0.15 * i, 0.0, 0.0])) for i in range(16)]
    local_map = LocalMap(tracks_of(places, poses[0], rng), poses[0], distance=4.0)
    sigma = []
    for pose in poses[1:]:
        tracks = tracks_of(places, pose, rng)
        local_map.add_keyframe(tracks, local_map.locate(tracks))
        sigma.append(local_map.keyframes[-1].adrift)
    assert local_map.is_settled
    assert max(sigma) > 0.0
    assert sigma[-1] == 0.0


def test_lengths_of_the_covariance_scale_with_the_map():
    rng = np.random.default_rng(5)
    places = scene(rng)
    poses = [transform(np.eye(3), np.array([-0.15 * i, 0.0, 0.0])) for i in range(8)]
    local_map = LocalMap(tracks_of(places, poses[0], rng), poses[0], distance=4.0)
    for pose in poses[1:]:
        tracks = tracks_of(places, pose, rng)
        local_map.add_keyframe(tracks, local_map.locate(tracks))
    before = replace(local_map.keyframes[-1])
    local_map.rescale(3.0)
    after = local_map.keyframes[-1].covariance
    unit = np.array([1, 1, 1, 3, 3, 3, 1.0])
    np.testing.assert_allclose(after, before.covariance * np.outer(unit, unit))
