"""The scale: held when it is known, changed without a jump, never guessed."""

import numpy as np
import pytest
from support import known_room as room
from support.streams import events, geometries, run, start

from qvggt_core.stream import MetricScale

STEP_NS = 100_000_000


class Journey:
    """Straight ahead in steps of metres, seen by odometry in another world and by a map."""

    def __init__(self, scale):
        self.scale = scale
        self.index = 0
        self.metres = 0.0
        self.units = 0.0

    def go(self, metres_per_unit, steps, step=0.1, odometry=True):
        """Return the events on the way."""
        events = []
        for _ in range(steps):
            self.index += 1
            stamp = self.index * STEP_NS
            if odometry:
                # Turned, elsewhere, and sampled between the images too.
                for share in (0.4, 1.0):
                    ahead = self.metres + share * step
                    early = round((1.0 - share) * STEP_NS)
                    self.scale.add_odometry(stamp - early, np.array([7.0, -ahead, 3.0]))
            self.metres += step
            self.units += step / metres_per_unit
            event = self.scale.observe(stamp, np.array([self.units, 0.0, 0.0]))
            events += [event] if event else []
        return events


def travel(scale, metres_per_unit, steps, **options):
    return Journey(scale).go(metres_per_unit, steps, **options)


def test_the_scale_is_known_after_the_distance_that_was_asked_for():
    scale = MetricScale(min_distance=2.0)
    journey = Journey(scale)
    assert journey.go(3.0, steps=15) == []
    assert scale.scale.metres_per_unit is None
    (events,) = journey.go(3.0, steps=15)
    assert "the scale is known" in events
    assert scale.scale.metres_per_unit == pytest.approx(3.0)
    assert scale.scale.source == "odometry"


def test_without_motion_or_odometry_nothing_is_guessed():
    scale = MetricScale(min_distance=0.5)
    journey = Journey(scale)
    journey.go(3.0, steps=50, odometry=False)
    journey.go(3.0, steps=50, step=0.0)
    assert scale.scale.metres_per_unit is None


def test_a_parameter_wins_over_odometry():
    scale = MetricScale(metres_per_unit=2.0, min_distance=0.5)
    travel(scale, 3.0, steps=50)
    assert (scale.scale.metres_per_unit, scale.scale.source) == (2.0, "parameter")


def test_noise_of_odometry_is_outvoted():
    rng = np.random.default_rng(3)
    scale = MetricScale(min_distance=2.0)
    for index in range(60):
        noise = rng.normal(0, 0.005, 3) + (2.0 if index == 31 else 0.0)
        scale.add_odometry(index * STEP_NS, np.array([0.1 * index, 0.0, 0.0]) + noise)
        scale.observe(index * STEP_NS, np.array([0.1 * index / 3.0, 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.03)


def test_odometry_that_comes_after_the_geometry_counts():
    scale = MetricScale(min_distance=1.0)
    for index in range(30):
        scale.observe(index * STEP_NS, np.array([0.05 * index, 0.0, 0.0]))
        if index >= 5:
            scale.add_odometry((index - 5) * STEP_NS, np.array([0.1 * (index - 5), 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(2.0)


def test_odometry_with_a_hole_is_not_taken_as_straight():
    scale = MetricScale(min_distance=0.5)
    for index in range(40):
        # Stamps of odometry lie between those of images, and a second is missing.
        if not 10 < index < 25:
            scale.add_odometry(index * STEP_NS + 1, np.array([0.1 * index, 0.0, 0.0]))
        where = 0.05 * index if index <= 10 or index >= 25 else 9.0 * index
        scale.observe(index * STEP_NS, np.array([where, 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(2.0, rel=1e-3)


def test_a_small_disagreement_is_held_and_a_large_one_changes_the_scale_without_a_jump():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=30)
    assert journey.go(3.2, steps=30) == []
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.01)

    def placed():
        pose = np.eye(4)
        pose[0, 3] = journey.units
        return scale.place(pose)[0, 3]

    ways = [placed()]
    for _ in range(150):
        journey.go(4.0, steps=1)
        ways.append(placed())
    assert scale.scale.metres_per_unit == pytest.approx(4.0, rel=0.1)
    # Before the change a step of 0.1 m looks like 0.075 m, after it like 0.1 m; never like more.
    steps = np.diff(ways)
    assert steps.min() == pytest.approx(0.075, abs=0.003)
    assert steps.max() <= 0.103
    assert steps[-1] > 0.09


def test_odometry_that_is_reset_does_not_change_the_scale():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=30)
    journey.metres += 50.0
    assert journey.go(3.0, steps=30) == []
    assert scale.scale.metres_per_unit == pytest.approx(3.0)


def test_jitter_of_the_map_does_not_make_it_longer():
    """Lengths of noisy steps add up to more than the way: the scale comes from long baselines."""
    rng = np.random.default_rng(4)
    scale = MetricScale(min_distance=2.0)
    for index in range(60):
        scale.add_odometry(index * STEP_NS, np.array([0.1 * index, 0.0, 0.0]))
        jitter = rng.normal(0, 0.01, 3)
        scale.observe(index * STEP_NS, np.array([0.1 * index / 3.0, 0.0, 0.0]) + jitter)
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.02)


def test_a_recording_that_begins_anew_does_not_mix_with_what_was_before():
    scale = MetricScale(min_distance=1.0)
    travel(scale, 3.0, steps=30)
    scale.reset()
    assert scale.scale.metres_per_unit is None
    travel(scale, 5.0, steps=30)
    assert scale.scale.metres_per_unit == pytest.approx(5.0)


def test_a_stream_with_odometry_comes_out_in_metres():
    poses = room.straight(24)
    reconstructor, network = start(poses, min_odometry_distance=1.0)
    frames = room.frames(poses)
    for frame, pose in zip(frames, poses, strict=True):
        reconstructor.add_odometry(frame.stamp_ns, pose[:3, 3])
    results = run(reconstructor, frames)
    assert results[0].scale.metres_per_unit is None
    assert results[-1].scale.metres_per_unit == pytest.approx(network.units[0], rel=1e-4)
    assert any("the scale is known" in event for event in events(results))
    (last,) = [g for g in geometries(results) if g.view.stamp_ns == frames[-1].stamp_ns]
    np.testing.assert_allclose(last.depth, room.depth_of(poses[-1]), rtol=1e-4)
    way = np.linalg.norm(last.map_from_camera[:3, 3])
    assert way == pytest.approx(np.linalg.norm(poses[-1][:3, 3] - poses[0][:3, 3]), rel=1e-4)


def test_the_scale_can_be_given_while_running():
    poses = room.straight(16)
    reconstructor, network = start(poses)
    frames = room.frames(poses)
    for frame in frames[:8]:
        reconstructor.add(frame)
    reconstructor.set_parameters(
        reconstructor.parameters.with_values(metres_per_unit=network.units[0])
    )
    results = run(reconstructor, frames[8:])
    assert {r.scale.source for r in results} == {"parameter"}
    np.testing.assert_allclose(geometries(results)[-1].depth, room.depth_of(poses[-1]), rtol=1e-4)
