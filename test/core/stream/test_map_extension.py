"""A saved map that grows: what is new is added where it is, and is found by the next flight."""

from dataclasses import replace

import numpy as np
import pytest
from support import drifting_flight as flights
from support import mapped_room

from qvggt_core.errors import MapError
from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.stream.frame import Scale
from qvggt_core.stream.keyframe_store import KeyframeStore
from qvggt_core.stream.loaded_map import map_so_far
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.map_extension import extended

METRES = Scale(1.0, "odometry", sigma=0.03)
# From what is mapped, six tenths of a lap, into what is not.
TRUTH = flights.circle(60, 1.0, radius=2.1)[26:56]
ODOMETRY = flights.drifting(TRUTH, np.random.default_rng(3))
EXPECTED = mapped_room.MAP_FROM_ROOM @ TRUTH
NEW = flights.circle(60, 1.0, radius=2.05)[45:53]
DAY_NS = 86_400 * 10**9


def growing(saved, flight):
    loops = LoopClosure(saved=saved, localization_only=False)
    return loops, flights.closed(loops, flight)


@pytest.fixture(scope="module")
def grown():
    return growing(mapped_room.saved(), mapped_room.in_units(TRUTH, ODOMETRY, METRES))


def last_pose(results):
    return results[-1].frames[0].map_from_camera


def test_the_camera_is_in_the_map_once_three_keyframes_agree(grown):
    _, results = grown
    segments = [result.segment for result in results]
    assert segments[0] == 1
    begin = segments.index(0)
    assert begin <= 5
    assert set(segments[begin:]) == {0}
    events = [event for result in results for event in result.events]
    assert events == ["not localised in map box yet", "localised in map box, which grows"]
    assert results[-1].loops.is_in_loaded_map
    apart = inverse(EXPECTED[begin : begin + 4]) @ np.stack(
        [result.frames[0].map_from_camera for result in results[begin : begin + 4]]
    )
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.15


def test_new_keyframes_become_part_of_the_map(grown):
    loops, _ = grown
    before = mapped_room.saved()
    after = map_so_far(loops, mapped_room.NETWORK, "first camera")
    assert len(after.keyframes) == len(before.keyframes) + len(TRUTH)
    assert (after.name, after.up_source, after.is_metric) == ("box", "imu", True)
    apart = inverse(before.poses) @ after.poses[: len(before.poses)]
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.05
    apart = inverse(EXPECTED) @ after.poses[len(before.poses) :]
    assert np.linalg.norm(apart[:, :3, 3], axis=1).max() < 0.5
    assert np.degrees(rotation_angle(apart[:, :3, :3])).max() < 8.0


def test_the_next_flight_finds_itself_where_only_the_last_one_was(grown):
    odometry = flights.drifting(NEW, np.random.default_rng(5))
    found = []
    for saved in (mapped_room.saved(), map_so_far(grown[0], mapped_room.NETWORK, "")):
        loops = LoopClosure(saved=saved)
        found.append(flights.closed(loops, mapped_room.in_units(NEW, odometry, METRES)))
    assert [results[-1].loops.is_in_loaded_map for results in found] == [False, True]
    apart = inverse(mapped_room.MAP_FROM_ROOM @ NEW[-1]) @ last_pose(found[1])
    assert np.linalg.norm(apart[:3, 3]) < 0.5


def test_a_map_that_is_not_changed_is_not_saved_again():
    loops = LoopClosure(saved=mapped_room.saved())
    with pytest.raises(MapError, match="localization_only"):
        map_so_far(loops, mapped_room.NETWORK, "imu")


def test_a_metric_map_gives_the_length_of_a_unit_and_keeps_its_own():
    loops, results = growing(
        mapped_room.saved(), mapped_room.in_units(TRUTH[:7], ODOMETRY[:7], unit=4.0)
    )
    length = loops.take_length()
    assert results[-1].segment == 0
    assert length.metres == pytest.approx(4.0, rel=0.05)
    assert length.source == "saved map"


def test_metres_that_differ_join_nothing():
    _, results = growing(
        mapped_room.saved(), mapped_room.in_units(TRUTH[:8], ODOMETRY[:8], METRES, unit=2.0)
    )
    assert {result.segment for result in results} == {1}
    assert results[-1].loops.rejected["the map has other metres"] >= 4


def test_where_two_places_of_the_map_look_alike_nothing_is_added_to_either():
    _, results = growing(mapped_room.twice(), mapped_room.in_units(TRUTH[:8], ODOMETRY[:8], METRES))
    assert {result.segment for result in results} == {1}
    assert results[-1].loops.rejected["places of the map look alike"] >= 4


def test_a_map_of_a_clock_that_was_ahead_is_a_map_all_the_same(grown):
    saved = mapped_room.saved()
    ahead = replace(
        saved,
        keyframes=tuple(replace(each, stamp_ns=each.stamp_ns + DAY_NS) for each in saved.keyframes),
    )
    loops, results = growing(ahead, mapped_room.in_units(TRUTH, ODOMETRY, METRES))
    np.testing.assert_allclose(last_pose(results), last_pose(grown[1]), atol=1e-9)
    one, other = (
        [each.corrections.stamps_ns.tolist() for each in flight if each.corrections is not None]
        for flight in (results, grown[1])
    )
    assert one == other
    one, other = (map_so_far(each, "", "").poses for each in (loops, grown[0]))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_where_keyframes_are_left_out_the_others_stay_in_place(grown):
    finder = grown[0].finder
    worlds, moves = finder.placed()
    kept = np.arange(0, len(worlds), 2)
    thinner = extended(mapped_room.saved())
    thinner.store, thinner.chains = KeyframeStore(), replace(finder.chains)
    thinner.store.keyframes = list(finder.store.keyframes)
    for row in range(len(worlds)):
        thinner.store.index.append(finder.store.index.row(row))
    thinner._solved = finder._solved
    thinner._leave_out_all_but(kept)
    for found, expected in zip(thinner.placed(), (worlds[kept], moves[kept]), strict=True):
        np.testing.assert_allclose(found, expected)


def test_a_reset_leaves_the_map_as_it_was_loaded(grown):
    loops, _ = growing(mapped_room.saved(), mapped_room.in_units(TRUTH[:8], ODOMETRY[:8], METRES))
    loops.reset()
    assert len(loops.finder.store) == len(mapped_room.saved().keyframes)
    assert not loops.finder.status.is_in_loaded_map
