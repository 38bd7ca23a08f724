"""Exact geometry is confirmed, invention is contradicted, and where nothing is seen it is open."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support import known_room as room

from qvggt_core.geometry.poses import inverse
from qvggt_core.stream import Verdict, WindowPrediction
from qvggt_core.stream.confirmation import TrackedView, confirm
from qvggt_core.stream.tracks import Tracks

FOCAL = room.INTRINSICS[0, 0]


def tracked(poses, count=150, noise=0.2, seed=0):
    """Points of the room as cameras see them: exact, but for noise in pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform([5, 5], [room.WIDTH - 6, room.HEIGHT - 6], (count, 2))
    rays = (pixels - room.INTRINSICS[:2, 2]) / FOCAL
    columns, rows = np.rint(pixels).astype(int).T
    depth = room.depth_of(poses[0])[rows, columns]
    places = np.column_stack([rays, np.ones(count)]) * depth[:, None]
    places = places @ poses[0][:3, :3].T + poses[0][:3, 3]
    views = []
    for index, pose in enumerate(poses):
        camera_from_world = inverse(pose)
        local = places @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        seen = local[:, :2] / local[:, 2:] + noise / FOCAL * rng.normal(size=(count, 2))
        at = seen * FOCAL + room.INTRINSICS[:2, 2]
        inside = (
            (local[:, 2] > 0) & (at >= 0).all(axis=1) & (at < [room.WIDTH, room.HEIGHT]).all(axis=1)
        )
        tracks = Tracks(np.flatnonzero(inside), at[inside], seen[inside], FOCAL)
        views.append(TrackedView(index, tracks, at[inside], room.WIDTH))
    return views


def predicted(poses):
    depths = [room.depth_of(pose) for pose in poses]
    return room.cut_window(poses, depths, np.random.default_rng(1), room.Noise()).prediction


@pytest.mark.parametrize("name", ["straight", "loop"])
def test_exact_geometry_is_confirmed(name):
    poses = room.FLIGHTS[name]()[:6]
    found = confirm(predicted(poses), tracked(poses))
    assert found.verdict is Verdict.CONFIRMED
    assert found.ratio < 0.2
    assert found.followed > 30


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["straight", "loop", "pure_rotation", "hover"])
def test_invented_geometry_is_never_confirmed(name, seed):
    poses = room.FLIGHTS[name]()[:4]
    rng = np.random.default_rng(seed)
    truth = predicted(poses)
    turns = Rotation.from_rotvec(0.1 * rng.normal(size=(4, 3))).as_matrix()
    cameras = truth.camera_from_world.copy()
    cameras[:, :3, :3] = turns
    cameras[:, :3, 3] = 0.3 * rng.normal(size=(4, 3))
    depth = np.exp(rng.normal(0, 0.5, truth.depth.shape)).astype(np.float32)
    invented = replace(truth, camera_from_world=cameras, depth=depth)
    assert confirm(invented, tracked(poses)).verdict is not Verdict.CONFIRMED


def test_no_motion_predicted_where_there_is_some_is_contradicted():
    poses = room.straight()[:6]
    still = predicted(np.repeat(poses[:1], 6, axis=0))
    assert confirm(still, tracked(poses)).verdict is Verdict.CONTRADICTED


def test_motion_predicted_where_there_is_none_is_contradicted():
    poses = room.straight()[:6]
    views = tracked(np.repeat(poses[:1], 6, axis=0))
    moving = predicted(room.loop()[:12:2])
    assert confirm(moving, views).verdict is Verdict.CONTRADICTED


def test_standing_still_decides_nothing():
    poses = room.hover(6)
    found = confirm(predicted(poses), tracked(poses))
    assert found.verdict is Verdict.UNDECIDED
    assert "still" in found.reason


def test_a_turn_alone_decides_nothing_about_depth():
    poses = room.flight(np.zeros((4, 3)), np.radians([[3.0 * i, 0, 0] for i in range(4)]))
    found = confirm(predicted(poses), tracked(poses, noise=0.05))
    assert found.verdict is Verdict.UNDECIDED
    assert "turns" in found.reason


def test_too_few_points_decide_nothing():
    poses = room.straight()[:6]
    for views in ([None] * 6, tracked(poses, count=10)):
        found = confirm(predicted(poses), views)
        assert found.verdict is Verdict.UNDECIDED
        assert found.followed == 0


@pytest.mark.parametrize("part", ["camera_from_world", "depth", "intrinsics"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_contradicted(part, value):
    poses = room.straight()[:6]
    truth: WindowPrediction = predicted(poses)
    broken = replace(truth, **{part: np.full_like(getattr(truth, part), value)})
    assert confirm(broken, tracked(poses)).verdict is Verdict.CONTRADICTED
