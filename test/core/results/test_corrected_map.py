"""What a replay writes follows the last correction: poses of all frames, and points."""

from dataclasses import replace

import numpy as np
import pytest
from support import drifting_flight as flights

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.geometry.similarities import moved_by, rigid
from qvggt_core.parameters import Parameters
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.results.corrected_map import CorrectedMap
from qvggt_core.stream.corrected_path import KeyframeCorrections, corrections_at
from qvggt_core.stream.frame import Reconstruction
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_core.stream.loop_closure import LoopClosure


@pytest.fixture(scope="module")
def flown():
    """A flight of two laps: the truth, odometry, and the results with loops."""
    truth = flights.circle(60, 1.8)
    odometry = flights.drifting(truth, np.random.default_rng(0))
    results = flights.closed(LoopClosure(), flights.reconstructions(truth, odometry))
    return FLU_FROM_OPTICAL @ inverse(truth[0]) @ truth, odometry, results


@pytest.fixture(scope="module")
def built(flown):
    builder = ResultBuilder(Parameters(loop_closure=True))
    for result in flown[2]:
        builder.add(result)
    return builder


def test_the_trajectory_is_that_after_the_last_loop(flown, built):
    truth, odometry, _ = flown
    found = built.tracks[0].matrices

    def error(poses):
        return np.sqrt(np.square((poses - truth)[:, :3, 3]).sum(axis=1).mean())

    assert built.tracks[0].stamps_ns == [index * flights.PERIOD_NS for index in range(60)]
    assert error(found) < 0.5 * error(odometry)


def test_points_move_with_their_keyframes(flown, built):
    """All points lie on the walls of a box, so what is off them shows the drift."""
    without = ResultBuilder(Parameters())
    for _, _, result in flights.reconstructions(flights.circle(60, 1.8), flown[1]):
        without.add(result)
    box_from_map = flights.circle(60, 1.8)[0] @ inverse(FLU_FROM_OPTICAL)

    def off_the_walls(builder):
        points = builder.cloud(0).moved(box_from_map).positions
        low, high = np.abs(points - flights.LOW), np.abs(points - flights.HIGH)
        return np.minimum(low, high).min(axis=1).mean()

    assert off_the_walls(built) < 0.75 * off_the_walls(without)
    assert built.voxel(0) == pytest.approx(without.voxel(0), rel=0.2)


def test_points_are_bounded_by_larger_voxels(flown):
    bounded = CorrectedMap(0.01, max_points=20_000)
    for result in flown[2]:
        clouds = [frame_cloud(geometry, 0.1) for geometry in result.frames]
        bounded.add(result, clouds)
    coarse = bounded.map(0)
    assert 1_000 < len(coarse.cloud()) <= 20_000
    assert coarse.voxel > 0.02


def test_between_keyframes_a_correction_goes_evenly():
    motion = np.array([0.1, -0.2, 0.3, 1.0, 2.0, 3.0, 0.1])
    keyframes = KeyframeCorrections(
        np.array([100, 200, 300]),
        np.array([0, 0, 2]),
        np.array([0, 0, 0]),
        np.stack([np.eye(4), moved_by(motion), moved_by(-motion)]),
    )
    stamps = np.array([50, 100, 150, 200, 250, 300, 400, 500])
    segments = np.array([0, 0, 0, 0, 0, 2, 2, 5])
    worlds, found = corrections_at(stamps, segments, keyframes)
    assert worlds.tolist() == [0, 0, 0, 0, 0, 0, 0, 5]
    expected = np.stack([moved_by(share * motion) for share in (0, 0, 0.5, 1, 1, -1, -1, 0)])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(rigid(found)[:, :3, 3], found[:, :3, 3])


def test_without_loops_nothing_changes():
    worlds, found = corrections_at(np.array([1, 2]), np.array([0, 3]), None)
    assert worlds.tolist() == [0, 3]
    np.testing.assert_array_equal(found, np.tile(np.eye(4), (2, 1, 1)))


def lost_on_the_way(joined):
    """Ten frames, of which 4 and 5 are lost; the second segment begins at 6."""
    truth = flights.circle(60, 1.0)[:10]
    found = CorrectedMap(0.01)
    true = FLU_FROM_OPTICAL @ inverse(truth[0]) @ truth
    steps = list(flights.reconstructions(truth, true))
    for index, (_, _, result) in enumerate(steps):
        geometry, segment = result.frames[0], int(index > 5)
        if index in (4, 5, 9):
            geometry = replace(geometry, is_lost=True, map_from_camera=true[3])
        found.add(replace(result, frames=(geometry,), segment=segment), [no_cloud()])
    keyframes = np.array([0, 3, 6, 8])
    corrections = KeyframeCorrections(
        keyframes * flights.PERIOD_NS,
        (keyframes > 5).astype(np.int64),
        np.zeros(4, np.int64) if joined else (keyframes > 5).astype(np.int64),
        np.tile(np.eye(4), (4, 1, 1)),
    )
    found.add(Reconstruction(0, (), corrections=corrections), [])
    return true, found.tracks


def no_cloud():
    return Cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32))


def test_poses_lead_over_frames_in_which_the_camera_was_lost_to_where_it_was_found():
    true, tracks = lost_on_the_way(joined=True)
    assert tracks[0].stamps_ns == [index * flights.PERIOD_NS for index in range(10)]
    np.testing.assert_allclose(tracks[0].matrices[:9], true[:9], atol=0.01)
    # Where it was not found again, nothing better is known than the last pose.
    np.testing.assert_array_equal(tracks[0].matrices[9], true[3])


def test_poses_lead_to_no_other_world():
    true, tracks = lost_on_the_way(joined=False)
    np.testing.assert_array_equal(tracks[0].matrices[4], true[3])
    np.testing.assert_array_equal(tracks[0].matrices[5], true[3])
    assert len(tracks[1].matrices) == 4


def test_points_of_each_keyframe_follow_its_own_correction():
    """Four keyframes in a row, each twice as far from the first as odometry had it."""
    truth = flights.circle(60, 1.0)[:24:6]
    true = FLU_FROM_OPTICAL @ inverse(truth[0]) @ truth
    found = CorrectedMap(0.01)
    moves = np.tile(np.eye(4), (4, 1, 1))
    moves[:, :3, 3] = np.arange(4)[:, None] * [10.0, 0.0, 0.0]
    for _, _, result in flights.reconstructions(truth, true):
        found.add(result, [frame_cloud(result.frames[0], 0.1)])
    stamps, zeros = np.arange(4) * flights.PERIOD_NS, np.zeros(4, np.int64)
    corrections = KeyframeCorrections(stamps, zeros, zeros, moves)
    found.add(Reconstruction(0, (), corrections=corrections), [])
    points = found.map(0).cloud().positions
    # The room is ten metres long: each keyframe's points are in one of its own.
    box_from_map = truth[0] @ inverse(FLU_FROM_OPTICAL)
    spread = np.ptp(points @ box_from_map[:3, :3].T + box_from_map[:3, 3], axis=0)
    assert spread.max() > 30.0
