"""The fit of a map's path to metric positions."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.stream.path_alignment import Freedom, PathPiece, align_path

TIMES = np.linspace(0.0, 12.0, 40)


def way(times):
    return np.stack(
        [0.6 * times, 0.8 * np.sin(0.9 * times), 0.3 * np.sin(0.7 * times + 1.0)], axis=-1
    )


def speed(times):
    return (way(times + 1e-4) - way(times - 1e-4)) / 2e-4


def piece(unit, *, positions=None, velocities=None, turn=None, drift=0.005):
    """A path in units of so many metres each (a number, or one per place), and its positions."""
    true = way(TIMES)
    units = np.broadcast_to(unit, TIMES.shape)
    steps = np.diff(true, axis=0) / units[1:, None]
    map_from_camera = np.tile(np.eye(4), (len(TIMES), 1, 1))
    map_from_camera[:, :3, 3] = np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
    map_from_camera[:, :3, :3] = Rotation.from_euler("z", 0.4 * TIMES[:, None]).as_matrix()
    turn = np.eye(3) if turn is None else turn
    given = true if positions is None else positions
    moved = np.zeros_like(true) if velocities is None else velocities
    drifts, readings = np.full(len(TIMES) - 1, drift), np.ones(len(TIMES))
    return PathPiece(map_from_camera, given @ turn.T, moved @ turn.T, drifts, readings)


def scale_of(found):
    return np.exp(found.log_scale)


@pytest.mark.parametrize("seed", range(4))
def test_a_turned_and_scaled_path_is_found_exactly(seed):
    turn = Rotation.random(random_state=seed).as_matrix()
    found = align_path(piece(2.5, turn=turn), Freedom())
    assert scale_of(found) == pytest.approx(2.5, rel=1e-6)
    assert found.residual < 1e-6
    assert found.is_coherent


def test_a_scale_that_changes_is_that_of_the_newest_step():
    unit = 2.5 * np.exp(0.01 * TIMES)
    found = align_path(piece(unit), Freedom(noise=1e-3))
    assert scale_of(found) == pytest.approx(unit[-1], rel=0.01)


def test_a_few_positions_that_are_far_off_change_nothing():
    positions = way(TIMES)
    positions[[5, 17, 30]] += [[3.0, 0.0, 1.0], [0.0, -4.0, 0.0], [2.0, 2.0, 2.0]]
    found = align_path(piece(2.5, positions=positions), Freedom())
    assert scale_of(found) == pytest.approx(2.5, rel=2e-3)


@pytest.mark.parametrize("late", [-0.1, 0.06, 0.15])
def test_a_difference_of_the_clocks_is_found(late):
    given = piece(2.5, positions=way(TIMES - late), velocities=speed(TIMES - late))
    found = align_path(given, Freedom(offset_s=0.1))
    assert found.offset_s == pytest.approx(late, abs=0.01)
    assert scale_of(found) == pytest.approx(2.5, rel=5e-3)
    without = align_path(given, Freedom())
    assert found.residual < 0.2 * without.residual


def test_a_lever_between_the_sensors_is_found():
    lever = np.array([0.3, -0.2, 0.1])
    rotations = Rotation.from_euler("z", 0.4 * TIMES[:, None]).as_matrix()
    given = piece(2.5, positions=way(TIMES) + rotations @ lever)
    assert scale_of(align_path(given, Freedom(lever=0.3))) == pytest.approx(2.5, rel=5e-3)


def test_the_stated_deviation_covers_the_errors_of_noisy_positions():
    errors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noisy = way(TIMES) + rng.normal(0, 0.05, (len(TIMES), 3))
        found = align_path(piece(2.5, positions=noisy), Freedom(noise=0.05, correlated=1.0))
        errors.append((found.log_scale - np.log(2.5)) / np.sqrt(found.variance))
    # The scale does not walk here, which the fit expects: errors are smaller, not larger.
    assert 0.2 < np.std(errors) < 1.2


def test_heights_alone_give_the_scale_of_a_climb():
    up = np.array([0.0, 0.0, 1.0])
    found = align_path(piece(2.5, positions=way(TIMES) * up + 7.0), Freedom(axis=up))
    assert scale_of(found) == pytest.approx(2.5, rel=1e-3)


def test_a_path_of_another_shape_is_not_coherent():
    other = np.stack([np.sin(1.7 * TIMES), np.cos(1.1 * TIMES), 0 * TIMES], axis=-1)
    found = align_path(piece(2.5, positions=other), Freedom())
    assert found is None or not found.is_coherent


def test_what_does_not_move_or_is_too_short_has_no_scale():
    still = piece(2.5, positions=np.zeros((len(TIMES), 3)))
    assert align_path(still, Freedom()) is None
    whole = piece(2.5)
    few = PathPiece(
        whole.map_from_camera[:4],
        whole.positions[:4],
        whole.velocities[:4],
        whole.drift[:3],
        whole.readings[:4],
    )
    assert align_path(few, Freedom()) is None
