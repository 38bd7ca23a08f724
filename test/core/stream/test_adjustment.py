"""Bundle adjustment finds what SciPy finds, ignores outliers, and knows how uncertain it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.stream import bundle as bundles
from qvggt_core.stream import normal_equations
from qvggt_core.stream.adjustment import adjust
from qvggt_core.stream.bundle import Bundle
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.pose_graph import Edges

SIGMA = 1 / 500


def scene(seed, cameras=6, points=80, noise=SIGMA):
    """Cameras on an arc that see all points, with the truth."""
    rng = np.random.default_rng(seed)
    places = rng.uniform([-3, -2, 3], [3, 2, 8], (points, 3))
    poses = np.stack(
        [
            transform(Rotation.from_rotvec([0.01 * i, 0.03 * i, 0]).as_matrix(), [-0.2 * i, 0, 0])
            for i in range(cameras)
        ]
    )
    camera, point = np.divmod(np.arange(cameras * points), points)
    local = np.einsum("nij,nj->ni", poses[camera, :3, :3], places[point]) + poses[camera, :3, 3]
    rays = local[:, :2] / local[:, 2:] + noise * rng.normal(size=(len(camera), 2))
    distance = np.linalg.norm(places, axis=1)
    bundle = Bundle(
        camera_from_map=poses,
        is_free=np.arange(cameras) >= 2,
        points=Points(
            ids=np.arange(points),
            origins=np.zeros((points, 3)),
            directions=places / distance[:, None],
            inverse_distance=1 / distance,
            sigma=np.full(points, np.nan),
            prior=1 / distance,
            prior_sigma=np.full(points, np.inf),
        ),
        camera=camera,
        point=point,
        rays=rays,
        sigma=SIGMA,
    )
    return bundle, places


def disturbed(bundle, seed):
    rng = np.random.default_rng(seed)
    poses = bundle.camera_from_map.copy()
    for i in np.flatnonzero(bundle.is_free):
        turn = Rotation.from_rotvec(0.02 * rng.normal(size=3)).as_matrix()
        poses[i] = transform(turn, 0.05 * rng.normal(size=3)) @ poses[i]
    factor = np.exp(0.2 * rng.normal(size=len(bundle.points)))
    points = replace(bundle.points, inverse_distance=factor * bundle.points.inverse_distance)
    return replace(bundle, camera_from_map=poses, points=points)


def centres(bundle):
    return inverse(bundle.camera_from_map)[:, :3, 3]


def test_exact_observations_give_the_exact_scene():
    bundle, places = scene(0, noise=0.0)
    found = adjust(disturbed(bundle, 1), iterations=40).bundle
    np.testing.assert_allclose(centres(found), centres(bundle), atol=1e-4)
    np.testing.assert_allclose(found.points.positions, places, rtol=1e-3)


def test_the_optimum_is_scipys():
    bundle, _ = scene(2, cameras=4, points=20)
    found = adjust(disturbed(bundle, 3), iterations=60).bundle
    free = np.flatnonzero(bundle.is_free)
    fixed = torch.from_numpy(bundle.camera_from_map)
    seen = torch.from_numpy(bundle.rays)

    def cost(values):
        """Cauchy's cost of steps (F, 6) of the free poses and places (L, 3), and its gradient."""
        variable = torch.from_numpy(values).requires_grad_()
        steps, places = variable[: 6 * len(free)].reshape(-1, 6), variable[6 * len(free) :]
        twists = torch.zeros(len(free), 4, 4, dtype=torch.float64)
        for row, column, axis in ((2, 1, 0), (0, 2, 1), (1, 0, 2)):
            twists[:, row, column], twists[:, column, row] = steps[:, axis], -steps[:, axis]
        twists[:, :3, 3] = steps[:, 3:]
        poses = fixed.clone()
        poses[free] = torch.linalg.matrix_exp(twists) @ fixed[free]
        cameras = poses[bundle.camera]
        local = (cameras[:, :3, :3] @ places.reshape(-1, 3)[bundle.point, :, None])[:, :, 0]
        local = local + cameras[:, :3, 3]
        off = (local[:, :2] / local[:, 2:] - seen) / SIGMA
        total = 4.0 * torch.log1p((off / 2.0).square().sum(1)).sum()
        total.backward()
        return total.item(), variable.grad.numpy()

    start = np.r_[np.zeros(6 * len(free)), bundle.points.positions.ravel()]
    best = minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-2})
    here = 4.0 * np.log1p((found.residuals() / 2.0) ** 2 @ np.ones(2)).sum()
    assert best.fun < 0.9 * cost(start)[0]
    np.testing.assert_allclose(here, best.fun, rtol=1e-3)


def of_another_lens(bundle, log_focal, sigma):
    """What is seen if rays are read with a focal length that is wrong by exp(log_focal)."""
    rays = np.exp(log_focal) * bundle.rays
    return replace(bundle, rays=rays, log_focal_sigma=sigma)


@pytest.mark.parametrize("off", [-0.2, 0.15])
def test_exact_observations_give_the_exact_focal_length(off):
    bundle, places = scene(11, noise=0.0)
    start = of_another_lens(disturbed(bundle, 12), off, sigma=10.0)
    found = adjust(start, iterations=60).bundle
    assert abs(found.log_focal - off) < 1e-3
    np.testing.assert_allclose(found.points.positions, places, rtol=1e-2)


def test_the_focal_length_is_the_one_that_leaves_least():
    bundle, _ = scene(13)
    seen = of_another_lens(bundle, 0.1, sigma=10.0)
    found = adjust(seen, iterations=60).bundle.log_focal
    steps = found + np.array([-0.02, 0.0, 0.02])
    costs = []
    for step in steps:
        known = replace(bundle, rays=seen.rays / np.exp(step), sigma=SIGMA / np.exp(step))
        costs.append(adjust(known, iterations=60).cost)
    curve = np.polyfit(steps, costs, 2)
    assert curve[0] > 0
    assert abs(-0.5 * curve[1] / curve[0] - found) < 2e-3, "where a parabola is lowest"


def test_a_focal_length_that_is_known_well_hardly_changes():
    bundle, _ = scene(14)
    found = adjust(of_another_lens(bundle, 0.1, sigma=1e-5), iterations=40).bundle
    assert abs(found.log_focal) < 1e-3
    assert adjust(of_another_lens(bundle, 0.1, sigma=0.0)).bundle.log_focal == 0.0


def test_the_covariance_has_the_focal_length_marginalised():
    bundle, _ = scene(15)
    known = adjust(bundle, with_covariance=True).covariance
    free = adjust(replace(bundle, log_focal_sigma=0.1), with_covariance=True).covariance
    assert free.shape == known.shape
    assert (np.diag(free) > 0.99 * np.diag(known)).all()
    assert (np.diag(free) > 1.2 * np.diag(known)).any()


def test_a_tenth_of_wrong_observations_changes_little():
    bundle, _ = scene(4)
    rng = np.random.default_rng(5)
    wrong = rng.random(len(bundle.rays)) < 0.1
    rays = bundle.rays + wrong[:, None] * rng.normal(0, 0.1, bundle.rays.shape)
    found = adjust(disturbed(replace(bundle, rays=rays), 6), iterations=40)
    clean = adjust(disturbed(bundle, 6), iterations=40)
    assert np.abs(centres(found.bundle) - centres(clean.bundle)).max() < 0.03
    assert np.median(found.weights[wrong]) < 0.05
    assert np.median(found.weights[~wrong]) > 0.7


def test_what_is_fixed_stays():
    bundle, _ = scene(7)
    found = adjust(disturbed(bundle, 8)).bundle
    np.testing.assert_array_equal(found.camera_from_map[:2], bundle.camera_from_map[:2])


def test_the_covariance_is_that_of_many_runs():
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        exact, _ = scene(100, noise=0.0)
        noisy = replace(exact, rays=exact.rays + SIGMA * rng.normal(size=exact.rays.shape))
        # Far outliers do not exist here: a wide robust scale is least squares.
        found = adjust(noisy, 20, outlier=50.0, with_covariance=True)
        errors.append((centres(found.bundle) - centres(exact))[-1])
        sigma = np.sqrt(np.diag(found.covariance)[-3:])
    ratio = np.std(errors, axis=0) / sigma
    assert (ratio > 0.6).all()
    assert (ratio < 1.5).all()


def information_by_differences(bundle, step=1e-6):
    """Second derivatives (L, 3, 3) of half the squared residuals by the points alone."""
    still = np.zeros((bundle.is_free.sum(), 6))
    by_point = []
    for axis in np.eye(3):
        steps = np.tile(step * axis, (len(bundle.points), 1))
        ahead, back = (bundle.moved(still, sign * steps).residuals() for sign in (1, -1))
        by_point.append((ahead - back) / (2 * step))
    jacobian = np.stack(by_point, axis=2)
    result = np.zeros((len(bundle.points), 3, 3))
    np.add.at(result, bundle.point, jacobian.transpose(0, 2, 1) @ jacobian)
    return result


def test_points_sigmas_are_what_the_rays_leave_with_the_poses_given():
    exact, _ = scene(11, noise=0.0)
    wanted = np.sqrt(np.linalg.inv(information_by_differences(exact))[:, 2, 2])
    found = adjust(exact, with_point_sigma=True)
    np.testing.assert_allclose(found.point_sigma, wanted, rtol=1e-4)
    assert found.covariance.size == 0, "it was not asked for, and is most of the work"
    both = adjust(exact, with_covariance=True)
    np.testing.assert_array_equal(both.point_sigma, found.point_sigma)
    assert both.covariance.shape == (24, 24)
    neither = adjust(exact)
    assert neither.point_sigma.size == neither.covariance.size == 0


def test_cameras_that_only_turned_share_a_centre():
    bundle, _ = scene(9)
    pairs = np.array([[2, 3], [3, 4]])
    found = adjust(replace(bundle, turning=pairs, turning_sigma=1e-5), iterations=40).bundle
    for one, other in pairs:
        np.testing.assert_allclose(centres(found)[one], centres(found)[other], atol=1e-2)
    assert np.linalg.norm(centres(found)[5] - centres(found)[4]) > 0.05


def test_a_prior_holds_distances_that_nothing_else_gives():
    bundle, _ = scene(10, cameras=2)
    same = np.repeat(bundle.camera_from_map[:1], 2, axis=0)
    first = bundle.rays[bundle.camera == 0]
    expected = bundle.points.inverse_distance
    still = replace(
        bundle,
        camera_from_map=same,
        is_free=np.array([False, True]),
        rays=np.concatenate([first, first]),
        points=replace(bundle.points, prior_sigma=0.1 * expected, inverse_distance=1.5 * expected),
    )
    found = adjust(still, iterations=30).bundle
    np.testing.assert_allclose(found.points.inverse_distance, expected, rtol=0.02)
    assert np.linalg.norm(centres(found)[1]) < 0.02


def test_many_cameras_are_adjusted_without_the_zeros_to_the_same(monkeypatch):
    bundle, _ = scene(20, cameras=8)
    # Each point is seen by three cameras in a row, so that most pairs of cameras share none.
    first = np.random.default_rng(0).integers(0, 6, len(bundle.points))
    near = (bundle.camera - first[bundle.point] >= 0) & (bundle.camera - first[bundle.point] < 3)
    seen = replace(
        bundle, camera=bundle.camera[near], point=bundle.point[near], rays=bundle.rays[near]
    )
    seen = replace(seen, edges=edges_of(seen, np.arange(7), np.arange(1, 8), 0.1))
    start = disturbed(seen, 21)
    dense = adjust(start, iterations=60).bundle
    monkeypatch.setattr(normal_equations, "_MOST_DENSE", 2)
    assert normal_equations.Plan(start).is_sparse
    sparse = adjust(start, iterations=60).bundle
    np.testing.assert_allclose(sparse.camera_from_map, dense.camera_from_map, atol=1e-6)
    np.testing.assert_allclose(sparse.points.positions, dense.points.positions, rtol=1e-4)


def test_large_maps_turn_only_what_was_seen_to_the_same(monkeypatch):
    start = disturbed(scene(26)[0], 27)
    wanted = adjust(start, iterations=20).bundle
    monkeypatch.setattr(bundles, "_MOST_PAIRS", 1)
    found = adjust(start, iterations=20).bundle
    np.testing.assert_allclose(found.camera_from_map, wanted.camera_from_map, atol=1e-9)
    np.testing.assert_allclose(found.points.positions, wanted.points.positions, rtol=1e-9)


def edges_of(bundle, first, second, sigma):
    """Edges between cameras as they are, each with one deviation."""
    poses = inverse(bundle.camera_from_map)
    information = np.zeros((len(first), 7, 7))
    information[:, range(6), range(6)] = sigma**-2.0
    relation = inverse(poses[first]) @ poses[second]
    return Edges(first, second, relation, information, np.zeros(len(first), bool))


def test_a_camera_that_sees_nothing_is_where_edges_have_it():
    bundle, _ = scene(22, noise=0.0)
    blind = bundle.camera != 5
    edges = edges_of(bundle, np.array([4]), np.array([5]), 0.01)
    start = disturbed(bundle, 23)
    start = replace(
        start,
        camera=bundle.camera[blind],
        point=bundle.point[blind],
        rays=bundle.rays[blind],
        edges=edges,
    )
    found = adjust(start, iterations=60).bundle
    np.testing.assert_allclose(found.camera_from_map, bundle.camera_from_map, atol=1e-4)


def test_edges_that_differ_count_by_their_information():
    """One puts the camera a quarter of a metre further, as sure of it as three times less."""
    bundle, _ = scene(24, noise=0.0, cameras=4)
    blind = bundle.camera != 3
    edges = edges_of(bundle, np.array([0, 2]), np.array([3, 3]), 0.1)
    edges.first_from_second[0, 0, 3] += 0.25
    edges.information[1] *= 4.0
    start = replace(
        bundle, camera=bundle.camera[blind], point=bundle.point[blind], rays=bundle.rays[blind]
    )
    found = adjust(replace(start, edges=edges), iterations=60).bundle
    # The second edge is from a free camera, which many points hold where it is.
    moved = centres(found)[3] - centres(bundle)[3]
    np.testing.assert_allclose(moved, [0.05, 0.0, 0.0], atol=2e-3)
