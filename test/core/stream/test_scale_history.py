"""The scale of a recording at a place, by what was measured before it and behind it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.stream import MetricScale

STEP_NS = 100_000_000
TIMES = np.arange(0.0, 30.0, 0.1)


def flight(shrinks, lever=None):
    """A wandering camera: true places, poses in a map whose unit shrinks, metres per unit."""
    true = np.stack(
        [0.6 * TIMES, 1.5 * np.sin(0.5 * TIMES), 0.5 * np.sin(0.8 * TIMES + 1.0)], axis=-1
    )
    unit = 3.0 * np.exp(shrinks * TIMES / TIMES[-1])
    steps = np.diff(true, axis=0, prepend=true[:1])
    poses = np.tile(np.eye(4), (len(TIMES), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("z", np.sin(0.3 * TIMES)[:, None]).as_matrix()
    poses[:, :3, 3] = np.cumsum(steps / unit[:, None], axis=0)
    shown = true if lever is None else true + poses[:, :3, :3] @ lever
    return shown, poses, unit


def followed(feed, poses):
    """What was known of the scale at each image, and the history."""
    scale, known = MetricScale(), []
    for index, pose in enumerate(poses):
        feed(scale, index)
        scale.observe(index * STEP_NS, pose)
        known.append(scale.scale)
    return scale, known


def errors(history, known, unit, indices):
    """Relative errors of the filter and of both sides at images."""
    first = next(each for each in known if each.metres_per_unit is not None)
    begun = [each if each.metres_per_unit is not None else first for each in known]
    both = [history.scale(index * STEP_NS, begun[index]) for index in indices]
    return (
        np.array([begun[i].metres_per_unit / unit[i] - 1.0 for i in indices]),
        np.array(
            [each.metres_per_unit / unit[i] - 1.0 for each, i in zip(both, indices, strict=True)]
        ),
    )


@pytest.mark.parametrize(("lever", "share"), [(None, 0.4), (np.array([0.3, -0.2, 0.1]), 0.7)])
def test_a_drift_that_odometry_follows_late_is_seen_where_it_was(lever, share):
    shown, poses, unit = flight(-0.5, lever)
    rng = np.random.default_rng(0)
    noisy = shown + np.cumsum(0.0005 * rng.standard_normal(shown.shape), axis=0)

    def feed(scale, index):
        scale.add_odometry(index * STEP_NS, noisy[index], of_camera=lever is None)

    scale, known = followed(feed, poses)
    late, both = errors(scale.history, known, unit, range(0, len(TIMES), 10))
    assert np.sqrt((both**2).mean()) < share * np.sqrt((late**2).mean())


def test_heights_and_ratios_are_seen_from_both_sides_too():
    shown, poses, unit = flight(-0.5)
    rng = np.random.default_rng(1)

    def heights(scale, index):
        scale.add_altitude(index * STEP_NS, shown[index, 2] + rng.normal(0, 0.01))

    def ratios(scale, index):
        if index % 5 == 0:
            wrong = 2.0 if rng.random() < 0.1 else 1.0
            metres = wrong * unit[index] * np.exp(rng.normal(0, 0.03))
            scale.observe_ratio(index * STEP_NS, metres, 0.03, "range")

    for feed in (heights, ratios):
        scale, known = followed(feed, poses)
        late, both = errors(scale.history, known, unit, range(60, 260, 10))
        assert np.sqrt((both**2).mean()) < 0.7 * np.sqrt((late**2).mean())


def test_it_lasts_when_the_next_segment_begins():
    shown, poses, unit = flight(-0.5)
    scale, known = followed(lambda s, i: s.add_odometry(i * STEP_NS, shown[i]), poses)
    history, at = scale.history, 150 * STEP_NS
    before = history.scale(at, known[150])
    scale.reset()
    scale.observe(len(TIMES) * STEP_NS, np.eye(4))
    assert history.scale(at, known[150]) == before
    assert before.metres_per_unit == pytest.approx(unit[150], rel=5e-3)
    assert scale.history.scale(at, known[150]) == known[150]


def test_what_odometry_of_another_path_gives_changes_nothing():
    _, poses, _ = flight(0.0)
    shown, _, _ = flight(0.0)
    other = shown[:, [1, 2, 0]] * np.array([3.0, 1.0, 0.1])
    scale, known = followed(lambda s, i: s.add_odometry(i * STEP_NS, other[i]), poses)
    pretended = replace(known[-1], metres_per_unit=3.0, sources=("odometry",))
    assert scale.history.scale(150 * STEP_NS, pretended) == pretended


def test_only_sources_that_gave_the_scale_are_asked():
    shown, poses, unit = flight(-0.5)

    def feed(scale, index):
        scale.add_odometry(index * STEP_NS, shown[index])
        scale.observe_ratio(index * STEP_NS, 2.0 * unit[index], 0.03, "range")

    scale, known = followed(feed, poses)
    alone = replace(known[150], sources=("odometry",))
    found = scale.history.scale(150 * STEP_NS, alone)
    assert found.sources == ("odometry",)
    assert found.metres_per_unit == pytest.approx(unit[150], rel=5e-3)


def test_how_far_the_camera_has_come_since():
    shown, poses, _ = flight(0.0)
    scale, _ = followed(lambda s, i: s.add_odometry(i * STEP_NS, shown[i]), poses)
    metres = np.linalg.norm(np.diff(shown[200:], axis=0), axis=1).sum()
    assert scale.history.drifts_since(200 * STEP_NS, 3.0) == pytest.approx(metres, rel=1e-6)
