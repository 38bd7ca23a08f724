"""The live map follows loops, is bounded however long a camera stays, and outlives its segments."""

from dataclasses import replace

import numpy as np
import pytest
from support import drifting_flight as flights

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.geometry.similarities import moved_by
from qvggt_core.results.live_map import LiveMap
from qvggt_core.results.movable_points import MovablePoints
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.frame import LoopStatus, Reconstruction, Scale
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_core.stream.loop_closure import LoopClosure


@pytest.fixture(scope="module")
def flown():
    """A flight of two laps that drifts: where it began, and its results without and with loops."""
    truth = flights.circle(60, 1.8)
    odometry = flights.drifting(truth, np.random.default_rng(0))
    before = list(flights.reconstructions(truth, odometry))
    return truth[0], [each[2] for each in before], flights.closed(LoopClosure(), before)


def given(results):
    live = LiveMap(0.01)
    for result in results:
        live.begin(result)
        for geometry in result.frames:
            live.add(geometry, frame_cloud(geometry, 0.1))
    return live


def test_points_of_before_a_loop_move_with_it(flown):
    """All points lie on the walls of a box: what is off them is drift."""
    first, without, with_loops = flown

    def off_the_walls(cloud):
        points = cloud.moved(first @ inverse(FLU_FROM_OPTICAL)).positions
        low, high = np.abs(points - flights.LOW), np.abs(points - flights.HIGH)
        return np.minimum(low, high).min(axis=1).mean()

    drifted, followed = given(without).cloud(), given(with_loops).cloud()
    assert off_the_walls(followed) < 0.75 * off_the_walls(drifted)
    assert 0.5 < len(followed) / len(drifted) < 1.5


def seen(number, segment, x, *, loops=None, **others):
    """Return a result of one frame that sees one point 1 m ahead of where it is, and its cloud."""
    geometry = next(iter(flights.reconstructions(np.eye(4)[None], np.eye(4)[None])))[2].frames[0]
    pose = np.eye(4)
    pose[0, 3] = x
    view = replace(geometry.view, stamp_ns=number)
    frame = replace(geometry, view=view, map_from_camera=pose)
    cloud = Cloud(
        np.array([[0.0, 0.0, 1.0]], np.float32), np.zeros((1, 3), np.uint8), np.ones(1, np.float32)
    )
    return Reconstruction(segment, (frame,), loops=loops or LoopStatus(), **others), frame, cloud


def take(live, result, frame, cloud):
    live.begin(result)
    live.add(frame, cloud)


def test_segments_that_a_loop_joins_are_one_map():
    live = LiveMap(0.01)
    take(live, *seen(1, 0, 0.0))
    live.begin_world()
    take(live, *seen(2, 1, 5.0))
    assert live.cloud().positions[:, 0].tolist() == [5.0]
    shift = moved_by(np.array([0.0, 0, 0, 20.0, 0, 0, 0]))
    corrections = KeyframeCorrections(
        np.array([1, 2]), np.array([0, 1]), np.array([0, 0]), np.stack([np.eye(4), shift])
    )
    joined = seen(3, 0, 26.0, odometry_segment=1, map_from_odometry=shift, corrections=corrections)
    take(live, *joined)
    np.testing.assert_allclose(np.sort(live.cloud().positions[:, 0]), [0.0, 25.0, 26.0], atol=1e-5)


def test_what_was_seen_before_metres_are_known_is_left_out():
    live = LiveMap(0.01)
    take(live, *seen(1, 0, 0.0))
    take(live, *seen(2, 1, 1.0))
    take(live, *seen(3, 1, 2.0, scale=Scale(3.0, "odometry")))
    assert live.cloud().positions[:, 0].tolist() == [2.0]


def test_without_loops_a_segment_has_a_map_of_its_own():
    live = LiveMap(0.01)
    for number, segment in enumerate((0, 0, 1)):
        if number == 2:
            live.begin_world()
        result, frame, cloud = seen(number, segment, float(number))
        take(live, replace(result, loops=None), frame, cloud)
    assert live.cloud().positions[:, 0].tolist() == [2.0]


def test_a_camera_that_comes_and_goes_for_hours_fills_nothing():
    """Points that newer ones cover go first: detail stays."""
    rng = np.random.default_rng(0)
    wall = np.column_stack([rng.uniform(-1, 1, (3000, 2)), np.full(3000, 2.0)]).astype(np.float32)
    cloud = Cloud(wall, np.zeros((3000, 3), np.uint8), np.ones(3000, np.float32))
    points, poses = MovablePoints(0.005, max_points=8_000), np.tile(np.eye(4), (8, 1, 1))
    poses[4:, 0, 3] = 0.2
    for number in range(400):
        points.add(number, 0, cloud, poses[number // 5 % 8])
        assert points._count() <= 8_000
    found = points.map(0)
    assert found.voxel == pytest.approx(0.01)
    assert 4_000 < len(found.cloud()) <= 8_000
