"""Flights: of the kind that was asked for, collision-free, and the same for the same seed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.synthetic.flight import FLIGHT_KINDS, exposure_poses, fly
from qvggt_core.synthetic.named_worlds import make_world

STUDIO = make_world("studio", 0)
ROOM = make_world("room", 0)


def _yaw(poses: np.ndarray) -> np.ndarray:
    return np.unwrap(np.arctan2(poses[:, 1, 2], poses[:, 0, 2]))


@pytest.mark.parametrize("world", ["studio", "room", "corridor", "arena", "terrain"])
@pytest.mark.parametrize("kind", FLIGHT_KINDS)
def test_flights_keep_clear_and_upright(world: str, kind: str) -> None:
    place = make_world(world, 1)
    poses = fly(place, kind, 12, seed=5, step=0.05, clearance=0.3)
    assert poses.shape == (12, 4, 4)
    dense = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(poses)])
    assert place.clearance(dense[:, :3, 3]).min() > 0.2
    rotations = poses[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), [np.eye(3)] * 12, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    # Optical axes: image down is mostly world down, so the camera is not on its head.
    assert (rotations[:, 2, 1] < -0.8).all()


def test_a_hover_stays() -> None:
    poses = fly(ROOM, "hover", 40, seed=1)
    assert np.ptp(poses[:, :3, 3], axis=0).max() < 0.1
    assert 0 < rotation_angle(poses[:1, :3, :3].swapaxes(1, 2) @ poses[:, :3, :3]).max() < 0.08


def test_a_straight_flight_is_straight() -> None:
    poses = fly(ROOM, "straight", 20, seed=2, step=0.1, jitter=0.0)
    steps = np.diff(poses[:, :3, 3], axis=0)
    np.testing.assert_allclose(steps, [steps[0]] * 19, atol=1e-12)
    assert np.linalg.norm(steps[0]) == pytest.approx(0.1)
    np.testing.assert_allclose(poses[:, :3, :3], [poses[0, :3, :3]] * 20)


def test_an_arc_turns_by_the_same_angle_each_step() -> None:
    poses = fly(ROOM, "arc", 20, seed=3, step=0.08, jitter=0.0)
    turns = np.diff(_yaw(poses))
    np.testing.assert_allclose(turns, turns[0], atol=1e-9)
    assert abs(turns[0]) > 0.02
    np.testing.assert_allclose(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1), 0.08)


def test_an_orbit_keeps_its_centre_in_view() -> None:
    poses = fly(ROOM, "orbit", 16, seed=4, step=0.08, jitter=0.0)
    # All forward axes, flattened, meet in one point at one distance.
    position, forward = poses[:, :2, 3], poses[:, :2, 2]
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    away = np.stack([-forward[:, 1], forward[:, 0]], axis=1)
    centre = np.linalg.lstsq(away, np.einsum("ni,ni->n", away, position), rcond=None)[0]
    distance = np.linalg.norm(centre - position, axis=1)
    np.testing.assert_allclose(distance, distance[0], rtol=1e-6)
    np.testing.assert_allclose(position + distance[:, None] * forward, [centre] * 16, atol=1e-6)


def test_a_look_around_turns_far_and_hardly_moves() -> None:
    poses = fly(ROOM, "look_around", 60, seed=6, step=0.1, jitter=0.0)
    assert abs(_yaw(poses)[-1] - _yaw(poses)[0]) == pytest.approx(59 * 0.06)
    assert np.ptp(poses[:, :3, 3], axis=0).max() <= 0.24 + 1e-9


def test_a_survey_fills_the_volume_and_looks_inside() -> None:
    poses = fly(STUDIO, "survey", 300, seed=7, step=0.05, jitter=0.0)
    extent = np.ptp(poses[:, :3, 3], axis=0)
    assert (extent > 0.4 * (np.array(STUDIO.flight_high) - STUDIO.flight_low)).all()
    assert _yaw(poses).min() >= STUDIO.yaw_range[0] - 1e-9
    assert _yaw(poses).max() <= STUDIO.yaw_range[1] + 1e-9
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert np.median(steps) == pytest.approx(0.05, rel=0.02)


def test_flights_are_functions_of_their_seed() -> None:
    np.testing.assert_array_equal(fly(ROOM, "wander", 8, 1), fly(ROOM, "wander", 8, 1))
    assert (fly(ROOM, "wander", 8, 1) != fly(ROOM, "wander", 8, 2)).any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "loop", "frames": 8}, "loop"),
        ({"kind": "hover", "frames": 0}, "frames 0"),
        ({"kind": "straight", "frames": 400, "step": 0.1}, "400 frames"),
    ],
)
def test_impossible_flights_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        fly(ROOM, seed=0, **arguments)


def test_an_exposure_lies_around_its_frame_on_the_way_between_neighbours() -> None:
    poses = fly(ROOM, "arc", 3, seed=3, step=0.1)
    assert exposure_poses(poses, 1, 0.5, 0).shape == (0, 4, 4)
    np.testing.assert_allclose(exposure_poses(poses, 1, 0.0, 2), [poses[1]] * 2, atol=1e-12)
    before, after = exposure_poses(poses, 1, 0.4, 2)
    # Two instants lie a quarter of the exposure before and after its middle.
    for pose, neighbour in ((before, poses[0]), (after, poses[2])):
        expected = poses[1, :3, 3] + 0.1 * (neighbour[:3, 3] - poses[1, :3, 3])
        np.testing.assert_allclose(pose[:3, 3], expected, atol=1e-12)
        whole, part = (
            Rotation.from_matrix(poses[1, :3, :3].T @ end[:3, :3]).as_rotvec()
            for end in (neighbour, pose)
        )
        np.testing.assert_allclose(part, 0.1 * whole, atol=1e-9)
    # A camera stands still before the first frame.
    np.testing.assert_allclose(exposure_poses(poses, 0, 0.4, 2)[0], poses[0], atol=1e-12)
