"""A camera in a map of another day: found, lost, kidnapped, and never taken to be elsewhere."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from support import drifting_flight as flights
from support import mapped_room, streams
from support.plain_parameters import PLAIN

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, rotation_angle, transform
from qvggt_core.geometry.similarities import rigid
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.corrected_path import corrections_at
from qvggt_core.stream.deferred import DeferredReconstructor
from qvggt_core.stream.frame import Scale, Up
from qvggt_core.stream.gravity import levelling
from qvggt_core.stream.localiser import MapLocaliser
from qvggt_core.stream.loop_closure import LoopClosure

METRES = Scale(1.0, "odometry", sigma=0.03)
# Between the poses of the map, and beside them.
TRUTH = flights.circle(40, 0.6, radius=2.15)[7:19]
ODOMETRY = flights.drifting(TRUTH, np.random.default_rng(3))
EXPECTED = mapped_room.MAP_FROM_ROOM @ TRUTH


def localised(flight, is_metric=True):
    return flights.closed(LoopClosure(saved=mapped_room.saved(is_metric)), flight)


@pytest.fixture(scope="module")
def found():
    return localised(mapped_room.in_units(TRUTH, ODOMETRY, METRES))


def poses(results):
    return np.stack([result.frames[0].map_from_camera for result in results])


def test_after_three_keyframes_the_camera_is_where_it_is_in_the_map(found):
    assert [result.segment for result in found] == [1] * 2 + [0] * (len(found) - 2)
    assert {result.odometry_segment for result in found[2:]} == {1}
    apart = inverse(EXPECTED[2:]) @ poses(found)[2:]
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.15
    assert np.degrees(rotation_angle(apart[:, :3, :3])).max() < 2.5
    assert [event for result in found for event in result.events] == [
        "not localised in map box yet",
        "localised in map box after 3 keyframes",
    ]
    assert [result.loops.is_in_loaded_map for result in found] == [False] * 2 + [True] * 10


def test_odometry_goes_on_without_a_jump(found):
    without = [
        inverse(result.map_from_odometry) @ pose
        for result, pose in zip(found, poses(found), strict=True)
    ]
    np.testing.assert_allclose(without, ODOMETRY, atol=1e-9)
    jumps = sum((a.map_from_odometry != b.map_from_odometry).any() for a, b in pairwise(found))
    assert jumps >= 3


def test_what_came_before_is_in_the_map_afterwards(found):
    stamps = np.array([result.frames[0].view.stamp_ns for result in found])
    worlds, moves = corrections_at(stamps, np.ones(len(stamps), int), found[-1].corrections)
    assert set(worlds.tolist()) == {0}
    apart = inverse(EXPECTED) @ rigid(moves @ ODOMETRY)
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.25


def test_the_map_is_not_changed(found):
    saved = mapped_room.saved()
    before = saved.poses.copy()
    localiser = MapLocaliser(saved)
    assert localiser.status.keyframes == len(saved.keyframes) == found[-1].loops.keyframes
    np.testing.assert_array_equal(saved.poses, before)


@pytest.mark.parametrize("is_metric", [True, False])
def test_without_metres_lengths_stay_those_of_odometry(is_metric):
    results = localised(mapped_room.in_units(TRUTH[:6], ODOMETRY[:6], unit=4.0), is_metric)
    assert results[-1].segment == 0
    apart = 4.0 * poses(results)[-1][:3, 3] - EXPECTED[5, :3, 3]
    assert np.linalg.norm(apart) < 0.25


def test_a_metric_map_gives_the_length_of_a_unit():
    loops = LoopClosure(saved=mapped_room.saved())
    results = flights.closed(loops, mapped_room.in_units(TRUTH[:4], ODOMETRY[:4], unit=4.0))
    length = loops.take_length()
    assert results[-1].segment == 0
    assert length.metres == pytest.approx(4.0, rel=0.05)
    assert length.source == "saved map"
    assert loops.take_length() is None


def test_a_map_without_metres_gives_none():
    loops = LoopClosure(saved=mapped_room.saved(False))
    flights.closed(loops, mapped_room.in_units(TRUTH[:4], ODOMETRY[:4], unit=4.0))
    assert loops.take_length() is None


def test_metres_that_differ_are_no_place():
    results = localised(mapped_room.in_units(TRUTH[:6], ODOMETRY[:6], METRES, unit=2.0))
    assert {result.segment for result in results} == {1}
    assert results[-1].loops.rejected["the map has other metres"] == 6


def test_a_keyframe_without_depth_is_no_place_and_the_next_ones_are():
    """The first frame of a segment is looked up whatever it shows."""
    flight = list(mapped_room.in_units(TRUTH[:6], ODOMETRY[:6], METRES))
    frame, preprocessor, result = flight[0]
    blind = replace(result.frames[0], depth=np.full_like(result.frames[0].depth, np.nan))
    flight[0] = (frame, preprocessor, replace(result, frames=(blind,)))
    results = localised(flight)
    assert results[-1].loops.rejected["the keyframe has no depth"] == 1
    assert [result.segment for result in results] == [1] * 3 + [0] * 3


def test_a_kidnapped_camera_is_found_again():
    """Carried to another place with its eyes shut: a segment begins, and is found too."""
    loops = LoopClosure(saved=mapped_room.saved())
    flights.closed(loops, mapped_room.in_units(TRUTH[:4], ODOMETRY[:4], METRES))
    there = flights.circle(40, 0.6, radius=1.9)[26:32]
    odometry = flights.drifting(there, np.random.default_rng(4))
    results = flights.closed(
        loops, mapped_room.in_units(there, odometry, METRES, segment=2, first=50)
    )
    assert [result.segment for result in results] == [2] * 2 + [0] * 4
    apart = inverse(mapped_room.MAP_FROM_ROOM @ there)[-1] @ poses(results)[-1]
    assert np.linalg.norm(apart[:3, 3]) < 0.15
    events = [event for result in results for event in result.events]
    assert events[0] == "not localised in map box yet"


def test_a_place_that_is_not_in_the_map_is_not_found():
    away = flights.circle(60, 1.0)[46:51]
    results = localised(
        mapped_room.in_units(away, flights.drifting(away, np.random.default_rng(0)), METRES)
    )
    assert {result.segment for result in results} == {1}
    assert all(np.array_equal(result.map_from_odometry, np.eye(4)) for result in results)


def test_where_two_places_of_the_map_look_alike_the_camera_is_in_neither():
    results = flights.closed(
        LoopClosure(saved=mapped_room.twice()),
        mapped_room.in_units(TRUTH[:6], ODOMETRY[:6], METRES),
    )
    assert {result.segment for result in results} == {1}
    assert results[-1].loops.rejected["places of the map look alike"] == 6


def test_a_place_that_later_images_contradict_is_given_up():
    """Odometry goes straight on, and what is seen jumps to elsewhere in the map."""
    loops = LoopClosure(saved=mapped_room.saved())
    seen = np.concatenate([TRUTH[:5], flights.circle(40, 0.6, radius=1.9)[26:33]])
    results = flights.closed(
        loops, mapped_room.in_units(TRUTH, FLU_FROM_OPTICAL @ TRUTH, METRES, seen_from=seen)
    )
    assert [result.segment for result in results] == [1] * 2 + [0] * 5 + [1] * 3 + [0] * 2
    assert results[-1].loops.rejected["it contradicts the place so far"] == 1
    apart = inverse(mapped_room.MAP_FROM_ROOM @ seen)[-1] @ poses(results)[-1]
    assert np.linalg.norm(apart[:3, 3]) < 0.25


def test_the_vertical_of_odometry_may_become_known_on_the_way(found):
    up = Up(np.array([0.1, -0.2, 1.0]) / np.linalg.norm([0.1, -0.2, 1.0]), "imu", 0.01)
    level = transform(levelling(up.direction), np.zeros(3))

    def flight():
        for index, (frame, preprocessor, result) in enumerate(
            mapped_room.in_units(TRUTH, ODOMETRY, METRES)
        ):
            if index >= 6:
                frames = tuple(each.moved(level) for each in result.frames)
                result = replace(result, frames=frames, up=up)
            yield frame, preprocessor, result

    results = localised(flight())
    assert [result.segment for result in results] == [1] * 2 + [0] * 10
    apart = inverse(EXPECTED) @ poses(results)
    assert np.linalg.norm(apart[-4:, :3, 3], axis=1).max() < 0.2


def through_a_network(truth, saved):
    """Return the reconstructor and what it gives of a flight, by a network without a unit."""
    network = mapped_room.BoxNetwork(truth)
    parameters = PLAIN.with_values(loop_closure=True, window_size=4, window_stride=2)
    reconstructor = Reconstructor(network, parameters, loops=LoopClosure(saved=saved))
    frames = [
        Frame(1_000_000_000 + index * flights.PERIOD_NS, image, flights.CAMERA, "camera")
        for index, image in enumerate(mapped_room.pictures(truth))
    ]
    return reconstructor, network, streams.run(reconstructor, frames)


@pytest.fixture(scope="module")
def metric():
    return through_a_network(TRUTH, mapped_room.saved())


def test_a_stream_gets_its_metres_from_the_map_and_is_in_it(metric):
    _, network, results = metric
    assert results[0].segment == 1
    assert results[0].scale.metres_per_unit is None
    last = [result for result in results if result.frames][-1]
    assert last.segment == 0
    assert last.scale.source == "saved map"
    assert last.scale.metres_per_unit == pytest.approx(network.units[0], rel=0.04)
    found = np.stack([frame.map_from_camera for frame in last.frames])
    apart = inverse(EXPECTED[-len(found) :]) @ found
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.1


def test_a_reset_begins_outside_the_map_again(metric):
    reconstructor = metric[0]
    reconstructor.reset()
    assert reconstructor.segment == 1
    assert reconstructor._loops.finder.map_from_odometry is None


def test_what_waits_for_metres_is_in_the_map_too():
    """A recording's first results wait until the map gives the scale, and stay where they were."""
    network = mapped_room.BoxNetwork(TRUTH)
    parameters = PLAIN.with_values(loop_closure=True, window_size=4, window_stride=2)
    inner = Reconstructor(network, parameters, loops=LoopClosure(saved=mapped_room.saved()))
    frames = [
        Frame(1_000_000_000 + index * flights.PERIOD_NS, image, flights.CAMERA, "camera")
        for index, image in enumerate(mapped_room.pictures(TRUTH))
    ]
    results = [r for r in streams.run(DeferredReconstructor(inner), frames) if r.frames]
    assert {result.scale.metres_per_unit is not None for result in results} == {True}
    in_map = [result for result in results if result.segment == 0]
    found = np.stack([frame.map_from_camera for each in in_map for frame in each.frames])
    apart = inverse(EXPECTED[-len(found) :]) @ found
    assert len(found) >= len(TRUTH) // 2
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.15
