"""Which poses belong together: tolerance, one to one, and clocks that differ."""

from __future__ import annotations

import numpy as np
import pytest

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.association import associate, estimate_offset, first_to_first
from qvggt_core.evaluate.track import Track

START_NS = 1_700_000_000_000_000_000


def track_at(seconds, positions=None):
    positions = np.zeros((len(seconds), 3)) if positions is None else positions
    poses = []
    for position in positions:
        pose = np.eye(4)
        pose[:3, 3] = position
        poses.append(pose)
    return Track([START_NS + round(s * 1e9) for s in seconds], poses)


def wave(seconds):
    """A path whose speed and direction change, so that position determines time."""
    t = np.asarray(seconds)
    return np.stack([np.sin(t) + 0.3 * t, np.cos(1.7 * t), 0.2 * np.sin(2.3 * t)], axis=1)


def test_each_pose_gets_the_nearest_truth_within_the_tolerance():
    found = associate(track_at([0.0, 1.0, 2.0, 3.0]), track_at([2.02, 1.004, 0.991, 9.0]), 0.01)
    assert found.own.tolist() == [1]
    assert found.truth.tolist() == [1]
    assert found.gaps_s == pytest.approx([0.004])


def test_a_true_pose_is_used_once_by_the_nearest():
    found = associate(track_at([0.0, 0.004, 1.0]), track_at([0.003, 1.0]), 0.01)
    assert found.own.tolist() == [1, 2]
    assert found.truth.tolist() == [0, 1]


def test_the_offset_is_added_to_the_stamps_of_the_truth():
    found = associate(track_at([0.0, 1.0]), track_at([100.0, 101.0]), 0.01, -100.0)
    assert found.own.tolist() == [0, 1]


def test_no_overlap_says_how_the_times_lie():
    with pytest.raises(EvaluationError, match=r"nearest is 97\.000 s away") as caught:
        associate(track_at([0, 1, 2, 3]), track_at([100, 101]))
    assert "1700000100.000 s to 1700000101.000 s" in str(caught.value)


def test_an_empty_side_is_named():
    with pytest.raises(EvaluationError, match="ground truth has no pose"):
        associate(track_at([0]), Track())


@pytest.mark.parametrize("offset", [0.0, 0.337, -2.15])
def test_the_clock_offset_is_found_from_the_motion(offset):
    own, true = np.arange(0, 20, 0.1), np.arange(-4, 24, 0.05)
    estimate = 0.2 * wave(own) @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + [3, 2, 1]
    truth = track_at(true - offset, wave(true))
    assert estimate_offset(track_at(own, estimate), truth) == pytest.approx(offset, abs=2e-3)


def test_clocks_that_are_far_apart_are_searched_from_first_to_first():
    own = np.arange(0, 20, 0.1)
    truth = track_at(own - 5000.25, wave(own))
    estimate = track_at(own, wave(own))
    assert first_to_first(estimate, truth) == pytest.approx(5000.25)
    assert estimate_offset(estimate, truth) == pytest.approx(5000.25, abs=2e-3)


def test_even_and_straight_motion_does_not_determine_the_offset():
    seconds = np.arange(0, 20, 0.1)
    line = np.outer(seconds, [1.0, 0.5, 0.0])
    with pytest.raises(EvaluationError, match="does not determine the clock offset"):
        estimate_offset(track_at(seconds, line), track_at(seconds, line))


def test_standing_still_does_not_determine_it_either():
    seconds = np.arange(0, 20, 0.1)
    with pytest.raises(EvaluationError, match="overlap and move"):
        estimate_offset(track_at(seconds), track_at(seconds, wave(seconds)))
