"""Surface metrics: known shapes and known displacements give the numbers that geometry says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.surface import (
    estimate_normals,
    icp,
    median_alignment,
    surface_errors,
)


def plane(count: int = 40, spacing: float = 0.05) -> np.ndarray:
    """A square grid of points at z = 2."""
    axis = spacing * (np.arange(count) - (count - 1) / 2)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel(), np.full(count**2, 2.0)], axis=1)


def moved(points: np.ndarray, along_z: float) -> np.ndarray:
    """The points, further away by some metres."""
    return points + np.array([0.0, 0.0, along_z])


def sphere(count: int = 4000, radius: float = 1.0) -> np.ndarray:
    """Evenly spread points on a sphere (a Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    z = 1 - 2 * i / count
    angle = np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z**2)
    return radius * np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def room() -> np.ndarray:
    """Three walls that meet in a corner, so that no rigid motion leaves them in place."""
    wall = plane(30)
    return np.concatenate([wall, wall[:, [2, 0, 1]], wall[:, [1, 2, 0]]])


def test_equal_clouds_have_no_error():
    errors = surface_errors(room(), room()[::-1])
    assert errors.accuracy_mean == errors.accuracy_median == 0.0
    assert errors.completeness_mean == errors.completeness_median == 0.0
    assert errors.normal_consistency_mean == pytest.approx(1.0)
    assert errors.normal_consistency_median == pytest.approx(1.0)


@pytest.mark.parametrize("offset", [0.003, 0.05, 0.7])
def test_a_plane_moved_along_its_normal_is_off_by_that_much(offset):
    errors = surface_errors(moved(plane(), offset), plane())
    for distance in (
        errors.accuracy_mean,
        errors.accuracy_median,
        errors.completeness_mean,
        errors.completeness_median,
    ):
        assert distance == pytest.approx(offset)
    assert errors.normal_consistency_mean == pytest.approx(1.0)


def test_a_scaled_sphere_is_off_by_the_difference_of_the_radii():
    errors = surface_errors(sphere(radius=1.1), sphere())
    # The lattices lie on the same rays.
    assert errors.accuracy_mean == pytest.approx(0.1, rel=1e-9)
    assert errors.completeness_mean == pytest.approx(0.1, rel=1e-9)
    assert errors.normal_consistency_mean == pytest.approx(1.0, abs=1e-6)


def test_a_tilted_plane_has_the_cosine_of_its_tilt():
    turn = Rotation.from_euler("x", 30, degrees=True).as_matrix()
    centred = plane() - [0, 0, 2]
    errors = surface_errors(centred @ turn.T, centred)
    assert errors.normal_consistency_mean == pytest.approx(np.cos(np.radians(30)))
    assert errors.normal_consistency_median == pytest.approx(np.cos(np.radians(30)))


def test_half_a_wall_is_accurate_but_not_complete():
    """Points are 5 cm apart; of 40 columns, 20 are missing, at 5, 10, ..., 100 cm."""
    truth = plane()
    errors = surface_errors(truth[truth[:, 0] < 0], truth)
    assert errors.accuracy_mean == 0.0
    assert errors.completeness_mean == pytest.approx(0.05 * np.arange(1, 21).sum() / 40)


def test_a_few_wild_points_move_the_mean_and_not_the_median():
    truth = plane()
    estimate = truth.copy()
    estimate[::10, 2] += 1.0
    errors = surface_errors(estimate, truth)
    assert errors.accuracy_mean == pytest.approx(0.1)
    assert errors.accuracy_median == 0.0


def test_normals_of_a_sphere_point_from_its_middle():
    points = sphere()
    cosine = np.abs(np.sum(estimate_normals(points) * points, axis=1))
    assert cosine.min() > 0.999


@pytest.mark.parametrize("scale", [0.01, 0.37, 1.0, 40.0])
def test_median_alignment_undoes_scale_and_shift_along_the_axis(scale):
    truth = room()
    estimate = truth / scale + [0, 0, 3.3]
    alignment = median_alignment(estimate, truth)
    assert alignment.scale == pytest.approx(scale)
    # The scale acts about the optical axis at the median depth: x and y are those of the camera.
    np.testing.assert_allclose(alignment.apply(estimate)[:, 2], truth[:, 2], atol=1e-9)
    np.testing.assert_allclose(alignment.apply(estimate), truth, atol=1e-9)


def test_icp_undoes_a_small_motion():
    truth = room()
    turn = Rotation.from_rotvec([0.004, -0.006, 0.003]).as_matrix()
    moved = truth @ turn.T + [0.006, -0.004, 0.008]
    found = icp(moved, truth, 0.1)
    np.testing.assert_allclose(found.transform[:3, :3], turn.T, atol=1e-6)
    aligned = moved @ found.transform[:3, :3].T + found.transform[:3, 3]
    np.testing.assert_allclose(aligned, truth, atol=1e-6)
    assert found.fitness == 1.0
    assert found.inlier_rmse < 1e-6


def test_icp_leaves_what_is_too_far_away():
    found = icp(moved(plane(), 0.5), plane(), 0.1)
    np.testing.assert_array_equal(found.transform, np.eye(4))
    assert (found.fitness, found.inlier_rmse, found.iterations) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("estimate", "truth", "message"),
    [
        (np.empty((0, 3)), plane(), "the estimated cloud has 0 points where at least 3"),
        (plane(), plane()[:2], "the true cloud has 2 points where at least 3"),
        (np.full((7, 3), np.nan), plane(), "7 of the 7 estimated points are not finite"),
        (plane(), np.where(np.arange(1600)[:, None] < 4, np.inf, plane()), "4 of the 1600 true"),
        (plane().reshape(40, 40, 3), plane(), r"shape \(40, 40, 3\): they must be \(N, 3\)"),
    ],
)
def test_the_error_of_clouds_without_a_surface_names_the_fault(estimate, truth, message):
    with pytest.raises(EvaluationError, match=message):
        surface_errors(estimate, truth)


def test_a_cloud_that_is_one_point_has_no_scale():
    with pytest.raises(EvaluationError, match="more than half of the 50 estimated points are at"):
        median_alignment(np.ones((50, 3)), plane())
    with pytest.raises(EvaluationError, match="cloud has 0 points where at least 1"):
        median_alignment(plane(), np.empty((0, 3)))


def test_icp_refuses_what_leaves_no_pairs():
    with pytest.raises(EvaluationError, match="largest distance of 0"):
        icp(plane(), plane(), 0.0)
    with pytest.raises(EvaluationError, match="the source cloud has 0 points"):
        icp(np.empty((0, 3)), plane(), 0.1)
