"""Which way is up: by the accelerometer in motion, by the ground, never by a wrong sensor."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support import known_room as room
from support.streams import events, geometries, start

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, transform
from qvggt_core.stream import DeferredReconstructor
from qvggt_core.stream.gravity import STANDARD_GRAVITY, Gravity, levelling

RATE, IMAGES = 200.0, 15.0
UP = np.array([0.0, 0.0, STANDARD_GRAVITY])


class Flight:
    """A camera that sways and turns; its map is tilted by 12 degrees against the vertical."""

    def __init__(self, seed=0, shake=1.0):
        rng = np.random.default_rng(seed)
        self.rates, self.phases = rng.uniform(0.8, 3.0, (3, 6)), rng.uniform(0, 6, (3, 6))
        self.reach = shake * rng.uniform(0.05, 0.25, (3, 6))
        self.map_from_world = Rotation.from_rotvec(np.radians(12.0) * np.array([0.6, 0.8, 0.0]))

    def _sines(self, time, part):
        return (self.reach[part] * np.sin(self.rates[part] * time + self.phases[part])).reshape(
            2, 3
        )

    def position(self, time):
        return self._sines(time, 0).sum(axis=0)

    def rotation(self, time):
        """World from camera."""
        angles = self._sines(time, 1).sum(axis=0)
        return Rotation.from_rotvec(angles) * Rotation.from_matrix(FLU_FROM_OPTICAL[:3, :3])

    def imu(self, time):
        """Specific force and turn rate along the camera's axes, by differences."""
        h = 1e-3
        acceleration = (
            self.position(time + h) - 2 * self.position(time) + self.position(time - h)
        ) / h**2
        rotation = self.rotation(time)
        turned = (self.rotation(time - h).inv() * self.rotation(time + h)).as_rotvec() / (2 * h)
        return rotation.inv().apply(acceleration + UP), turned

    def map_from_camera(self, time):
        return transform((self.map_from_world * self.rotation(time)).as_matrix(), np.zeros(3))

    @property
    def up(self):
        return self.map_from_world.apply([0.0, 0.0, 1.0])


def fly(gravity, flight, seconds, sensor=lambda force, rate: (force, rate)):
    for index in range(round(seconds * RATE)):
        time = index / RATE
        gravity.add_imu(round(time * 1e9), *sensor(*flight.imu(time)))
        if index % round(RATE / IMAGES) == 0:
            gravity.observe(round(time * 1e9), flight.map_from_camera(time))


def degrees_between(one, other):
    return np.degrees(np.arccos(np.clip(one @ other, -1, 1)))


@pytest.mark.parametrize("seed", range(4))
def test_up_is_found_in_motion_to_a_degree(seed):
    gravity, flight = Gravity(), Flight(seed)
    rng = np.random.default_rng(seed)
    fly(gravity, flight, 10.0, lambda f, w: (f + rng.normal(0, 0.2, 3), w + rng.normal(0, 0.01, 3)))
    found = gravity.up
    assert found.source == "imu"
    assert degrees_between(found.direction, flight.up) < 1.0
    assert degrees_between(found.direction, flight.up) < 3.0 * np.degrees(found.sigma)


def test_before_two_seconds_up_is_as_the_first_camera_was():
    gravity = Gravity()
    fly(gravity, Flight(), 1.5)
    assert gravity.up.source == "first camera"
    assert gravity.up.sigma is None
    np.testing.assert_array_equal(gravity.up.direction, [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("sensor", "problem"),
    [
        (lambda f, w: (f - f * STANDARD_GRAVITY / np.linalg.norm(f), w), "was gravity taken out"),
        (lambda f, w: (1.15 * f, w), "calibrated"),
        (lambda f, w: (f, -w), "turns in another way"),
        (lambda f, w: (f * np.nan, w), ""),
    ],
    ids=["gravity taken out", "wrong scale", "turned wrong", "not finite"],
)
def test_an_imu_that_cannot_be_right_is_not_believed(sensor, problem):
    gravity = Gravity()
    fly(gravity, Flight(), 8.0, sensor)
    assert gravity.up.source == "first camera"
    assert problem in gravity.problem


def test_a_ground_that_is_seen_again_and_again_gives_up_where_there_is_no_imu():
    gravity, flight = Gravity(), Flight()
    rng = np.random.default_rng(0)
    for _ in range(8):
        normal = flight.up + rng.normal(0, 0.005, 3)
        gravity.observe_ground(normal / np.linalg.norm(normal), 0.01)
    assert gravity.up.source == "ground plane"
    assert degrees_between(gravity.up.direction, flight.up) < 0.5
    fly(gravity, flight, 10.0)
    assert gravity.up.source == "imu"


def test_planes_that_differ_are_no_ground():
    gravity = Gravity()
    for index in range(10):
        tilted = Rotation.from_euler("y", 20.0 * (-1) ** index, degrees=True).apply([0, 0, 1.0])
        gravity.observe_ground(tilted, 0.01)
    assert gravity.up.source == "first camera"


def test_a_new_map_is_turned_in_a_way_of_its_own():
    gravity, flight = Gravity(), Flight()
    fly(gravity, flight, 6.0)
    gravity.begin_map()
    assert gravity.up.source == "first camera"


@pytest.mark.parametrize("up", [[0, 0, 1], [0.2, -0.1, 0.95], [1, 0, 0], [0, 0, -1]])
def test_levelling_takes_up_to_z_by_the_smallest_turn(up):
    up = np.array(up, float) / np.linalg.norm(up)
    rotation = levelling(up)
    np.testing.assert_allclose(rotation @ up, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    assert angle == pytest.approx(np.arccos(up[2]), abs=1e-7)


PITCH = 0.2


def pitched_flight(count=40):
    """A camera that is mounted looking down by 11 degrees, and so begins a tilted map."""
    x = -8 + 0.15 * np.arange(count)
    sway = 0.3 * np.sin(0.4 * np.arange(count))
    return room.flight(
        np.stack([x, sway, 0.1 * sway], axis=1), np.tile([0.0, PITCH, 0.0], (count, 1))
    )


def tilt_of_map(frames, poses):
    """Angle in degrees between the map's z and the true vertical, by the last frame."""
    world_from_map = poses[-1][:3, :3] @ frames[-1].map_from_camera[:3, :3].T
    return np.degrees(np.arccos(np.clip(world_from_map[2, 2], -1, 1)))


def test_a_stream_with_an_imu_comes_out_upright_from_its_first_frame():
    poses = pitched_flight()
    inner, _ = start(poses, metres_per_unit=1.0)
    reconstructor = DeferredReconstructor(inner, hopes_for_up=True)
    results = []
    for frame, pose in zip(room.frames(poses), poses, strict=True):
        for part in range(10):
            stamp = frame.stamp_ns + part * 10_000_000
            reconstructor.sensors.add_imu(stamp, pose[:3, :3].T @ UP, np.zeros(3))
        results += reconstructor.add(frame)
    results += reconstructor.flush()
    frames = geometries(results)
    assert {result.up.source for result in results if result.frames} == {"imu"}
    assert tilt_of_map(frames, poses) < 0.1
    assert tilt_of_map(frames[:1], poses[:1]) < 0.1
    assert len(frames) == len(poses)
    (event,) = [each for each in events(results) if "the map is level" in each]
    assert "11.5 deg" in event


def test_without_an_imu_the_ground_makes_a_map_upright_as_it_becomes_metric():
    poses = pitched_flight()
    inner, _ = start(poses, min_odometry_distance=3.0)
    reconstructor = DeferredReconstructor(inner)
    results = []
    for frame, pose in zip(room.frames(poses), poses, strict=True):
        reconstructor.sensors.add_odometry(frame.stamp_ns, pose[:3, 3], pose)
        results += reconstructor.add(frame)
    results += reconstructor.flush()
    assert {result.up.source for result in results if result.frames} == {"ground plane"}
    assert tilt_of_map(geometries(results), poses) < 1.0
    assert tilt_of_map(geometries(results)[:1], poses[:1]) < 1.0


def test_without_either_a_map_is_tilted_as_its_first_camera_and_that_is_known():
    poses = pitched_flight(12)
    inner, _ = start(poses)
    results = [result for frame in room.frames(poses) for result in inner.add(frame)]
    assert {result.up.source for result in results} == {"first camera"}
    assert tilt_of_map(geometries(results), poses[:12]) == pytest.approx(np.degrees(PITCH), abs=0.1)
