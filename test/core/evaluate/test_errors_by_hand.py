"""Drift, depth errors and statistics on cases whose numbers are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.depth import depth_errors, mean_depth_errors
from qvggt_core.evaluate.drift import pairs_apart, progress, relative_errors, scale_over_time
from qvggt_core.evaluate.statistics import statistics
from qvggt_core.evaluate.trajectory import absolute_errors, align, straightness
from qvggt_core.geometry.poses import transform

LINE = np.outer(np.arange(11.0), [1.0, 0.0, 0.0])


def poses_at(positions, turn_per_step=0.0):
    turns = Rotation.from_rotvec(np.outer(np.arange(len(positions)), [0, 0, turn_per_step]))
    return np.stack([transform(r, p) for r, p in zip(turns.as_matrix(), positions, strict=True)])


def test_statistics_by_hand():
    found = statistics([1.0, 2.0, 3.0, 6.0])
    assert (found.mean, found.median, found.minimum, found.maximum) == (3.0, 2.5, 1.0, 6.0)
    assert found.rmse == pytest.approx(np.sqrt(50 / 4))
    assert found.std == pytest.approx(np.sqrt(14 / 4))


@pytest.mark.parametrize(
    ("values", "says"), [([], "nothing was compared"), ([1.0, np.nan, np.inf], "2 of 3 errors")]
)
def test_no_statistics_of_nothing_or_of_what_is_not_finite(values, says):
    with pytest.raises(EvaluationError, match=says):
        statistics(values)


# Pairs and relative errors


def test_pairs_by_distance_and_time():
    way = progress("distance", LINE, np.zeros(11))
    assert way.tolist() == list(range(11))
    first, second = pairs_apart(way, 3.0)
    assert (second - first).tolist() == [3] * 8
    first, second = pairs_apart(way, 3.0, consecutive=True)
    assert (first.tolist(), second.tolist()) == ([0, 3, 6], [3, 6, 9])
    seconds = np.arange(11) * 0.5
    first, second = pairs_apart(progress("time", LINE, seconds), 1.0)
    assert (second - first).tolist() == [2] * 9


def test_a_pair_may_miss_the_distance_by_the_tolerance_only():
    way = np.array([0.0, 0.92, 2.1])
    assert [p.tolist() for p in pairs_apart(way, 1.0, tolerance=0.1)] == [[0], [1]]


def test_of_poses_that_stand_still_the_first_ends_the_pair():
    assert pairs_apart(np.array([0.0, 1.0, 1.0, 1.0]), 1.0)[1].tolist() == [1]


@pytest.mark.parametrize(
    ("way", "delta", "says"),
    [
        ([0.0, 0.5], 3.0, r"no two of 2 poses are 3 apart: the whole way is 0\.5"),
        ([0.0], 1.0, "no two of 1 poses"),
        ([], 1.0, "no two of 0 poses"),
        ([0.0, 1.0], 0.0, "cannot be 0.0 apart"),
        ([0.0, np.nan], 1.0, "not finite"),
    ],
)
def test_no_pairs_says_how_far_the_way_is(way, delta, says):
    with pytest.raises(EvaluationError, match=says):
        pairs_apart(np.array(way), delta)


def test_relative_errors_of_a_known_drift():
    """One percent too long and 2 degrees a step of turn: per 5 steps 5 cm and 10 degrees."""
    truth = poses_at(LINE)
    estimate = truth.copy()
    estimate[:, 0, 3] *= 1.01
    pairs = pairs_apart(progress("distance", LINE, np.zeros(11)), 5.0)
    found = relative_errors(estimate, truth, pairs)
    assert found.translation == pytest.approx([0.05] * 6)
    assert found.rotation == pytest.approx([0.0] * 6, abs=1e-9)
    turned = poses_at(LINE, np.radians(2.0))
    assert relative_errors(turned, truth, pairs).rotation == pytest.approx([10.0] * 6)


# Scale over time


def test_a_scale_that_halves_midway_is_seen_to_halve():
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(200, 3))
    truth = np.cumsum(steps, axis=0)
    estimate = np.cumsum(np.where(np.arange(200)[:, None] < 100, 1.0, 2.0) * steps, axis=0)
    length = np.linalg.norm(steps[1:], axis=1).sum()
    found = scale_over_time(estimate, truth, 0.2 * length)
    assert found.ratio[0] / found.ratio[-1] == pytest.approx(2.0)
    assert found.change == pytest.approx(-0.5)
    assert found.spread >= 2.0 - 1e-9
    assert (np.diff(found.index) >= 0).all()


def test_a_constant_scale_does_not_drift():
    truth = np.random.default_rng(2).normal(size=(50, 3)).cumsum(axis=0)
    found = scale_over_time(0.3 * truth + 5.0, truth, 10.0)
    assert found.ratio == pytest.approx(np.ones(len(found.ratio)))


@pytest.mark.parametrize(
    ("estimate", "truth", "says"),
    [
        (LINE, LINE, r"no stretch of 100 has 3 of the 11 poses: the path is 10 long"),
        (LINE[:1], LINE[:1], "the path is 0 long"),
    ],
)
def test_a_short_path_has_no_scale_over_time(estimate, truth, says):
    with pytest.raises(EvaluationError, match=says):
        scale_over_time(estimate, truth, 100.0)


def test_an_estimate_that_stands_still_has_no_scale_over_time():
    with pytest.raises(EvaluationError, match="stands still"):
        scale_over_time(np.zeros((11, 3)), LINE, 5.0)


# Degenerate trajectories


def test_one_pose_can_be_compared_but_not_aligned():
    pose = poses_at(LINE[:1])
    assert absolute_errors(pose, pose, "origin").translation.tolist() == [0.0]
    with pytest.raises(EvaluationError, match="at least 2"):
        align(pose, pose, "sim3")


def test_a_constant_pose_cannot_be_aligned():
    with pytest.raises(EvaluationError, match="all 11 estimated positions are the same"):
        absolute_errors(np.stack([np.eye(4)] * 11), poses_at(LINE), "se3")


def test_nan_is_counted_and_located():
    broken = poses_at(LINE)
    broken[[3, 7], 0, 3] = np.nan
    with pytest.raises(EvaluationError, match=r"2 of 11 poses of the estimate.*number 3"):
        absolute_errors(broken, poses_at(LINE), "none")


def test_how_straight_a_path_is():
    assert straightness(LINE) == pytest.approx(0.0, abs=1e-12)
    assert straightness(LINE[:1]) == 0.0
    ring = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    circle = np.stack([np.cos(ring), np.sin(ring), 0 * ring], axis=1)
    assert straightness(circle) == pytest.approx(1.0)
    assert straightness(circle * [10, 1, 1]) == pytest.approx(0.1)


def test_an_unknown_alignment_lists_the_known_ones():
    with pytest.raises(EvaluationError, match="none, origin, scale, se3, sim3"):
        align(poses_at(LINE), poses_at(LINE), "affine")


# Depth


def test_depth_errors_by_hand():
    truth = np.array([[1.0, 2.0, 4.0, np.nan], [2.0, 2.0, 0.0, 8.0]])
    estimate = np.array([[1.1, 2.0, 6.0, 5.0], [np.nan, 1.0, 3.0, 8.0]])
    found = depth_errors(estimate, truth, 1.0)
    assert found.abs_rel == pytest.approx((0.1 + 0 + 0.5 + 0.5 + 0) / 5)
    assert found.rmse == pytest.approx(np.sqrt((0.01 + 4 + 1) / 5))
    assert (found.delta_1, found.delta_2, found.delta_3) == (0.6, 0.8, 0.8)
    assert found.valid == pytest.approx(5 / 6)


def test_the_scale_is_the_ratio_of_the_medians():
    truth = np.random.default_rng(0).uniform(1, 5, size=(20, 30))
    found = depth_errors(0.25 * truth, truth)
    assert found.scale == pytest.approx(4.0)
    assert found.abs_rel == pytest.approx(0.0, abs=1e-12)


def test_the_mean_weights_images_alike():
    truth = np.ones((2, 2))
    frames = [
        depth_errors(1.1 * truth, truth, 1.0),
        depth_errors(1.3 * np.ones((9, 9)), np.ones((9, 9)), 1.0),
    ]
    assert mean_depth_errors(frames).abs_rel == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("estimate", "truth", "says"),
    [
        (np.ones((2, 2)), np.ones((2, 3)), "no match"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "4 of 4 have a true one"),
        (np.ones((2, 2)), np.zeros((2, 2)), "0 of 4"),
    ],
)
def test_depth_without_common_pixels_is_refused(estimate, truth, says):
    with pytest.raises(EvaluationError, match=says):
        depth_errors(estimate, truth)


def test_no_mean_of_no_images():
    with pytest.raises(EvaluationError, match="no depth image"):
        mean_depth_errors([])
