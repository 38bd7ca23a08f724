"""The scale: from any source, followed, never guessed, its state always known."""

import numpy as np
import pytest
from support import known_room as room
from support.streams import events, geometries, run, start

from qvggt_core.stream import MetricScale
from qvggt_core.stream.frame import ScaleState

STEP_NS = 100_000_000


def pose_at(position, rotation=None):
    pose = np.eye(4)
    pose[:3, 3] = position
    if rotation is not None:
        pose[:3, :3] = rotation
    return pose


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
            event = self.scale.observe(stamp, pose_at([self.units, 0.0, 0.0]))
            events += [event] if event else []
        return events


def travel(scale, metres_per_unit, steps, **options):
    return Journey(scale).go(metres_per_unit, steps, **options)


def wandering(seconds, seed=0):
    """Return stamps and a function that gives positions (N, 3) in metres at times (N,)."""
    rng = np.random.default_rng(seed)
    rate, phase = rng.uniform(0.4, 1.5, (4, 3)), rng.uniform(0, 6, (4, 3))
    reach = rng.uniform(0.3, 0.8, (4, 3)) / rate
    times = np.arange(0.0, seconds, 0.1)

    def positions(at):
        return (reach * np.sin(rate * np.asarray(at)[:, None, None] + phase)).sum(axis=1)

    return times, positions


def nanoseconds(seconds):
    return round(float(seconds) * 1e9)


def test_the_scale_is_known_after_the_distance_that_was_asked_for():
    scale = MetricScale(min_distance=2.0)
    journey = Journey(scale)
    assert scale.scale.state is ScaleState.UNKNOWN
    assert journey.go(3.0, steps=15) == []
    assert scale.scale.metres_per_unit is None
    assert scale.scale.state is ScaleState.ESTIMATING
    (event,) = journey.go(3.0, steps=15)
    assert "the scale is known by odometry" in event
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=1e-3)
    assert scale.scale.source == "odometry"
    assert scale.scale.state is ScaleState.METRIC
    assert 0.0 < scale.scale.sigma < 0.05


def test_without_motion_or_odometry_nothing_is_guessed():
    scale = MetricScale(min_distance=0.5)
    journey = Journey(scale)
    journey.go(3.0, steps=50, odometry=False)
    assert scale.scale.state is ScaleState.UNKNOWN
    journey.go(3.0, steps=50, step=0.0)
    assert scale.scale.metres_per_unit is None


def test_odometry_that_stands_still_while_images_move_gives_no_scale():
    scale = MetricScale(min_distance=0.5)
    rng = np.random.default_rng(1)
    for index in range(100):
        scale.add_odometry(index * STEP_NS, np.array([2.0, 1.0, 0.0]) + rng.normal(0, 1e-3, 3))
        scale.observe(index * STEP_NS, pose_at([0.1 * index, 0.0, 0.0]))
    assert scale.scale.metres_per_unit is None
    assert scale.scale.state is ScaleState.ESTIMATING


def test_odometry_that_is_not_finite_gives_no_scale_and_is_named():
    scale = MetricScale(min_distance=0.5)
    for index in range(50):
        scale.add_odometry(index * STEP_NS, np.array([0.1 * index, np.nan, 0.0]))
        scale.observe(index * STEP_NS, pose_at([0.1 * index, 0.0, 0.0]))
    assert scale.scale.metres_per_unit is None
    assert "not finite" in scale.scale.note


@pytest.mark.parametrize("seed", range(4))
def test_odometry_of_another_robot_gives_no_scale_and_is_named(seed):
    """Two ways may look alike for a second or two: not for longer."""
    scale, metric = MetricScale(min_distance=1.0), 0
    times, mine = wandering(25.0, seed)
    _, other = wandering(25.0, seed=100 + seed)
    for time, there, here in zip(times, other(times), mine(times), strict=True):
        scale.add_odometry(nanoseconds(time), there)
        scale.observe(nanoseconds(time), pose_at(here))
        metric += scale.scale.state is ScaleState.METRIC
    assert scale.scale.state is not ScaleState.METRIC
    assert metric <= 0.2 * len(times)
    assert "different shapes" in scale.scale.note


def test_a_scale_that_nothing_confirms_any_more_becomes_stale_and_stays_in_use():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=40)
    events = journey.go(3.0, steps=900, odometry=False)
    assert any("stale" in event for event in events)
    assert scale.scale.state is ScaleState.STALE
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=1e-3)
    journey.go(3.0, steps=60)
    assert scale.scale.state is ScaleState.METRIC


def test_a_camera_that_stands_still_keeps_its_scale():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=40)
    journey.go(3.0, steps=600, step=0.0)
    assert scale.scale.state is ScaleState.METRIC


def test_a_parameter_wins_over_odometry():
    scale = MetricScale(metres_per_unit=2.0, min_distance=0.5)
    travel(scale, 3.0, steps=50)
    assert (scale.scale.metres_per_unit, scale.scale.source) == (2.0, "parameter")
    assert scale.scale.state is ScaleState.METRIC


def test_noise_of_odometry_is_outvoted():
    rng = np.random.default_rng(3)
    scale = MetricScale(min_distance=2.0)
    for index in range(80):
        noise = rng.normal(0, 0.005, 3) + (2.0 if index == 31 else 0.0)
        scale.add_odometry(index * STEP_NS, np.array([0.1 * index, 0.0, 0.0]) + noise)
        scale.observe(index * STEP_NS, pose_at([0.1 * index / 3.0, 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.03)


def test_odometry_that_comes_after_the_geometry_counts():
    scale = MetricScale(min_distance=1.0)
    for index in range(40):
        scale.observe(index * STEP_NS, pose_at([0.05 * index, 0.0, 0.0]))
        if index >= 5:
            scale.add_odometry((index - 5) * STEP_NS, np.array([0.1 * (index - 5), 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(2.0, rel=1e-3)


def test_odometry_with_a_hole_is_not_taken_as_straight():
    scale = MetricScale(min_distance=0.5)
    for index in range(40):
        # Stamps of odometry lie between those of images, and a second is missing.
        if not 10 < index < 25:
            scale.add_odometry(index * STEP_NS + 1, np.array([0.1 * index, 0.0, 0.0]))
        where = 0.05 * index if index <= 10 or index >= 25 else 9.0 * index
        scale.observe(index * STEP_NS, pose_at([where, 0.0, 0.0]))
    assert scale.scale.metres_per_unit == pytest.approx(2.0, rel=1e-3)


def test_a_map_that_drifts_is_followed_without_a_jump_of_the_pose():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=30)
    ways, units = [], np.geomspace(3.0, 3.3, 100)
    for unit in units:
        journey.go(unit, steps=1)
        ways.append(scale.place(pose_at([journey.units, 0.0, 0.0]))[0, 3])
    assert scale.scale.metres_per_unit == pytest.approx(3.3, rel=0.015)
    # The newest lengths are right to 2 %, though the map's unit changed by 10 % within 10 m.
    assert np.diff(ways) == pytest.approx(np.full(99, 0.1), rel=0.025)
    assert ways[-1] - ways[0] == pytest.approx(9.9, rel=0.015)


def test_a_map_whose_unit_jumps_is_followed_once_that_is_certain():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=40)
    events = journey.go(4.0, steps=150)
    assert scale.scale.metres_per_unit == pytest.approx(4.0, rel=0.03)
    assert scale.scale.state is ScaleState.METRIC
    assert len(events) <= 6


def test_odometry_that_is_reset_does_not_change_the_scale():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    journey.go(3.0, steps=30)
    journey.metres += 50.0
    assert journey.go(3.0, steps=30) == []
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=1e-3)


def test_jitter_of_the_map_does_not_make_it_longer():
    """Lengths of noisy steps add up to more than the way: the scale comes from long baselines."""
    rng = np.random.default_rng(4)
    scale = MetricScale(min_distance=2.0)
    for index in range(60):
        scale.add_odometry(index * STEP_NS, np.array([0.1 * index, 0.0, 0.0]))
        jitter = rng.normal(0, 0.01, 3)
        scale.observe(index * STEP_NS, pose_at(jitter + np.array([0.1 * index / 3.0, 0.0, 0.0])))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.02)


def test_a_difference_of_the_clocks_is_found():
    scale = MetricScale(min_distance=1.0)
    times, positions = wandering(20.0)
    late = 0.08
    fine = np.arange(0.0, 20.0, 0.02)
    for time, position in zip(fine, positions(fine), strict=True):
        scale.add_odometry(nanoseconds(time + late), position)
    for time, position in zip(times, positions(times), strict=True):
        scale.observe(nanoseconds(time), pose_at(position / 3.0))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.01)
    assert scale.odometry_offset_s == pytest.approx(late, abs=0.02)


def test_where_the_camera_sits_on_the_base_is_estimated_if_it_is_not_known():
    scale = MetricScale(min_distance=1.0)
    times, positions = wandering(20.0)
    lever = np.array([0.3, -0.1, 0.2])
    for index, (time, position) in enumerate(zip(times, positions(times), strict=True)):
        yaw = 0.8 * np.sin(0.15 * index)
        rotation = np.array(
            [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
        )
        base = position + rotation @ lever
        scale.add_odometry(nanoseconds(time), base, of_camera=False)
        scale.observe(nanoseconds(time), pose_at(position / 3.0, rotation))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.02)


def test_gps_of_a_metre_s_noise_gives_the_scale_of_a_flight_of_a_hundred_metres():
    rng = np.random.default_rng(5)
    scale = MetricScale(min_distance=5.0)
    for index in range(400):
        where = np.array([40 * np.sin(0.02 * index), 0.3 * index, 5 * np.sin(0.03 * index)])
        if index % 5 == 0:
            scale.add_gps(index * STEP_NS, where + rng.normal(0, 1.0, 3), sigma=1.0)
        scale.observe(index * STEP_NS, pose_at(where / 7.0))
    assert scale.scale.metres_per_unit == pytest.approx(7.0, rel=0.03)
    assert scale.scale.source == "gps"


def test_an_altimeter_gives_the_scale_of_a_flight_that_climbs():
    rng = np.random.default_rng(6)
    scale = MetricScale(min_distance=1.0)
    for index in range(200):
        where = np.array([0.1 * index, 0.0, 2.0 * np.sin(0.05 * index)])
        scale.add_altitude(index * STEP_NS, where[2] + 4.0 + rng.normal(0, 0.02))
        scale.observe(index * STEP_NS, pose_at(where / 3.0))
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.03)
    assert scale.scale.source == "altitude"


@pytest.mark.parametrize("source", ["range", "baseline", "camera height", "odometry as input"])
def test_lengths_of_single_images_give_the_scale_in_their_robust_mean(source):
    rng = np.random.default_rng(7)
    scale = MetricScale()
    for index in range(30):
        scale.observe(index * STEP_NS, pose_at([0.1 * index, 0.0, 0.0]))
        wrong = 4.0 if index % 5 == 4 else 1.0
        ratio = 3.0 * wrong * np.exp(rng.normal(0, 0.03))
        scale.observe_ratio(index * STEP_NS, ratio, 0.03, source)
    # Along nine metres a scale may walk, so that old ratios count little.
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.03)
    assert scale.scale.source == source


def test_lengths_that_disagree_with_each_other_give_no_scale():
    rng = np.random.default_rng(8)
    scale = MetricScale()
    for index in range(40):
        scale.observe(index * STEP_NS, pose_at([0.1 * index, 0.0, 0.0]))
        scale.observe_ratio(index * STEP_NS, np.exp(rng.uniform(-3, 3)), 0.03, "range")
        assert scale.scale.metres_per_unit is None


def test_sources_are_fused_and_what_disagrees_is_left_out_and_named():
    scale = MetricScale(min_distance=1.0)
    journey = Journey(scale)
    for _ in range(30):
        journey.go(3.0, steps=1)
        stamp = journey.index * STEP_NS
        scale.observe_ratio(stamp, 3.03, 0.02, "camera height")
        scale.observe_ratio(stamp, 4.5, 0.02, "range")
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.02)
    assert scale.scale.sources == ("camera height", "odometry")
    assert "range gives +" in scale.scale.note


def test_a_recording_that_begins_anew_does_not_mix_with_what_was_before():
    scale = MetricScale(min_distance=1.0)
    travel(scale, 3.0, steps=30)
    scale.reset()
    assert scale.scale.metres_per_unit is None
    travel(scale, 5.0, steps=30)
    assert scale.scale.metres_per_unit == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_minute_s_flight_with_odometry_as_robots_have_it_is_metric_to_three_per_cent(seed):
    """Biased by 1 %, noisy, turning away, 50 ms late; the map drifts by 0.5 % a root metre."""
    rng = np.random.default_rng(seed)
    times, positions = wandering(60.0, seed)
    fine = np.arange(0.0, 60.0, 0.02)
    yaw = np.cumsum(rng.normal(0, 0.001, len(fine)))
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]).transpose(2, 0, 1)
    steps = np.diff(positions(fine), axis=0, prepend=positions(fine[:1]))
    steps[:, :2] = (turn @ steps[:, :2, None])[..., 0]
    odometry = np.cumsum(1.01 * steps + rng.normal(0, 0.001, steps.shape), axis=0)
    true = positions(times)
    moved = np.diff(true, axis=0, prepend=true[:1])
    walk = np.sqrt(np.linalg.norm(moved, axis=1)) * rng.normal(0, 0.005, len(times))
    unit = 3.0 * np.exp(np.cumsum(walk))
    in_map = np.cumsum(moved / unit[:, None], axis=0)
    scale, sent, found = MetricScale(), 0, []
    for index, time in enumerate(times):
        while sent < len(fine) and fine[sent] + 0.05 <= time:
            scale.add_odometry(nanoseconds(fine[sent] + 0.05), odometry[sent])
            sent += 1
        scale.observe(nanoseconds(time), pose_at(in_map[index]))
        found.append((scale.scale.metres_per_unit or np.nan) / unit[index] - 1.0)
    assert abs(found[50]) < 0.03
    assert abs(found[-1]) < 0.03
    assert np.nanpercentile(np.abs(found), 90) < 0.035


def test_a_stream_with_odometry_comes_out_in_metres():
    poses = room.straight(24)
    reconstructor, network = start(poses, min_odometry_distance=1.0)
    frames = room.frames(poses)
    for frame, pose in zip(frames, poses, strict=True):
        reconstructor.sensors.add_odometry(frame.stamp_ns, pose[:3, 3])
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
