"""Messages that know metres become sources of the scale, found without being asked for."""

import numpy as np
import pytest
from rosbags.typesys.stores.ros2_jazzy import sensor_msgs__msg__NavSatStatus as NavSatStatus
from scipy.spatial.transform import Rotation
from support.recordings import (
    M,
    RoomNetwork,
    header,
    room_entries,
    stamp_of,
    world_from_camera,
    write_recording,
)
from support.replays import replay

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame
from qvggt_ros.counters import Counters
from qvggt_ros.io.conversions import quaternion
from qvggt_ros.metric_sensors import MetricSensors
from qvggt_ros.steps import Steps

CAMERA, SENSOR = "camera_optical_frame", "range_link"
MOUNT = transform(FLU_FROM_OPTICAL[:3, :3].T, np.array([0.0, 0.1, 0.0]))


class Reconstructor:
    """Keeps what it is given."""

    def __init__(self):
        self.odometry, self.gps, self.ranges, self.places = [], [], [], {}
        self.imu = []

    def add_odometry(self, stamp_ns, position, odom_from_camera=None):
        self.odometry.append((stamp_ns, position, odom_from_camera))

    def add_gps(self, stamp_ns, position, sigma):
        self.gps.append((stamp_ns, position, sigma))

    def add_range(self, reading):
        self.ranges.append(reading)

    def add_imu(self, stamp_ns, acceleration, turn_rate):
        self.imu.append((stamp_ns, acceleration, turn_rate))

    def set_extrinsics(self, source, other_from_first):
        self.places[source] = other_from_first


def make(known=True, camera=CAMERA):
    taken, counters = Reconstructor(), Counters()

    def lookup(target, source, stamp_ns):
        return MOUNT if known and (target, source) == (CAMERA, SENSOR) else None

    sensors = MetricSensors(taken, lookup, counters)
    sensors.camera_frame = camera
    return sensors, taken, counters


def range_message(metres, index=0, least=0.1, most=10.0):
    return M.Range(
        header=header(index, SENSOR),
        radiation_type=1,
        field_of_view=0.4,
        min_range=least,
        max_range=most,
        range=metres,
        variance=0.0,
    )


def fix_message(place, index=0, status=0, variance=4.0, covariance_type=2):
    latitude, longitude, altitude = place
    return M.NavSatFix(
        header=header(index, "gps"),
        status=NavSatStatus(status=status, service=1),
        latitude=latitude,
        longitude=longitude,
        altitude=altitude,
        position_covariance=np.diag([variance] * 3).ravel(),
        position_covariance_type=covariance_type,
    )


def test_a_range_comes_with_where_its_sensor_sits_and_what_it_sees():
    sensors, taken, _ = make()
    sensors.on_range(range_message(2.5, index=3))
    (reading,) = taken.ranges
    assert (reading.stamp_ns, reading.metres) == (stamp_of(3), 2.5)
    assert reading.half_angle == pytest.approx(0.2)
    # The sensor's x axis is the camera's forward.
    np.testing.assert_allclose(reading.end, [0.0, 0.1, 2.5], atol=1e-9)


@pytest.mark.parametrize("metres", [np.nan, np.inf, -np.inf, 0.05, 10.0, 11.0, 0.0])
def test_what_a_range_sensor_does_not_see_is_left_out(metres):
    sensors, taken, counters = make()
    sensors.on_range(range_message(metres))
    assert taken.ranges == []
    assert not counters.rejected


def test_a_range_sensor_without_a_transform_is_named_and_left_out():
    sensors, taken, counters = make(known=False)
    sensors.on_range(range_message(2.0))
    assert taken.ranges == []
    assert any("no transform from camera_optical_frame to range_link" in e for e in counters.events)


def test_fixes_become_metres_about_the_first_one():
    sensors, taken, _ = make()
    sensors.on_fix(fix_message((47.0, 8.0, 500.0)))
    sensors.on_fix(fix_message((47.0, 8.0, 530.0), index=1))
    (_, origin, sigma), (stamp, position, _) = taken.gps
    np.testing.assert_allclose(origin, np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(position, [0.0, 0.0, 30.0], atol=1e-6)
    assert (stamp, sigma) == (stamp_of(1), pytest.approx(2.0))


@pytest.mark.parametrize(
    "message",
    [
        fix_message((47.0, 8.0, 500.0), status=-1),
        fix_message((np.nan, 8.0, 500.0)),
        fix_message((91.0, 8.0, 500.0)),
    ],
)
def test_a_fix_without_a_position_is_left_out(message):
    sensors, taken, _ = make()
    sensors.on_fix(message)
    assert taken.gps == []


def test_a_fix_of_unknown_covariance_has_that_of_a_usual_receiver():
    sensors, taken, _ = make()
    sensors.on_fix(fix_message((47.0, 8.0, 500.0), variance=0.0, covariance_type=0))
    assert 0.5 < taken.gps[0][2] < 5.0


def rig(*frames_of_cameras):
    image = np.zeros((4, 4, 3), np.uint8)
    return {name: Frame(0, image, None, frame, name) for name, frame in frames_of_cameras}


LEFT_AND_RIGHT = rig(("left", CAMERA), ("right", SENSOR))


def projection(offset):
    return np.hstack([np.diag([400.0, 400.0, 1.0]), [[offset], [0.0], [0.0]]])


def test_a_stereo_pair_s_place_is_in_its_second_projection():
    sensors, taken, _ = make(known=False)
    sensors.on_projection("left", projection(0.0), np.eye(3))
    sensors.on_projection("right", projection(-48.0), np.zeros((3, 3)))
    sensors.on_rig(LEFT_AND_RIGHT)
    np.testing.assert_allclose(taken.places["right"], transform(np.eye(3), [-0.12, 0, 0]))


def test_the_turns_of_a_stereo_calibration_are_those_of_the_cameras():
    # A point far ahead of the common axes lies where each camera's own R puts it.
    left, right = (Rotation.from_rotvec([0, angle, 0]).as_matrix() for angle in (0.02, -0.03))
    sensors, taken, _ = make(known=False)
    sensors.on_projection("left", projection(0.0), left)
    sensors.on_projection("right", projection(-48.0), right)
    sensors.on_rig(LEFT_AND_RIGHT)
    far = 1e9 * np.array([0.1, 0.2, 1.0])
    found = taken.places["right"] @ np.append(left.T @ far, 1.0)
    np.testing.assert_allclose(found[:3] / 1e9, right.T @ far / 1e9, atol=1e-6)
    at_the_right_camera = left.T @ [0.12, 0.0, 0.0]
    found = taken.places["right"] @ np.append(at_the_right_camera, 1.0)
    np.testing.assert_allclose(found[:3], np.zeros(3), atol=1e-12)


def test_a_projection_without_a_baseline_says_nothing():
    sensors, taken, _ = make(known=False)
    for name in ("left", "right"):
        sensors.on_projection(name, projection(0.0), np.eye(3))
    sensors.on_projection("right", projection(np.nan), np.eye(3))
    sensors.on_rig(LEFT_AND_RIGHT)
    assert taken.places == {}


def test_the_place_of_a_rig_s_camera_is_known_to_tf():
    sensors, taken, _ = make()
    sensors.on_rig(rig(("left", SENSOR), ("right", CAMERA)))
    # TF has the first camera in the second one: points of the first come out in the second.
    np.testing.assert_allclose(taken.places["right"], MOUNT)


def imu_message(force, index=0, lacks=0.0):
    zero = M.Vector3(x=0.0, y=0.0, z=0.1)
    x, y, z = force
    covariance = np.zeros(9)
    covariance[0] = lacks
    return M.Imu(
        header=header(index, SENSOR),
        orientation=M.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
        orientation_covariance=np.zeros(9),
        angular_velocity=zero,
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=M.Vector3(x=x, y=y, z=z),
        linear_acceleration_covariance=covariance,
    )


def test_an_imu_is_given_along_the_camera_s_axes():
    sensors, taken, _ = make()
    sensors.on_imu(imu_message((0.0, 0.0, 9.8), index=2))
    ((stamp, force, rate),) = taken.imu
    assert stamp == stamp_of(2)
    # The sensor's z is up: against the optical y.
    np.testing.assert_allclose(force, [0.0, -9.8, 0.0], atol=1e-9)
    np.testing.assert_allclose(rate, [0.0, -0.1, 0.0], atol=1e-9)


def test_an_imu_without_an_accelerometer_or_a_transform_is_left_out():
    sensors, taken, _ = make()
    sensors.on_imu(imu_message((0.0, 0.0, 9.8), lacks=-1.0))
    assert taken.imu == []
    sensors, taken, counters = make(known=False)
    sensors.on_imu(imu_message((0.0, 0.0, 9.8)))
    assert taken.imu == []
    assert any("which way is up" in event for event in counters.events)


FRAMES = 24
PLAIN = Parameters(
    confirm=False, refine=False, keyframe_min_motion=0.0, min_confidence_percentile=0.0
)


def odometry(index, pose):
    x, y, z, w = (float(each) for each in quaternion(pose[:3, :3]))
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    position = M.Point(**dict(zip("xyz", map(float, pose[:3, 3]), strict=True)))
    return M.Odometry(
        header=header(index, "odom"),
        child_frame_id=CAMERA,
        pose=M.PoseWithCovariance(
            pose=M.Pose(position=position, orientation=M.Quaternion(x=x, y=y, z=z, w=w)),
            covariance=np.zeros(36),
        ),
        twist=M.TwistWithCovariance(
            twist=M.Twist(linear=zero, angular=zero), covariance=np.zeros(36)
        ),
    )


@pytest.fixture(scope="module")
def with_odometry(tmp_path_factory):
    start = inverse(world_from_camera(0))
    entries = room_entries(FRAMES)
    entries += [
        ("/wheels/odom", "Odometry", stamp_of(i), odometry(i, start @ world_from_camera(i)))
        for i in range(FRAMES)
    ]
    return write_recording(tmp_path_factory.mktemp("in") / "room", entries)


def test_odometry_of_a_recording_gives_metres_without_being_asked_for(with_odometry, tmp_path):
    summary = replay(with_odometry, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    found = summary.metrics["result"]
    assert summary.metrics["recording"]["odometry_topic"] == "/wheels/odom"
    assert (found["unit"], found["scale_state"]) == ("m", "metric")
    assert found["metres_per_unit"] == pytest.approx(2.0, rel=0.01)
    assert found["scale_sources"] == ["odometry"]
    accuracy = summary.metrics["accuracy"]
    assert accuracy["alignment"] == "se3"
    (segment,) = accuracy["segments"]
    assert segment["alignments"]["se3"]["translation"]["rmse"] < 0.01
    # From the first frame on: what waited for the scale is in metres too.
    assert segment["compared"] == FRAMES


@pytest.mark.parametrize("far", [1e3, 1e8])
def test_odometry_that_jumps_away_for_a_moment_costs_itself(far, tmp_path):
    start = inverse(world_from_camera(0))
    entries = room_entries(FRAMES)
    for index in range(FRAMES):
        message = odometry(index, start @ world_from_camera(index))
        message.pose.pose.position.x += far if index in (4, 11, 12) else 0.0
        entries.append(("/wheels/odom", "Odometry", stamp_of(index), message))
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    found = summary.metrics["result"]
    assert found["metres_per_unit"] == pytest.approx(2.0, rel=0.01)
    assert sum(n for text, n in found["rejected"].items() if "a step of" in text) == 3


def test_fixes_that_no_place_has_and_jumps_are_rejected():
    good = [(47.0 + 1e-7 * index, 8.0, 400.0) for index in range(10)]
    bad = {3: (0.0, 0.0, 0.0), 5: (47.0, 999.0, 400.0), 7: (47.0, 8.0, 1e300)}
    sensors, reconstructor, counters = make()
    for index, place in enumerate(good):
        sensors.on_fix(fix_message(bad.get(index, place), index))
    assert len(reconstructor.gps) == 7
    assert sum(counters.rejected.values()) == 3


def test_positions_that_begin_elsewhere_and_go_on_there_are_taken():
    """As where odometry is started anew."""
    steps = Steps()
    refused = [
        bool(steps.refusal(stamp_of(i), np.array([1e6 * (i >= 6) + 0.1 * i, 0.0, 0.0])))
        for i in range(20)
    ]
    assert refused == [6 <= i < 10 for i in range(20)]


def test_odometry_can_be_refused(with_odometry, tmp_path):
    options = {"report": False, "odometry": False}
    summary = replay(with_odometry, tmp_path / "out", RoomNetwork(), PLAIN, **options)
    assert summary.metrics["recording"]["odometry_topic"] is None
    assert summary.metrics["result"]["unit"] == "units"
    assert summary.metrics["result"]["scale_state"] == "unknown"


def test_a_range_sensor_of_a_recording_is_found(tmp_path):
    entries = room_entries(3)
    entries.append(("/range", "Range", stamp_of(0), range_message(2.0)))
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    assert summary.metrics["recording"]["scale_topics"] == ["/range"]
