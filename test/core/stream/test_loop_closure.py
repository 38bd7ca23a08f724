"""Flights that come back: drift goes, look-alike rooms are not taken for one, odometry goes on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support import drifting_flight as flights
from support import known_room as room
from support import streams

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.geometry.similarities import inverse_similarity, motion_of, scale_of
from qvggt_core.stream import correction_in_parts, loop_finder
from qvggt_core.stream.frame import Reconstruction, Scale, Up
from qvggt_core.stream.gravity import levelling
from qvggt_core.stream.keyframe_chain import Loop, correct
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.loop_finder import LoopFinder


def from_first(truth):
    return FLU_FROM_OPTICAL @ inverse(truth[0]) @ truth


def error(poses, truth):
    """Return how far poses are off (RMS), both from the first one."""
    return np.sqrt(np.square(poses[:, :3, 3] - from_first(truth)[:, :3, 3]).sum(axis=1).mean())


@pytest.fixture(scope="module")
def two_laps():
    """A flight of two laps, what odometry makes of it, and its reconstruction."""
    truth = flights.circle(60, 1.8)
    odometry = flights.drifting(truth, np.random.default_rng(0))
    return truth, odometry, list(flights.reconstructions(truth, odometry))


@pytest.fixture(scope="module")
def closed(two_laps):
    return flights.closed(LoopClosure(), two_laps[2])


def test_a_drifting_flight_closes_its_loop(two_laps, closed):
    truth, odometry, _ = two_laps
    assert closed[-1].loops.accepted >= 4
    corrections = [result.corrections for result in closed if result.corrections is not None][-1]
    numbers = corrections.stamps_ns // flights.PERIOD_NS
    corrected = corrections.map_from_odometry @ odometry[numbers]
    assert error(corrected, truth[numbers]) < 0.5 * error(odometry[numbers], truth[numbers])


def test_odometry_is_what_goes_out_without_the_correction(two_laps, closed):
    odometry = two_laps[1]
    without = np.stack([inverse(r.map_from_odometry) @ r.frames[0].map_from_camera for r in closed])
    np.testing.assert_allclose(without, odometry, atol=1e-9)
    jumps = [(a.map_from_odometry != b.map_from_odometry).any() for a, b in pairwise(closed)]
    assert 0 < sum(jumps) < 30
    for result in closed:
        assert scale_of(result.map_from_odometry) == pytest.approx(1.0)


def test_the_correction_is_reported(closed):
    status = closed[-1].loops
    assert status.keyframes == 60
    assert 0.0 < status.shift < 0.5
    assert 0.0 < status.turn < 0.2
    assert status.rejected


def test_a_thread_of_its_own_finds_the_same(two_laps, closed):
    loops = LoopClosure(in_background=True)
    for frame, preprocessor, result in two_laps[2]:
        loops.remember(frame, preprocessor)
        loops.correct(result, lambda geometry: None)
        loops.finish()
    last = loops.correct(two_laps[2][-1][2], lambda geometry: None)
    np.testing.assert_allclose(
        last.frames[0].map_from_camera, closed[-1].frames[0].map_from_camera, atol=1e-9
    )
    assert last.loops.accepted == closed[-1].loops.accepted


def copies_of_a_room(seed):
    """Return a flight through a room, on, and through a room that looks just the same."""
    lap = flights.circle(30, 0.9)
    on = transform(np.eye(3), [11.0, 0.0, 0.0])
    way = np.tile(lap[-1], (15, 1, 1))
    way[:, :3, 3] += np.linspace(0, 1, 15)[:, None] * ((on @ lap[0])[:3, 3] - lap[-1, :3, 3])
    seen = np.concatenate([lap, way, lap])
    truth = np.concatenate([lap, way, on @ lap])
    # On the way between, the camera looks at a wall that is in neither room.
    seen[30:45] = flights.circle(15, 0.3, radius=3.0)
    odometry = flights.drifting(truth, np.random.default_rng(seed))
    return truth, odometry, seen


@pytest.mark.parametrize("seed", range(2))
def test_rooms_that_look_the_same_are_not_taken_for_one(seed):
    truth, odometry, seen = copies_of_a_room(seed)
    loops = LoopClosure()
    results = flights.closed(loops, flights.reconstructions(truth, odometry, seen))
    between = [(loop.first, loop.second) for loop in loops.finder.loops]
    assert not [pair for pair in between if pair[0] < 30 and pair[1] >= 45]
    assert results[-1].loops.rejected["the way between contradicts it"] >= 20
    live = np.stack([result.frames[0].map_from_camera for result in results])
    np.testing.assert_allclose(live[45:], odometry[45:], atol=0.3)


def test_segments_that_see_the_same_place_are_joined():
    truth = flights.circle(50, 1.6)
    first = flights.drifting(truth[:25], np.random.default_rng(1))
    second = flights.drifting(truth[25:], np.random.default_rng(2))
    loops = LoopClosure()
    results = flights.closed(loops, flights.reconstructions(truth[:25], first))

    def flight():
        for frame, preprocessor, result in flights.reconstructions(
            truth[25:], second, first=25, segment=3
        ):
            frames = tuple(geometry.scaled(0.5) for geometry in result.frames)
            yield frame, preprocessor, replace(result, frames=frames)

    results += flights.closed(loops, flight())
    assert [result.segment for result in results[:30]] == [0] * 25 + [3] * 5
    assert results[-1].segment == 0
    corrections = [result.corrections for result in results if result.corrections is not None][-1]
    assert set(corrections.worlds.tolist()) == {0}
    # The unit is that of the newest keyframe: half of the first segment's.
    assert scale_of(corrections.map_from_odometry[:20]) == pytest.approx(0.5, rel=0.1)
    found = np.stack([result.frames[0].map_from_camera for result in results[-3:]])
    expected = from_first(truth)[-3:, :3, 3]
    assert np.linalg.norm(2.0 * found[:, :3, 3] - expected, axis=1).max() < 0.6


def test_the_scale_and_the_vertical_may_become_known_on_the_way(two_laps, closed):
    """Metres and up after 35 frames: what was before is kept in the new gauge."""
    turn = Rotation.from_euler("xy", [0.1, -0.2]).as_matrix()
    up = Up(turn.T[:, 2], "imu", 0.01)
    level = transform(levelling(up.direction), np.zeros(3))

    def flight():
        for index, (frame, preprocessor, result) in enumerate(two_laps[2]):
            if index >= 35:
                frames = tuple(each.scaled(3.0).moved(level) for each in result.frames)
                scale = Scale(3.0, sigma=0.03)
                result = replace(result, frames=frames, scale=scale, up=up)
            yield frame, preprocessor, result

    results = flights.closed(LoopClosure(), flight())
    found, same = (
        np.stack([result.frames[0].map_from_camera[:3, 3] for result in each[-8:]])
        for each in (results, closed)
    )
    correction = 3.0 * (same - two_laps[1][-8:, :3, 3])
    off = np.linalg.norm(found - 3.0 * same @ level[:3, :3].T, axis=1).max()
    assert results[-1].loops.accepted == closed[-1].loops.accepted
    assert off < 0.3 * np.linalg.norm(correction, axis=1).min()


def test_a_long_life_is_bounded(two_laps):
    loops = LoopClosure()
    loops.finder.store._max_keyframes = 50
    results = flights.closed(loops, two_laps[2])
    assert results[-1].loops.keyframes <= 50
    assert len(loops.finder.chains) == len(loops.finder.store)
    assert results[-1].loops.accepted >= 3


def test_a_place_that_is_seen_for_hours_does_not_hold_all_keyframes(two_laps):
    """Each keyframe is the end of a loop, and none would ever be left out."""
    loops = LoopClosure()
    flights.closed(loops, two_laps[2][:12])
    finder, stored = LoopFinder(), loops.finder.store.keyframes
    for number in range(96):
        finder.store.append(stored[number % 12])
        finder.chains.append(loops.finder.chains.poses[number % 12], np.eye(7), 0)
    finder.loops = [Loop(number % 24, number, np.eye(4), np.eye(7)) for number in range(24, 96)]
    finder._thin()
    assert len(finder.store) == len(finder.chains) == 96 - 9
    assert len(finder.loops) == 96 // 8
    assert all(0 <= loop.first < loop.second < len(finder.store) for loop in finder.loops)


def test_a_reset_forgets_all(two_laps):
    loops = LoopClosure()
    flights.closed(loops, two_laps[2][:3])
    loops.reset()
    assert loops.finder.store.keyframes == []
    assert isinstance(loops.finder, LoopFinder)


def test_frames_that_are_lost_are_no_keyframes(two_laps):
    loops = LoopClosure()
    lost = [
        (frame, preprocessor, replace(result, frames=(replace(result.frames[0], is_lost=True),)))
        for frame, preprocessor, result in two_laps[2][:3]
    ]
    assert flights.closed(loops, lost)[-1].loops.keyframes == 0


def test_a_graph_without_a_solution_costs_the_loop():
    finder = LoopFinder()
    for pose in from_first(flights.circle(4, 0.1)):
        finder.chains.append(pose, np.eye(7), 1)
    finder.loops = [Loop(0, 3, np.eye(4), np.zeros((7, 7)))]
    finder.rebase(0, 1.0, np.eye(3))
    assert finder.loops == []
    assert finder.rejected == {"the graph has no solution with it": 1}
    assert finder.placement is None


def test_where_no_place_is_seen_again_nothing_changes():
    poses = room.straight(16)
    off, on = (
        streams.run(streams.start(poses, loop_closure=is_on)[0], room.frames(poses))
        for is_on in (False, True)
    )
    assert all(result.loops is None for result in off)
    assert on[-1].loops.keyframes >= 6
    assert on[-1].loops.accepted == 0
    for one, other in zip(streams.geometries(off), streams.geometries(on), strict=True):
        np.testing.assert_array_equal(one.map_from_camera, other.map_from_camera)
        np.testing.assert_array_equal(one.depth, other.depth)


def test_the_parameter_may_change_while_running():
    poses = room.straight(24)
    reconstructor, _ = streams.start(poses, loop_closure=True)
    frames = room.frames(poses)
    first = [result for frame in frames[:12] for result in reconstructor.add(frame)]
    reconstructor.set_parameters(reconstructor.parameters.with_values(loop_closure=False))
    second = [result for frame in frames[12:20] for result in reconstructor.add(frame)]
    reconstructor.set_parameters(reconstructor.parameters.with_values(loop_closure=True))
    third = [result for frame in frames[20:] for result in reconstructor.add(frame)]
    assert first[-1].loops.keyframes > 4
    assert all(result.loops is None for result in second)
    assert 0 < third[-1].loops.keyframes <= 5


def test_a_copy_of_a_room_is_not_joined_if_the_camera_cannot_have_come_there():
    """Lost for a tenth of a second at the end of a room, and at its other side again."""
    truth = flights.circle(50, 1.6)
    first = flights.drifting(truth[:25], np.random.default_rng(1))
    first[-1, :3, 3] += 10.0
    second = flights.drifting(truth[25:], np.random.default_rng(2))
    loops = LoopClosure()
    flights.closed(loops, flights.reconstructions(truth[:25], first))
    results = flights.closed(
        loops, flights.reconstructions(truth[25:], second, first=25, segment=1)
    )
    assert {result.segment for result in results} == {1}
    assert results[-1].loops.accepted == 0
    assert results[-1].loops.rejected["the way between contradicts it"] >= 3


def test_what_is_not_solved_yet_is_at_the_end_of_the_flight(two_laps, monkeypatch):
    """A part of the graph with each keyframe, or all at once: the last correction is the same."""
    monkeypatch.setattr(correction_in_parts, "_OVERHEAD", 1000)
    slow = LoopClosure()
    flights.closed(slow, two_laps[2])
    assert slow.settle()
    last = slow.correct(Reconstruction(0, ()), lambda _: None)
    assert last.corrections is not None
    assert not slow.settle()
    whole = correct(slow.finder.chains, slow.finder.loops, slow.finder._scale_sigma)
    wanted = whole.poses @ inverse_similarity(slow.finder.chains.poses)
    found = last.corrections.map_from_odometry
    apart = motion_of(inverse_similarity(found[0]) @ found[-1])
    expected = motion_of(inverse_similarity(wanted[0]) @ wanted[-1])
    np.testing.assert_allclose(apart, expected, atol=1e-5)


def test_more_loops_than_one_graph_may_have_are_left_out_evenly(two_laps, monkeypatch):
    monkeypatch.setattr(loop_finder, "MOST_LOOPS", 2)
    loops = LoopClosure()
    results = flights.closed(loops, two_laps[2])
    assert results[-1].loops.accepted > 3
    assert 1 <= len(loops.finder.loops) <= 3
