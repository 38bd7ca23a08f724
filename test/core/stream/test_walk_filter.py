"""A random walk followed through noise and gross errors: as the exact posterior has it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from qvggt_core.stream.scale_estimate import DRIFT
from qvggt_core.stream.walk_filter import WalkFilter

SIGMA, STEP, CELL = 0.03, 0.3, 0.002


def walking(speed, count, seed, wrong=0.1):
    """A walk and what is observed of it, (N,) each; some observations are off by up to e."""
    rng = np.random.default_rng(seed)
    walk = 1.1 + np.cumsum(speed * np.sqrt(STEP) * rng.standard_normal(count))
    off = np.where(rng.random(count) < wrong, rng.uniform(-1, 1, count), 0.0)
    return walk, walk + off + SIGMA * rng.standard_normal(count)


def posterior(values, speed, noise, gross=0.5):
    """Value grid, density and logarithm of the evidence of a walk of known speed and noise."""
    grid = np.arange(-1.0, 3.2, CELL)
    density, evidence = np.full(len(grid), 1.0 / len(grid)), 0.0
    for number, value in enumerate(values):
        if number:
            density = gaussian_filter1d(density, speed * np.sqrt(STEP) / CELL, mode="constant")
        right, wrong = (
            np.exp(-0.5 * ((value - grid) / each) ** 2) / each
            for each in (noise, np.hypot(noise, gross))
        )
        density = density * (0.9 * right + 0.1 * wrong)
        evidence += np.log(density.sum())
        density /= density.sum()
    return grid, density, evidence


@pytest.mark.parametrize("seed", range(6))
def test_mean_and_variance_are_those_of_the_exact_posterior(seed):
    _, values = walking(0.02, 12, seed)
    tracked = WalkFilter()
    found = [tracked.observe(STEP if at else 0.0, value, SIGMA) for at, value in enumerate(values)]
    densities, weights = [], []
    for times in 2.0 ** np.arange(-3, 4):
        for factor in 2.0 ** np.arange(0.0, 2.5, 0.5):
            grid, density, evidence = posterior(values, times * DRIFT, factor * SIGMA)
            prior = (np.log(2.0 * times) / np.log(3.0)) ** 2 + (np.log(factor) / np.log(2.0)) ** 2
            densities.append(density)
            weights.append(evidence - 0.5 * prior)
    weights = np.exp(np.array(weights) - np.max(weights))
    density = weights @ np.array(densities) / weights.sum()
    mean = density @ grid
    sigma = np.sqrt(density @ (grid - mean) ** 2)
    assert found[-1].value == pytest.approx(mean, abs=0.1 * sigma)
    assert np.sqrt(found[-1].variance) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("speed", [0.004, 0.015, 0.06])
def test_it_does_as_well_as_one_who_knows_speed_and_noise(speed):
    errors, best, claimed = [], [], []
    for seed in range(60):
        walk, values = walking(speed, 120, seed)
        tracked = WalkFilter()
        found = [tracked.observe(STEP, value, SIGMA) for value in values][-1]
        grid, density, _ = posterior(values, speed, SIGMA)
        errors.append(found.value - walk[-1])
        claimed.append(found.variance)
        best.append(density @ grid - walk[-1])
    assert np.sqrt(np.mean(np.square(errors))) < 1.15 * np.sqrt(np.mean(np.square(best)))
    assert 0.7 < np.sqrt(np.mean(np.square(errors) / claimed)) < 1.4


def test_a_walk_that_becomes_faster_is_followed():
    rng = np.random.default_rng(1)
    speeds = np.repeat([0.002, 0.06], 150)
    walk = np.cumsum(speeds * np.sqrt(STEP) * rng.standard_normal(len(speeds)))
    tracked = WalkFilter()
    found = [tracked.observe(STEP, v, SIGMA) for v in walk + SIGMA * rng.standard_normal(len(walk))]
    late = np.array([each.value for each in found])[-100:] - walk[-100:]
    # What one observation alone has.
    assert np.sqrt((late**2).mean()) < SIGMA


def test_a_value_that_none_expected_leaves_numbers():
    tracked = WalkFilter()
    for _ in range(50):
        tracked.observe(STEP, 0.0, 1e-3)
    found = [tracked.observe(STEP, value, 1e-3) for value in (80.0, -700.0)][-1]
    assert np.isfinite([found.value, found.variance]).all()
