"""A recording's scale by odometry: as good as by one who knows how fast the map's unit drifts."""

from itertools import pairwise

import numpy as np
import pytest

from qvggt_core.stream.frame import Scale, ScaleState
from qvggt_core.stream.path_alignment import Freedom
from qvggt_core.stream.position_scale import Fix, PositionKind, PositionScale
from qvggt_core.stream.scale_history import ScaleHistory

COUNT, ASKED = 44, (8, 22, 36)
NOISE = 0.012
"""Metres per root metre by which odometry is off along each axis."""

ODOMETRY = PositionKind("odometry", Freedom(noise=0.005), systematic=0.0, adds_up=True)


def to_and_fro():
    """True positions in a small place, 0.17 m from each other: the camera turns back often."""
    fine = np.linspace(0.0, 24.0, 6000)[:, None]
    path = np.array([0.5, 0.3, 0.15]) * np.sin(np.array([1.0, 1.7, 2.3]) * fine + [0.0, 1.0, 2.0])
    places = [path[0]]
    for each in path:
        if np.linalg.norm(each - places[-1]) >= 0.17:
            places.append(each)
    return np.array(places[:COUNT])


def recording(speed, seed, wrong=None):
    """The history of a map whose unit drifts, and what its unit truly is at each step.

    Args:
        speed: of the drift of the unit's logarithm, per root metre.
        seed: of drift and noise.
        wrong: index of the only place that odometry has 0.3 m beside the way.
    """
    rng, true = np.random.default_rng(seed), to_and_fro()
    steps = np.diff(true, axis=0)
    roots = np.sqrt(np.linalg.norm(steps, axis=1))
    log_unit = 0.5 + np.cumsum(speed * roots * rng.standard_normal(COUNT - 1))
    noisy = steps + NOISE * roots[:, None] * rng.standard_normal(steps.shape)
    shown = np.vstack([np.zeros(3), np.cumsum(noisy, axis=0)])
    if wrong is not None:
        shown[wrong] += [0.0, 0.0, 0.3]
    in_map = np.cumsum(steps / np.exp(log_unit)[:, None], axis=0)
    source = PositionScale(ODOMETRY, 1.0)
    history, way = ScaleHistory({"odometry": source}, {}), 0.0
    for index, (position, placed) in enumerate(zip(shown, [np.zeros(3), *in_map], strict=True)):
        pose = np.eye(4)
        pose[:3, 3] = placed
        if index:
            way += float(np.linalg.norm(placed - in_map[index - 2] if index > 1 else placed))
        stamp = index * 10**9
        history.observe(stamp, way)
        source.fixes.append(Fix(stamp, position, np.zeros(3), 0.0, pose, way))
    return history, shown, np.vstack([np.zeros(3), in_map]), log_unit


def asked(history, step):
    known = Scale(1.6, "odometry", 0, ScaleState.METRIC, 0.02, ("odometry",))
    return history.scale(step * 10**9 + 1, known)


def by_one_who_knows(speed, shown, placed, step):
    """The scale's logarithm at a step by least squares over all steps, drift and noise known."""
    metres, units = (
        np.array([np.linalg.norm(b - a) for a, b in pairwise(path)]) for path in (shown, placed)
    )
    along = np.cumsum(metres)
    walked = np.minimum(along[:, None], along[None, :]) * speed**2 + 1e2
    noise = NOISE**2 / metres
    values = np.log(metres / units)
    weights = np.linalg.solve(walked + np.diag(noise), walked[:, step])
    return weights @ (values - np.median(values)) + np.median(values)


@pytest.mark.parametrize("speed", [0.015, 0.06])
def test_a_unit_that_drifts_is_followed_where_the_camera_turns_back(speed):
    errors, best, sigma = [], [], []
    for seed in range(20):
        history, shown, placed, log_unit = recording(speed, seed)
        for step in ASKED:
            found = asked(history, step)
            errors.append(np.log(found.metres_per_unit) - log_unit[step])
            sigma.append(found.sigma)
            best.append(by_one_who_knows(speed, shown, placed, step) - log_unit[step])
    assert np.sqrt(np.mean(np.square(errors))) < 1.2 * np.sqrt(np.mean(np.square(best)))
    assert 0.7 < np.sqrt(np.mean(np.square(errors) / np.square(sigma))) < 1.3


def test_a_place_that_odometry_has_beside_the_way_does_not_count():
    for seed in range(3):
        history, _, _, _ = recording(0.005, seed)
        disturbed, _, _, _ = recording(0.005, seed, wrong=22)
        one, other = (asked(each, 22).metres_per_unit for each in (history, disturbed))
        assert other == pytest.approx(one, rel=0.02)
