"""How a map gets its distances: from two views with parallax, also of a scene that is a plane."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, rotation_angle, transform
from qvggt_core.stream.local_map import LocalMap
from qvggt_core.stream.tracks import Tracks
from qvggt_core.stream.two_view import relate_by_plane

FOCAL = 170.0
SIGMA = 0.3 / FOCAL


def slanted_wall(rng, count=250):
    """Points of one plane that lies aslant before the camera."""
    x, y = rng.uniform(-3, 5, count), rng.uniform(-2, 2, count)
    return np.column_stack([x, y, 3.0 + 0.5 * x + 0.2 * y])


def pose(number, rng=None):
    """A camera that goes sideways and turns against it, so that the wall stays in view."""
    turn = Rotation.from_euler("yx", [2.5 * number, 0.3 * number], degrees=True).as_matrix()
    place = np.array([0.12 * number, 0.01 * number, 0.03 * number])
    return transform(turn, -turn @ place)


def tracks_of(places, camera_from_world, rng):
    local = places @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    rays = local[:, :2] / local[:, 2:] + SIGMA * rng.normal(size=(len(places), 2))
    seen = (local[:, 2] > 0.3) & (np.abs(rays) < 0.75).all(axis=1)
    return Tracks(np.flatnonzero(seen), FOCAL * rays[seen] + 128.0, rays[seen], FOCAL)


def degrees_apart(one, other):
    return np.degrees(rotation_angle(one[:3, :3].T @ other[:3, :3]))


def test_a_plane_has_two_explanations_of_which_one_is_true():
    rng = np.random.default_rng(0)
    places = slanted_wall(rng)
    first, second = tracks_of(places, pose(0), rng), tracks_of(places, pose(4), rng)
    _, one, other = np.intersect1d(first.ids, second.ids, return_indices=True)
    found = relate_by_plane(first.rays[one], second.rays[other], SIGMA)
    assert 1 <= len(found) <= 2
    best = min(found, key=lambda each: degrees_apart(each.second_from_first, pose(4)))
    assert degrees_apart(best.second_from_first, pose(4)) < 0.5
    direction = pose(4)[:3, 3] / np.linalg.norm(pose(4)[:3, 3])
    assert best.second_from_first[:3, 3] @ direction > np.cos(np.radians(5))
    assert best.share > 0.9
    unit = np.linalg.norm(pose(4)[:3, 3])
    true = places[first.ids[one]] / unit
    error = np.linalg.norm(best.points - true, axis=1) / np.linalg.norm(true, axis=1)
    assert np.median(error[best.agrees]) < 0.05


def test_without_a_plane_there_is_no_such_explanation_of_most_points():
    rng = np.random.default_rng(1)
    places = np.column_stack([*rng.uniform(-2, 2, (2, 300)), rng.uniform(1.5, 8, 300)])
    first, second = tracks_of(places, pose(0), rng), tracks_of(places, pose(4), rng)
    _, one, other = np.intersect1d(first.ids, second.ids, return_indices=True)
    found = relate_by_plane(first.rays[one], second.rays[other], SIGMA)
    assert all(
        degrees_apart(each.second_from_first, pose(4)) < 2.0 or each.share < 0.6 for each in found
    )


def pose_along(step, turn, number):
    rotation = Rotation.from_euler("yx", -np.array(turn) * number, degrees=True).as_matrix()
    return transform(rotation, -rotation @ (np.array(step) * number))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slope", [(0.5, 0.2), (0.0, 0.8)])
@pytest.mark.parametrize(
    ("step", "turn"),
    [
        ((0.0, 0.0, 0.15), (2.0, 0.0)),
        ((0.1, 0.0, 0.08), (4.0, 0.0)),
        ((0.12, 0.0, 0.0), (4.0, 0.0)),
    ],
)
def test_a_map_of_a_plane_is_founded_on_the_true_one(step, turn, slope, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-5, 8, 400), rng.uniform(-3, 3, 400)
    places = np.column_stack([x, y, 3.0 + slope[0] * x + slope[1] * y])
    poses = [pose_along(step, turn, number) for number in range(11)]
    local_map = LocalMap(tracks_of(places, poses[0], rng), poses[0], distance=3.0)
    for each in poses[1:]:
        tracks = tracks_of(places, each, rng)
        local_map.add_keyframe(tracks, local_map.locate(tracks))
    assert local_map.is_settled
    first, last = (local_map.keyframes[i].camera_from_map for i in (0, -1))
    assert degrees_apart(last @ inverse(first), poses[-1]) < 1.0


def test_poses_stay_rotations_on_a_long_way():
    """Each pose is looked for where the motion before leads: rounding must not grow with that."""
    rng = np.random.default_rng(2)
    places = np.column_stack(
        [rng.uniform(-2, 9, 900), rng.uniform(-2, 2, 900), rng.uniform(2, 6, 900)]
    )
    local = LocalMap(tracks_of(places, transform(np.eye(3), np.zeros(3)), rng), np.eye(4), 4.0)
    for number in range(1, 50):
        turn = Rotation.from_euler("y", 4 * np.sin(0.3 * number), degrees=True).as_matrix()
        there = transform(turn, -turn @ np.array([0.12 * number, 0.0, 0.0]))
        tracks = tracks_of(places, there, rng)
        located = local.locate(tracks)
        if number % 4 == 0:
            local.add_keyframe(tracks, located)
    rotation = local.keyframes[-1].camera_from_map[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert degrees_apart(local.keyframes[-1].camera_from_map, there) < 4.0


def test_the_unit_stays_that_of_the_poses_that_went_out():
    """While one keyframe alone is held, predicted depth may pull all the others nearer or away.

    The median of these predictions is right, as the verifier sees to, their mean is not.
    """
    rng = np.random.default_rng(3)
    places = np.column_stack([*rng.uniform(-3, 3, (2, 500)), rng.uniform(2.0, 8.0, 500)])
    local_map = LocalMap(tracks_of(places, pose(0), rng), pose(0), distance=4.0)
    went_out = []
    for number in range(1, 18):
        tracks = tracks_of(places, pose(number), rng)
        local_map.add_keyframe(tracks, local_map.locate(tracks))
        if local_map.is_founded:
            went_out.append((number, inverse(local_map.keyframes[-1].camera_from_map)[:3, 3]))
            known = local_map.points.inverse_distance
            lopsided = np.exp(rng.exponential(0.5, len(known)))
            local_map.expect(local_map.points.ids, known * lopsided / np.exp(0.5 * np.log(2)), 0.2)
    assert len(went_out) > 10
    true = np.array([inverse(pose(number))[:3, 3] for number, _ in went_out])
    found = np.array([place for _, place in went_out])
    scale = [
        np.linalg.norm(found[part][-1] - found[part][0])
        / np.linalg.norm(true[part][-1] - true[part][0])
        for part in (slice(0, 5), slice(-5, None))
    ]
    assert scale[1] == pytest.approx(scale[0], rel=0.03)
