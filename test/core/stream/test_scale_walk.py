"""A random walk seen through noise: as good as by one who knows how fast it walks."""

import numpy as np
import pytest

from qvggt_core.stream.scale_walk import walk_at

COUNT, STEP = 48, 0.5


def smoothed(values, walk, noise):
    """The state of a walk at each place by a Kalman filter and Rauch's way back: (N,)."""
    mean, variance = [values[0]], [noise**2]
    for value in values[1:]:
        expected = variance[-1] + walk**2
        gain = expected / (expected + noise**2)
        mean.append(mean[-1] + gain * (value - mean[-1]))
        variance.append((1.0 - gain) * expected)
    result = [mean[-1]]
    for before, known in zip(mean[-2::-1], variance[-2::-1], strict=True):
        share = known / (known + walk**2)
        result.append(before + share * (result[-1] - before))
    return np.array(result[::-1])


@pytest.mark.parametrize("at", [0, COUNT // 2, COUNT - 1])
@pytest.mark.parametrize("speed", [0.004, 0.015, 0.06])
def test_it_does_as_well_as_a_smoother_that_knows_speed_and_noise(speed, at):
    noise, places = 0.01, STEP * np.arange(COUNT)
    errors, best, claimed = [], [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        walk = 1.1 + np.cumsum(speed * np.sqrt(STEP) * rng.standard_normal(COUNT))
        values = walk + noise * rng.standard_normal(COUNT)
        # Claimed to be half of what it is.
        found = walk_at(places[at], places, values, np.full(COUNT, 0.5 * noise), (0.5, 1, 2, 4))
        errors.append(found.value - walk[at])
        claimed.append(found.variance)
        best.append(smoothed(values, speed * np.sqrt(STEP), noise)[at] - walk[at])
    assert np.sqrt(np.mean(np.square(errors))) < 1.15 * np.sqrt(np.mean(np.square(best)))
    assert 0.75 < np.sqrt(np.mean(np.square(errors) / claimed)) < 1.3


def test_one_observation_is_the_answer_where_it_was_and_less_sure_elsewhere():
    there = walk_at(3.0, np.array([3.0]), np.array([0.7]), np.array([0.01]))
    further = walk_at(7.0, np.array([3.0]), np.array([0.7]), np.array([0.01]))
    assert there.value == pytest.approx(0.7, abs=1e-6)
    assert np.sqrt(there.variance) == pytest.approx(0.01, rel=1e-2)
    assert further.value == pytest.approx(0.7, abs=1e-5)
    assert further.variance > there.variance + 4 * 0.01**2


def test_the_order_and_the_origin_do_not_count():
    rng = np.random.default_rng(3)
    places, values = rng.uniform(0, 20, 30), 0.02 * rng.standard_normal(30)
    noise = np.full(30, 0.01)
    one = walk_at(8.0, places, values, noise)
    order = rng.permutation(30)
    other = walk_at(508.0, 500.0 + places[order], 2.0 + values[order], noise)
    assert other.value - 2.0 == pytest.approx(one.value, abs=1e-6)
    assert other.variance == pytest.approx(one.variance, rel=1e-3)
