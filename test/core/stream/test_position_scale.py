"""A scale from positions: what is compared of the camera's path, and how noise becomes less."""

from dataclasses import replace

import numpy as np

from qvggt_core.stream.path_alignment import Freedom
from qvggt_core.stream.position_scale import PositionKind, PositionScale

UP = np.array([0.0, 0.0, 1.0])
ALTIMETER = PositionKind("altitude", Freedom(noise=0.03, axis=UP), systematic=0.0, spacing=1 / 12)


def climb(kind: PositionKind, seed: int) -> float:
    """Return the error of the scale's logarithm after a climb with a rest at each of nine heights.

    A map unit is 3 m, and the altimeter is off by 2 cm (standard deviation) in each image.
    """
    rng, scale = np.random.default_rng(seed), PositionScale(kind, min_distance=1.0)
    pose = np.eye(4)
    for index in range(180):
        height = 0.2 * (index // 20)
        pose[2, 3] = height / 3.0
        scale.add(index * 100_000_000, (7.0 + height + rng.normal(0.0, 0.02)) * UP)
        scale.observe(index * 100_000_000, pose.copy(), way=height / 3.0)
    assert scale.estimate is not None
    return float(scale.estimate.log_scale - np.log(3.0))


def test_all_images_next_to_a_place_count_where_their_mean_is_compared() -> None:
    """The mean of 16 images has a quarter of the noise of one; so has the scale."""
    mean = replace(ALTIMETER, averaged=16)
    one = np.sqrt(np.mean([climb(ALTIMETER, seed) ** 2 for seed in range(20)]))
    many = np.sqrt(np.mean([climb(mean, seed) ** 2 for seed in range(20)]))
    assert one > 0.005
    assert many < 0.4 * one


def after_a_climb_of(metres: float, kind: PositionKind) -> PositionScale:
    """Return what a climb at 0.1 m a second gives, without noise; a map unit is 3 m."""
    scale = PositionScale(kind, min_distance=1.0)
    for index in range(round(100 * metres)):
        height, pose = 0.01 * index, np.eye(4)
        pose[2, 3] = height / 3.0
        scale.add(index * 100_000_000, (7.0 + height) * UP)
        scale.observe(index * 100_000_000, pose, way=height / 3.0)
    return scale


def test_the_way_after_which_a_scale_counts_is_a_share_of_the_least_distance() -> None:
    half = replace(ALTIMETER, averaged=16, least=0.5)
    assert after_a_climb_of(0.5, half).estimate is None
    assert after_a_climb_of(0.8, half).estimate is not None
    assert after_a_climb_of(0.8, replace(half, least=1.0)).estimate is None


def test_places_lie_so_far_apart_however_many_images_one_is_the_mean_of() -> None:
    fixes = after_a_climb_of(0.8, replace(ALTIMETER, averaged=16)).fixes
    firsts = [fix.start @ UP for fix in fixes]
    np.testing.assert_allclose(np.diff(firsts), 0.09, atol=1e-9)


def test_a_mean_of_many_readings_is_surer_than_one_reading() -> None:
    """Sixteen count as four: noise is halved, the drift between the heights stays."""
    found = [
        after_a_climb_of(1.6, replace(ALTIMETER, spacing=0.15, averaged=count)).estimate
        for count in (1, 16)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert np.sqrt(found[1].variance / found[0].variance) < 0.75
