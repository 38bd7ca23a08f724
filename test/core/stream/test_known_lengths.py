"""Known lengths that images show: range sensors, the camera's height, a rig's baseline."""

import numpy as np
import pytest
from support import known_room as room
from support.streams import geometries, run, start

from qvggt_core.geometry.poses import transform
from qvggt_core.stream.frame import FrameGeometry, ScaleState, View
from qvggt_core.stream.known_lengths import KnownLengths, RangeReading, range_ratio

UNIT = 2.5
FORWARD = transform(np.array([[0, -1.0, 0], [0, 0, -1.0], [1.0, 0, 0]]), np.array([0.1, 0.0, 0.0]))
DOWN = transform(np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, -1.0]]), np.zeros(3))


def geometry(pose, *, source="", stamp=0, depth=None):
    """A frame of the room as it is in a map whose unit is 2.5 m."""
    image = np.zeros((room.HEIGHT, room.WIDTH, 3), np.uint8)
    metres = room.depth_of(pose) if depth is None else depth
    placed = pose.copy()
    placed[:3, 3] /= UNIT
    return FrameGeometry(
        placed,
        (metres / UNIT).astype(np.float32),
        np.ones(metres.shape, np.float32),
        view=View(stamp, image, room.INTRINSICS, "camera", source),
        intrinsics=room.INTRINSICS,
    )


def pose_at(x=0.0, y=0.0, z=0.0, yaw=0.0, pitch=0.0):
    return room.flight(np.array([[x, y, z]]), np.array([[yaw, pitch, 0.0]]))[0]


def test_a_range_ahead_is_held_against_the_depth_in_its_direction():
    pose = pose_at(yaw=np.pi / 2)  # towards the wall at y = 4
    end = room.HIGH[1]
    ratio = range_ratio(RangeReading(0, end, FORWARD), geometry(pose))
    assert ratio.source == "range"
    assert ratio.metres == pytest.approx(UNIT, rel=1e-3)


def test_a_range_at_an_edge_of_things_gives_nothing():
    pose = pose_at(yaw=np.pi / 2)
    depth = room.depth_of(pose)
    depth[:, : room.WIDTH // 2] *= 2
    reading = RangeReading(0, room.HIGH[1], FORWARD, half_angle=0.1)
    assert range_ratio(reading, geometry(pose, depth=depth)) is None


def test_a_range_that_the_image_does_not_show_gives_nothing():
    assert range_ratio(RangeReading(0, 1.5, DOWN), geometry(pose_at())) is None


def test_a_sensor_that_looks_down_gives_the_height_at_the_time_of_an_image():
    lengths = KnownLengths()
    pose = pose_at(z=0.7)
    lengths.add_range(RangeReading(1_000_000_000, 2.2, FORWARD))
    lengths.add_range(RangeReading(2_000_000_000, 2.2, DOWN))
    assert lengths.altitude(1_000_000_000, pose) is None  # it looks elsewhere
    assert lengths.altitude(2_010_000_000, pose) == pytest.approx(2.2)
    assert lengths.altitude(2_500_000_000, pose) is None  # no reading of that time


def test_a_rig_s_baseline_gives_the_unit_of_each_pair():
    left, right = pose_at(), pose_at(y=-0.12)
    lengths = KnownLengths()
    frames = [geometry(left, source="left"), geometry(right, source="right")]
    assert lengths.ratios(frames) == []
    lengths.set_baseline("right", 0.12)
    ((_, ratio),) = lengths.ratios(frames)
    assert (ratio.source, ratio.metres) == ("baseline", pytest.approx(UNIT, rel=1e-6))


@pytest.mark.parametrize("metres", [np.nan, np.inf, 0.0, -1.0])
def test_what_is_no_distance_is_left_out(metres):
    lengths = KnownLengths()
    lengths.add_range(RangeReading(0, metres, FORWARD))
    lengths.set_baseline("right", metres)
    frames = [geometry(pose_at(), source="left"), geometry(pose_at(y=-0.12), source="right")]
    assert lengths.ratios(frames) == []
    assert lengths.ratios([geometry(pose_at(yaw=np.pi / 2))]) == []


def test_a_stream_with_a_range_sensor_ahead_comes_out_in_metres():
    poses = room.flight(
        np.stack([0.05 * np.arange(24), 0.03 * np.arange(24), np.zeros(24)], axis=1),
        np.tile([np.pi / 2, 0.0, 0.0], (24, 1)),
    )
    reconstructor, network = start(poses)
    results = []
    for frame, pose in zip(room.frames(poses), poses, strict=True):
        ahead = room.HIGH[1] - pose[1, 3] - 0.1
        sensor = transform(FORWARD[:3, :3], np.array([0.0, 0.0, 0.1]))
        reconstructor.sensors.add_range(RangeReading(frame.stamp_ns, ahead, sensor))
        results += reconstructor.add(frame)
    results += reconstructor.flush()
    last = results[-1] if results[-1].frames else results[-2]
    assert last.scale.state is ScaleState.METRIC
    assert last.scale.metres_per_unit == pytest.approx(network.units[0], rel=0.01)
    assert last.scale.sources == ("range",)


def test_a_stream_with_a_known_camera_height_comes_out_in_metres():
    poses = room.straight(24)
    reconstructor, network = start(poses, camera_height=float(-room.LOW[2]))
    results = run(reconstructor, room.frames(poses))
    metric = [result for result in results if result.scale.metres_per_unit is not None]
    assert geometries(metric)
    assert metric[-1].scale.metres_per_unit == pytest.approx(network.units[0], rel=0.01)
    assert metric[-1].scale.source == "camera height"
