"""Keyframes of a flight are where their corners show, nearer to the truth than by the graph."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support import drifting_flight as flights

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.geometry.similarities import rigid, scale_of, similarity
from qvggt_core.stream import loop_finder
from qvggt_core.stream.frame import Reconstruction
from qvggt_core.stream.image_features import Features
from qvggt_core.stream.loaded_map import adjusted_map_so_far, map_so_far
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.map_adjustment import World, adjusted

TRUTH = flights.circle(60, 1.8)
FROM_FIRST = FLU_FROM_OPTICAL @ inverse(TRUTH[0]) @ TRUTH


def flown(**options):
    odometry = flights.drifting(TRUTH, np.random.default_rng(0), **options)
    loops = LoopClosure()
    flights.closed(loops, flights.reconstructions(TRUTH, odometry))
    loops.settle()
    return loops


@pytest.fixture(scope="module")
def world():
    """A flight of two laps, with its loops closed by the graph."""
    finder = flown().finder
    poses = finder.placed()[1] @ finder.chains.poses
    corners = [keyframe.corners for keyframe in finder.store.keyframes]
    return World(corners, poses, finder.chains, tuple(finder.loops))


@pytest.fixture(scope="module")
def better(world):
    return adjusted(world)


def error(poses):
    """Return how far keyframes are off (RMS), metres, in the unit that fits best."""
    places, true = poses[:, :3, 3], FROM_FIRST[: len(poses), :3, 3]
    factor = (places * true).sum() / (places**2).sum()
    return np.sqrt(((factor * places - true) ** 2).sum(axis=1).mean())


def blank(corners):
    nothing = Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    return replace(corners, features=nothing, rays=corners.rays[:0], depth=corners.depth[:0])


def test_it_is_several_times_as_near_to_the_truth_as_the_graph(world, better):
    found = better
    assert error(found.poses) < 0.25 * error(world.poses)
    assert found.points > 500
    assert found.residual < 0.5


def test_the_first_keyframe_and_the_extent_of_the_path_stay(world, better):
    found = better.poses
    np.testing.assert_allclose(rigid(found)[0], rigid(world.poses)[0], atol=1e-9)
    extents = [np.var(each[:, :3, 3], axis=0).sum() ** 0.5 for each in (found, world.poses)]
    assert extents[0] == pytest.approx(extents[1], rel=1e-9)


def test_a_keyframe_whose_depth_has_another_unit_gets_its_own(world, better):
    """Of six in a row the unit is twice as long as the graph has it."""
    corners = list(world.corners)
    for number in range(20, 26):
        corners[number] = replace(corners[number], depth=0.5 * corners[number].depth)
    found, before = (
        scale_of(adjusted(replace_corners(world, corners)).poses),
        scale_of(better.poses),
    )
    ratio = found / before
    np.testing.assert_allclose(ratio[20:26] / np.median(ratio), 2.0, rtol=0.05)
    np.testing.assert_allclose(np.delete(ratio, range(20, 26)) / np.median(ratio), 1.0, rtol=0.05)


def test_depth_that_is_wrong_in_one_keyframe_alone_is_no_unit(world, better):
    """As that of the first ones is, before the map has been founded."""
    corners = list(world.corners)
    corners[0] = replace(corners[0], depth=np.full_like(corners[0].depth, np.nan))
    for number in (1, 40):
        corners[number] = replace(corners[number], depth=0.6 * corners[number].depth)
    ratio = scale_of(adjusted(replace_corners(world, corners)).poses) / scale_of(better.poses)
    np.testing.assert_allclose(ratio, 1.0, rtol=0.05)


def replace_corners(world, corners):
    return World(corners, world.poses, world.chains, world.loops)


def test_keyframes_that_share_no_corner_go_on_from_their_neighbours(world):
    corners = list(world.corners)
    for number in (30, 31):
        corners[number] = blank(corners[number])
    found = adjusted(replace_corners(world, corners)).poses
    for one, other in ((29, 30), (30, 31)):
        before, after = (
            inverse(rigid(each)[one]) @ rigid(each)[other] for each in (world.poses, found)
        )
        np.testing.assert_allclose(after[:3, 3], before[:3, 3], atol=0.05)
    assert error(found) < 0.5 * error(world.poses)


def test_corners_that_are_mistaken_for_others_do_not_pull(world, better):
    """In each fifth keyframe a tenth of the corners lie where other ones are, by a little."""
    rng, corners = np.random.default_rng(1), list(world.corners)
    for number in range(0, len(world), 5):
        rays = corners[number].rays.copy()
        wrong = rng.random(len(rays)) < 0.1
        rays[wrong] += rng.normal(0, 5.0, (np.count_nonzero(wrong), 2)) / corners[number].focal
        corners[number] = replace(corners[number], rays=rays)
    found = adjusted(replace_corners(world, corners))
    assert error(found.poses) < 1.5 * error(better.poses) + 0.002


def test_where_too_little_is_shared_there_is_nothing(world):
    assert adjusted(replace_corners(world, [blank(each) for each in world.corners])) is None


def test_a_camera_that_only_turns_keeps_its_unit():
    """Its path is noise, and how long noise is has no meaning."""
    truth = np.repeat(TRUTH[:1], 24, axis=0)
    turns = Rotation.from_euler("y", np.linspace(0.0, 1.0, 24)[:, None]).as_matrix()
    truth[:, :3, :3] = truth[:, :3, :3] @ turns
    odometry = FLU_FROM_OPTICAL @ inverse(truth[0]) @ truth
    odometry[:, :3, 3] += np.random.default_rng(0).normal(0, 0.01, (24, 3))
    loops = LoopClosure()
    flights.closed(loops, flights.reconstructions(truth, odometry))
    chains = loops.finder.chains
    corners = [keyframe.corners for keyframe in loops.finder.store.keyframes]
    found = adjusted(World(corners, chains.poses, chains, ()))
    np.testing.assert_allclose(scale_of(found.poses), 1.0, rtol=0.05)
    assert np.abs(found.poses[:, :3, 3] - found.poses[0, :3, 3]).max() < 0.1


def test_at_the_end_of_a_recording_all_of_its_path_is_adjusted():
    loops = flown(scale=0.004)
    graph = loops.finder.placed()[1] @ loops.finder.chains.poses
    assert loops.settle(is_last=True)
    last = loops.correct(Reconstruction(0, ()), lambda _: None)
    assert last.corrections is not None
    found = last.corrections.map_from_odometry @ loops.finder.chains.poses
    assert error(rigid(found)) < 0.3 * error(rigid(graph))
    (event,) = last.events
    assert event.startswith("60 keyframes were adjusted by ")


def test_a_thread_of_its_own_leaves_the_path_to_the_graph():
    """Adjusting all keyframes takes seconds, which a live stream may not have."""
    loops = LoopClosure(in_background=True)
    odometry = flights.drifting(TRUTH, np.random.default_rng(0))
    flights.closed(loops, flights.reconstructions(TRUTH[:20], odometry[:20]))
    loops.settle(is_last=True)
    loops.finish()
    assert not loops.correct(Reconstruction(0, ()), lambda _: None).events


def test_similarities_keep_their_units_apart_from_their_poses(world, better):
    """A world in another unit gives the same in that unit."""
    factor = similarity(3.0, np.eye(3), np.zeros(3))
    bigger = factor @ world.poses
    found = adjusted(World(world.corners, bigger, world.chains, world.loops)).poses
    np.testing.assert_allclose(found[:, :3, 3], 3.0 * better.poses[:, :3, 3], atol=0.01)


def test_a_map_that_is_saved_is_adjusted_and_the_stream_goes_on_as_it_was():
    loops = LoopClosure(in_background=True)
    odometry = flights.drifting(TRUTH, np.random.default_rng(0))
    for frame, preprocessor, result in flights.reconstructions(TRUTH, odometry):
        loops.remember(frame, preprocessor)
        loops.correct(result, lambda geometry: None)
        loops.finish()
    adjusted_map = adjusted_map_so_far(loops, "a" * 64, "imu")
    worlds, before = loops.finder.placed()
    saved = adjusted_map()
    assert len(saved.keyframes) == len(TRUTH)
    assert error(saved.poses) < 0.3 * error(rigid(before @ loops.finder.chains.poses))
    as_it_is = map_so_far(loops, "a" * 64, "imu")
    after = loops.finder.placed()
    np.testing.assert_array_equal(after[0], worlds)
    np.testing.assert_array_equal(after[1], before)
    np.testing.assert_allclose(as_it_is.poses, rigid(before @ loops.finder.chains.poses), atol=1e-9)


@pytest.mark.parametrize("failure", [MemoryError(), np.linalg.LinAlgError("no solution")])
def test_where_adjusting_fails_path_and_map_are_as_the_graph_has_them(failure, monkeypatch):
    def fail(*_):
        raise failure

    loops = flown()
    graph = loops.finder.placed()[1]
    adjusted_map = adjusted_map_so_far(loops, "a" * 64, "imu")
    monkeypatch.setattr(loop_finder, "adjusted_worlds", fail)
    loops.settle(is_last=True)
    (event,) = loops.correct(Reconstruction(0, ()), lambda _: None).events
    assert event.startswith("keyframes were not adjusted together: ")
    assert (str(failure) or "MemoryError") in event
    np.testing.assert_array_equal(loops.finder.placed()[1], graph)
    assert len(adjusted_map().keyframes) == len(TRUTH)
