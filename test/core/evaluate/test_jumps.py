"""True paths that jump: to where nothing gets, for good, or from one thing to another."""

from __future__ import annotations

import numpy as np
import pytest

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.jumps import standstill, without_jumps
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.poses import transform

RATE_HZ = 10.0
COUNT = 40


def path(positions: np.ndarray, seconds: np.ndarray | None = None) -> Track:
    if seconds is None:
        seconds = np.arange(len(positions)) / RATE_HZ
    stamps = [round(1e9 * (1_700_000_000 + second)) for second in seconds]
    return Track(stamps, [transform(np.eye(3), position) for position in positions])


def circle(count: int = COUNT, radius: float = 3.0) -> np.ndarray:
    angle = np.linspace(0.0, 2.0, count)
    return radius * np.stack([np.cos(angle), np.sin(angle), 0.1 * angle], axis=1)


def moved(where, by) -> np.ndarray:
    positions = circle()
    positions[where] += by
    return positions


@pytest.mark.parametrize("far", [10.0, 1e3, 1e8])
@pytest.mark.parametrize("where", [[0], [17], [COUNT - 1], [3, 4, 5], [0, 20, 39]])
def test_few_poses_to_which_it_jumps_are_left_out_and_named(where, far) -> None:
    found = without_jumps(path(moved(where, [0.0, far, 0.0])))
    assert np.array_equal(found.track.positions, np.delete(circle(), where, axis=0))
    assert f"{len(where)} of {COUNT} true poses lie where nothing gets to" in found.note


@pytest.mark.parametrize("far", [10.0, 1e8])
@pytest.mark.parametrize("where", [slice(20, None), slice(0, 15), slice(10, 20), slice(0, 40, 5)])
def test_a_path_that_jumps_often_or_stays_away_gives_no_score(where, far) -> None:
    with pytest.raises(EvaluationError, match=r"true poses lie .* so there is no score"):
        without_jumps(path(moved(where, [far, 0.0, 0.0])))


def test_two_things_under_one_name_give_no_score() -> None:
    with pytest.raises(EvaluationError, match="two things are tracked under one name"):
        without_jumps(path(moved(slice(0, None, 2), [0.0, 0.0, 2.0])))


RNG = np.random.default_rng(1)
BURSTS = np.cumsum(np.tile([0.0999, 1e-6, 1e-6, 1e-4], COUNT // 4))
HONEST = {
    "a flight": (circle(), None),
    "far from the origin, as in UTM or ECEF": (circle() + np.array([4e5, 5e6, 1e3]), None),
    "a fast aircraft": (circle(radius=1200.0), None),
    "a pause of a minute": (circle(), np.arange(COUNT) / RATE_HZ + 60.0 * (np.arange(COUNT) > 9)),
    "stamps in bursts": (circle(), BURSTS),
    "standing still, with noise": (1e-3 * RNG.normal(size=(COUNT, 3)), None),
    "standing still": (np.ones((COUNT, 3)), None),
    "a start after standing": (np.repeat(circle(), [30] + [1] * (COUNT - 1), axis=0), None),
    "noise of two centimetres": (circle() + 0.02 * RNG.normal(size=(COUNT, 3)), None),
    "forth and back": (np.stack([np.abs(np.arange(40) - 20.0)] * 3, axis=1), None),
    "three poses": (circle(3), None),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_can_be_flown_is_left_as_it_is(name) -> None:
    positions, seconds = HONEST[name]
    found = without_jumps(path(positions, seconds))
    assert np.array_equal(found.track.positions, positions)
    assert found.note == ""


def test_poses_that_are_the_same_to_the_last_digit_are_named() -> None:
    held = circle()
    held[12:22] = held[12]
    assert "10 true poses from 1700000001.200 s to 1700000002.100 s are the same" in standstill(
        path(held)
    )
    assert standstill(path(circle())) == ""
    assert standstill(path(np.ones((COUNT, 3)))) == ""
    trembling = held + 1e-9 * RNG.normal(size=held.shape)
    assert standstill(path(trembling)) == ""


def test_stamps_in_a_gap_are_known() -> None:
    track = path(moved([7, 8], 1e6))
    found = without_jumps(track)
    stamps = track.stamps_ns
    between = [stamps[6], stamps[6] + 1, stamps[7], stamps[8], stamps[9] - 1, stamps[9]]
    assert found.holds(between) == [stamps[6], stamps[9]]
