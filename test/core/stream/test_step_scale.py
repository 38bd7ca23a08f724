"""The scale by the steps of a path, beside a filter that knows drift and noises."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.stream.path_alignment import Freedom, PathPiece, align_path
from qvggt_core.stream.scale_estimate import DRIFT
from qvggt_core.stream.step_scale import step_scale

COUNT, STEP = 40, 0.2


def flight(seed, drift, of_way, of_places):
    """Return a piece, the ways, and the true logarithm of metres per unit at each step.

    `of_way` is metres after a root metre per axis, `of_places` metres per axis.
    """
    rng = np.random.default_rng(seed)
    heading = np.cumsum(0.4 * rng.standard_normal(COUNT - 1))
    metres = STEP * np.stack([np.cos(heading), np.sin(heading), 0.3 * np.sin(heading)], axis=-1)
    logs = 1.1 + np.cumsum(drift * np.sqrt(STEP) * rng.standard_normal(COUNT - 1))
    steps = metres / np.exp(logs)[:, None]
    map_from_camera = np.tile(np.eye(4), (COUNT, 1, 1))
    map_from_camera[1:, :3, 3] = np.cumsum(steps, axis=0)
    walked = metres + of_way * np.sqrt(STEP) * rng.standard_normal((COUNT - 1, 3))
    positions = np.vstack([np.zeros(3), np.cumsum(walked, axis=0)])
    positions += of_places * rng.standard_normal((COUNT, 3))
    turn = Rotation.random(random_state=seed).as_matrix()
    usual = DRIFT * np.sqrt(np.full(COUNT - 1, STEP))
    piece = PathPiece(
        map_from_camera, positions @ turn.T, np.zeros((COUNT, 3)), usual, np.ones(COUNT)
    )
    ways = np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])
    return piece, ways, logs, metres


def known_best(piece, metres, logs, drift, of_way, of_places):
    """Generalised least squares of the steps along the true direction: the newest logarithm."""
    length = np.linalg.norm(metres, axis=1)
    steps = np.diff(piece.map_from_camera[:, :3, 3], axis=0)
    turn = align_path(piece, Freedom()).rotation
    shown = np.diff(piece.positions, axis=0) @ turn
    values = (shown * steps).sum(axis=1) / (steps**2).sum(axis=1) / np.exp(1.1) - 1.0
    size = len(values)
    apart = np.eye(size) - np.eye(size, k=1)
    noise = np.diag(of_way**2 * STEP * np.ones(size))
    noise += of_places**2 * (apart @ apart.T + np.diag([*np.zeros(size - 1), 1.0]))
    age = STEP * (size - 1 - np.arange(size))
    covariance = noise / np.outer(length, length)
    covariance += drift**2 * np.minimum(age[:, None], age[None, :])
    weights = np.linalg.solve(covariance, np.ones(size))
    return 1.1 + float(weights @ values / weights.sum())


@pytest.mark.parametrize(
    ("drift", "of_way", "of_places"),
    [(0.005, 0.008, 0.0), (0.015, 0.008, 0.0), (0.03, 0.004, 0.0), (0.01, 0.008, 0.001)],
)
def test_errors_are_little_larger_than_those_of_one_who_knows_drift_and_noise(
    drift, of_way, of_places
):
    errors, best, claimed = [], [], []
    for seed in range(60):
        piece, ways, logs, metres = flight(seed, drift, of_way, of_places)
        found = step_scale(piece, align_path(piece, Freedom()), ways, 1.0)
        errors.append(found.value - logs[-1])
        claimed.append(found.variance)
        best.append(known_best(piece, metres, logs, drift, of_way, of_places) - logs[-1])
    assert np.sqrt(np.mean(np.square(errors))) < 1.25 * np.sqrt(np.mean(np.square(best)))
    assert 0.5 < np.sqrt(np.mean(np.square(errors) / claimed)) < 1.3


def test_places_that_are_off_by_themselves_are_left_to_longer_ways():
    piece, ways, _, _ = flight(3, 0.005, 0.001, 0.02)
    assert step_scale(piece, align_path(piece, Freedom()), ways, 1.0) is None


def test_a_step_that_is_far_off_has_no_part():
    piece, ways, logs, _ = flight(1, 0.005, 0.005, 0.0)
    aligned = align_path(piece, Freedom())
    wrong = piece.positions.copy()
    wrong[20:] += 0.3 * (wrong[20] - wrong[19]) / STEP
    spoiled = PathPiece(piece.map_from_camera, wrong, piece.velocities, piece.drift, piece.readings)
    found = step_scale(spoiled, aligned, ways, 1.0)
    assert found.value == pytest.approx(logs[-1], abs=0.02)


def test_a_camera_that_stands_has_none():
    piece, ways, _, _ = flight(2, 0.005, 0.005, 0.0)
    aligned = align_path(piece, Freedom())
    still = PathPiece(
        piece.map_from_camera,
        np.zeros((COUNT, 3)),
        piece.velocities,
        piece.drift,
        piece.readings,
    )
    assert step_scale(still, aligned, ways, 1.0) is None
