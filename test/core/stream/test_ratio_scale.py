"""Lengths of single images: followed as the map drifts, in spite of what is wrong."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from qvggt_core.stream.ratio_scale import RatioScale

SIGMA, STEP, CELL = 0.03, 0.3, 0.001


def followed(logs):
    """The logarithm of the scale after each ratio, (N,), NaN where there is none."""
    scale, found = RatioScale("range", 0.01, 3), []
    for index, log in enumerate(logs):
        scale.add(index, float(np.exp(log)), SIGMA, STEP * index)
        estimate = scale.estimate(1.0)
        found.append(np.nan if estimate is None else estimate.log_scale)
    return np.array(found)


def known(logs, speed):
    """The same by one who knows the speed: the exact posterior's median on a grid."""
    grid, found = np.arange(-2.5, 2.5, CELL), []
    density = np.ones(len(grid))
    for log in logs:
        density = gaussian_filter1d(density, speed * np.sqrt(STEP) / CELL, mode="constant")
        off = log - grid
        right = np.exp(-0.5 * (off / SIGMA) ** 2) / (SIGMA * np.sqrt(2.0 * np.pi))
        density = density * (0.9 * right + 0.1 * 0.5 * (np.abs(off) < 1.0 + 3.0 * SIGMA))
        density /= density.sum()
        found.append(np.interp(0.5, np.cumsum(density), grid))
    return np.array(found)


@pytest.mark.parametrize("speed", [0.005, 0.015, 0.03])
def test_a_drift_is_followed_as_by_one_who_knows_how_fast_it_is(speed):
    errors, best = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        unit = np.cumsum(speed * np.sqrt(STEP) * rng.standard_normal(300))
        wrong = np.where(rng.random(300) < 0.1, rng.uniform(-1, 1, 300), 0.0)
        logs = unit + wrong + SIGMA * rng.standard_normal(300)
        errors.append((followed(logs) - unit)[50:])
        best.append((known(logs, speed) - unit)[50:])
    assert np.sqrt(np.mean(np.square(errors))) < 1.07 * np.sqrt(np.mean(np.square(best)))


def test_lengths_in_a_row_that_are_wrong_alike_change_nothing():
    rng = np.random.default_rng(0)
    logs = SIGMA * rng.standard_normal(120)
    logs[60:72] += 0.4
    found = followed(logs)
    assert np.abs(found[20:]).max() < 0.04


def test_another_scale_is_taken_once_most_lengths_have_it():
    rng = np.random.default_rng(0)
    logs = SIGMA * rng.standard_normal(120)
    logs[60:] += 0.4
    found = followed(logs)
    assert np.abs(found[20:60]).max() < 0.04
    assert np.abs(found[85:] - 0.4).max() < 0.04
