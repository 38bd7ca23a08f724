"""Surface metrics against open3d: neighbours, normals and ICP of an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.evaluate.surface import estimate_normals, icp, surface_errors

o3d = pytest.importorskip(
    "open3d", reason="open3d is not installed: `make test` does it where there is a package for it"
)


@pytest.fixture(scope="module")
def clouds():
    """A bumpy surface and a noisy, displaced, unevenly sampled copy of it."""
    rng = np.random.default_rng(3)
    xy = rng.uniform(-1, 1, (6000, 2))
    z = 2 + 0.2 * np.sin(4 * xy[:, 0]) + 0.1 * np.cos(7 * xy[:, 1])
    truth = np.column_stack([xy, z])
    turn = Rotation.from_rotvec([0.02, -0.03, 0.015]).as_matrix()
    estimate = truth[rng.permutation(6000)[:4500]] @ turn.T + [0.01, -0.02, 0.03]
    return estimate + 0.004 * rng.standard_normal(estimate.shape), truth


def cloud(points):
    return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))


def test_accuracy_and_completeness_are_open3ds_distances(clouds):
    estimate, truth = clouds
    errors = surface_errors(estimate, truth)
    accuracy = np.asarray(cloud(estimate).compute_point_cloud_distance(cloud(truth)))
    completeness = np.asarray(cloud(truth).compute_point_cloud_distance(cloud(estimate)))
    assert errors.accuracy_mean == pytest.approx(accuracy.mean(), rel=1e-12)
    assert errors.accuracy_median == pytest.approx(np.median(accuracy), rel=1e-12)
    assert errors.completeness_mean == pytest.approx(completeness.mean(), rel=1e-12)
    assert errors.completeness_median == pytest.approx(np.median(completeness), rel=1e-12)


def test_normals_are_open3ds_up_to_their_sign(clouds):
    for points in clouds:
        reference = cloud(points)
        reference.estimate_normals()
        cosine = np.abs(np.sum(estimate_normals(points) * np.asarray(reference.normals), axis=1))
        assert cosine.min() > 1 - 1e-6


def test_normal_consistency_is_that_of_open3ds_normals_and_neighbours(clouds):
    estimate, truth = clouds
    sides = []
    for points, others in ((estimate, truth), (truth, estimate)):
        mine, theirs = cloud(points), cloud(others)
        mine.estimate_normals()
        theirs.estimate_normals()
        tree = o3d.geometry.KDTreeFlann(theirs)
        nearest = [tree.search_knn_vector_3d(point, 1)[1][0] for point in points]
        dot = np.sum(np.asarray(mine.normals) * np.asarray(theirs.normals)[nearest], axis=1)
        sides.append(np.abs(dot))
    errors = surface_errors(estimate, truth)
    assert errors.normal_consistency_mean == pytest.approx(
        0.5 * (sides[0].mean() + sides[1].mean()), abs=1e-9
    )
    assert errors.normal_consistency_median == pytest.approx(
        0.5 * (np.median(sides[0]) + np.median(sides[1])), abs=1e-9
    )


@pytest.mark.parametrize("distance", [0.02, 0.1, 1.0])
def test_icp_is_open3ds(clouds, distance):
    estimate, truth = clouds
    reference = o3d.pipelines.registration.registration_icp(
        cloud(estimate),
        cloud(truth),
        distance,
        np.eye(4),
        o3d.pipelines.registration.TransformationEstimationPointToPoint(),
    )
    found = icp(estimate, truth, distance)
    np.testing.assert_allclose(found.transform, reference.transformation, atol=1e-9)
    assert found.fitness == pytest.approx(reference.fitness, abs=1e-12)
    assert found.inlier_rmse == pytest.approx(reference.inlier_rmse, rel=1e-9)
