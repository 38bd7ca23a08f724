"""Things that move by themselves: more points than the scene has must not make them the scene."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, rotation_angle, transform
from qvggt_core.stream.local_map import LocalMap
from qvggt_core.stream.map_points import Points
from qvggt_core.stream.resection import Sighting, resect, resect_again
from qvggt_core.stream.tracks import Tracks
from qvggt_core.stream.uncertainty import adrift

FOCAL = 250.0
SIGMA = 0.2 / FOCAL


def room(rng, count):
    return np.column_stack(
        [rng.uniform(-4, 6, count), rng.uniform(-2, 2, count), rng.uniform(2.5, 7, count)]
    )


def panel(rng, count):
    """A flat thing near the camera, in the camera's frame."""
    return np.column_stack([rng.uniform(-0.6, 0.6, (count, 2)), np.full(count, 1.8)])


def camera(number):
    """Goes to the right and turns there."""
    turn = Rotation.from_euler("y", -1.5 * number, degrees=True).as_matrix()
    return transform(turn, -turn @ np.array([0.1 * number, 0.0, 0.02 * number]))


def seen(local, first_id, rng):
    rays = local[:, :2] / local[:, 2:] + SIGMA * rng.normal(size=(len(local), 2))
    inside = (local[:, 2] > 0.3) & (np.abs(rays) < 0.8).all(axis=1)
    return first_id + np.flatnonzero(inside), rays[inside]


def tracks(number, scene, thing, rng):
    """What a camera sees of the scene, and of a thing that goes with it and down the image."""
    pose = camera(number)
    ids, rays = seen(scene @ pose[:3, :3].T + pose[:3, 3], 0, rng)
    if thing is not None:
        more, their = seen(thing + np.array([0.0, 0.03 * number, 0.0]), 10_000, rng)
        ids, rays = np.concatenate([ids, more]), np.concatenate([rays, their])
    return Tracks(ids, FOCAL * rays + 160.0, rays, FOCAL)


def rotation_error(pose, number):
    return np.degrees(rotation_angle((pose @ inverse(camera(number)))[:3, :3]))


@pytest.mark.parametrize("count", [100, 300])
def test_a_founded_map_is_not_dragged_along_by_what_comes_into_view(count):
    rng = np.random.default_rng(0)
    scene, thing = room(rng, 300), panel(rng, count)
    local_map = LocalMap(tracks(0, scene, None, rng), camera(0), distance=4.0)
    for number in range(1, 24):
        here = tracks(number, scene, thing if number >= 12 else None, rng)
        located = local_map.locate(here)
        local_map.add_keyframe(here, located)
        assert not located.is_lost
        if number >= 12:
            assert local_map.is_founded
            assert rotation_error(local_map.keyframes[-1].camera_from_map, number) < 0.5
            assert (located.ids[located.agrees] < 10_000).mean() > 0.95


@pytest.mark.parametrize("count", [150, 200, 300])
def test_no_map_is_founded_while_it_is_open_what_the_scene_is(count):
    rng = np.random.default_rng(1)
    scene, thing = room(rng, 300), panel(rng, count)
    local_map = LocalMap(tracks(0, scene, thing, rng), camera(0), distance=4.0)
    for number in range(1, 12):
        here = tracks(number, scene, thing, rng)
        located = local_map.locate(here)
        local_map.add_keyframe(here, located)
        error = rotation_error(local_map.keyframes[-1].camera_from_map, number)
        if local_map.is_founded:
            assert error < 1.0
        elif not located.is_lost:
            sigma = np.degrees(np.sqrt(np.trace(adrift(located.adrift, 4.0)[:3, :3])))
            assert error < 3.0 * sigma + 0.1


def test_points_that_are_known_decide_on_a_pose_and_the_others_are_judged_by_it():
    rng = np.random.default_rng(2)
    scene, pose = room(rng, 120), camera(5)
    moved = room(rng, 200)
    distance = np.linalg.norm(np.vstack([scene, moved]), axis=1)
    directions = np.vstack([scene, moved]) / distance[:, None]
    sigma = 0.02 / distance
    points = Points(
        np.arange(320), np.zeros((320, 3)), directions, 1 / distance, sigma, 1 / distance, sigma
    )
    other = transform(Rotation.from_euler("x", 6, degrees=True).as_matrix(), np.zeros(3)) @ pose
    local = np.vstack(
        [scene @ pose[:3, :3].T + pose[:3, 3], moved @ other[:3, :3].T + other[:3, 3]]
    )
    rays = local[:, :2] / local[:, 2:] + SIGMA * rng.normal(size=(320, 2))
    sighting = Sighting(points, rays, SIGMA)
    assert rotation_error(resect(sighting, [other]).camera_from_map, 5) > 5.0
    known = np.arange(320) < 60
    found, share = resect_again(sighting, known, [other])
    assert rotation_error(found.camera_from_map, 5) < 0.3
    assert share > 0.9
    assert found.agrees[:120].mean() > 0.9
    assert found.agrees[120:].mean() < 0.1
