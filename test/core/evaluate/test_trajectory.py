"""Sim(3) alignment and trajectory errors, against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.relative_pose import area_under_curve, relative_pose_errors
from qvggt_core.evaluate.trajectory import absolute_trajectory_error, align_sim3
from qvggt_core.geometry.poses import transform


def _poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(count, random_state=seed).as_matrix()
    positions = np.cumsum(rng.normal(size=(count, 3)), axis=0)
    return np.stack([transform(r, p) for r, p in zip(rotations, positions, strict=True)])


def _moved(poses: np.ndarray, scale: float, noise: float) -> np.ndarray:
    rng = np.random.default_rng(7)
    gauge = transform(
        Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix(), np.array([3.0, -2.0, 9.0])
    )
    moved = poses.copy()
    moved[:, :3, 3] = scale * (poses[:, :3, 3] + noise * rng.normal(size=(len(poses), 3)))
    return gauge @ moved


def test_alignment_undoes_a_similarity() -> None:
    truth = _poses(30)
    estimate = _moved(truth, scale=0.37, noise=0.0)
    scale, rotation, translation = align_sim3(estimate[:, :3, 3], truth[:, :3, 3])
    assert scale == pytest.approx(1 / 0.37)
    aligned = scale * estimate[:, :3, 3] @ rotation.T + translation
    np.testing.assert_allclose(aligned, truth[:, :3, 3], atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_alignment_never_mirrors() -> None:
    truth = _poses(30)[:, :3, 3]
    _, rotation, _ = align_sim3(truth * [1, 1, -1], truth)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_a_straight_path_is_aligned() -> None:
    truth = np.linspace([0, 0, 0], [4, 2, 1], 20)
    turn = Rotation.from_rotvec([0.2, 0.5, -0.4]).as_matrix()
    scale, rotation, translation = align_sim3(0.5 * truth @ turn.T + 1.0, truth)
    np.testing.assert_allclose(
        scale * (0.5 * truth @ turn.T + 1.0) @ rotation.T + translation, truth, atol=1e-9
    )


def test_without_alignment_an_offset_is_the_error() -> None:
    truth = _poses(5)
    estimate = truth.copy()
    estimate[:, 0, 3] += 2.0
    error = absolute_trajectory_error(estimate, truth, "none")
    assert (error.rmse, error.maximum, error.scale) == (pytest.approx(2), pytest.approx(2), 1.0)


@pytest.mark.parametrize(
    ("estimate", "truth", "says"),
    [
        (np.zeros((4, 3)), np.arange(12.0).reshape(4, 3), "the same"),
        (np.arange(12.0).reshape(4, 3), np.ones((4, 3)), "the same"),
        (np.zeros((1, 3)), np.zeros((1, 3)), "at least 2"),
        (np.zeros((3, 3)), np.zeros((4, 3)), "3 estimated and 4 true"),
        (np.zeros((3, 2)), np.zeros((3, 3)), r"\(N, 3\)"),
        (np.full((3, 3), np.nan), np.zeros((3, 3)), "not finite"),
    ],
)
def test_degenerate_paths_are_refused(estimate: np.ndarray, truth: np.ndarray, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        align_sim3(estimate, truth)


def test_relative_errors_do_not_depend_on_gauge_and_scale() -> None:
    poses = np.linalg.inv(_poses(5))
    gauge = transform(Rotation.from_rotvec([0.1, 0.7, 0.2]).as_matrix(), np.array([1.0, 2.0, 3.0]))
    estimate = poses @ gauge
    estimate[:, :3, 3] *= 3.0
    errors = relative_pose_errors(estimate, poses @ gauge)
    assert len(errors.rotation) == 10
    np.testing.assert_allclose(errors.worst, 0.0, atol=1e-6)


def test_relative_errors_of_a_known_turn_and_direction() -> None:
    truth = np.stack([np.eye(4), transform(np.eye(3), np.array([1.0, 0.0, 0.0]))])
    turn = Rotation.from_rotvec([0, 0, np.radians(20)]).as_matrix()
    estimate = np.stack([np.eye(4), transform(turn, np.array([1.0, 1.0, 0.0]))])
    errors = relative_pose_errors(estimate, truth)
    assert errors.rotation == pytest.approx([20.0])
    assert errors.translation == pytest.approx([45.0])
    assert errors.worst == pytest.approx([45.0])


def test_area_under_the_curve_by_hand() -> None:
    # Below 1, 2, 3, 4 degrees: none, one, one, two of the two errors.
    assert area_under_curve(np.array([1.5, 3.5]), 4) == pytest.approx(100 * (0 + 0.5 + 0.5 + 1) / 4)
    with pytest.raises(EvaluationError, match="at least one"):
        area_under_curve(np.array([]), 30)
