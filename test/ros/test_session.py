"""A session: messages in, messages out, with a reconstructor whose answers are known."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.recordings import (
    HEIGHT,
    INTRINSICS,
    WIDTH,
    M,
    camera_info_message,
    header,
    image_message,
    odometry_message,
    stamp_of,
    world_from_camera,
)

from qvggt_core.errors import ImageError, RecordingError
from qvggt_core.geometry.cloud import read_ply
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.frame import FrameGeometry, LoopStatus, Losses, Reconstruction, Scale, View
from qvggt_ros.io import conversions
from qvggt_ros.io.conversions import read_pose, read_transform
from qvggt_ros.publishing import MAX_PATH_POSES, OUTPUTS, Driver, PathPoses, outputs_of
from qvggt_ros.session import ReconstructionSession


class PairReconstructor:
    """Answers every second frame with the geometry of two."""

    def __init__(self, scale=Scale(), refuse=()):  # noqa: B008
        self.frames = []
        self.waiting = []
        self.losses = Losses()
        self.sensors = SimpleNamespace(add_odometry=self.add_odometry)
        self.segment = 0
        self.scale = scale
        self.refuse = refuse
        self.odometry = []
        self.resets = []
        self.parameters = None

    def add(self, frame, *others):
        if frame.stamp_ns in self.refuse:
            raise ImageError(f"frame {frame.stamp_ns} is refused")
        self.frames += [frame, *others]
        self.waiting += [frame, *others]
        return self.flush() if len(self.waiting) >= 2 else ()

    def add_odometry(self, stamp_ns, position, odom_from_camera=None):
        self.odometry.append((stamp_ns, position))

    def reset(self, reason):
        self.resets.append(reason)
        self.waiting = []

    def set_parameters(self, parameters):
        self.parameters = parameters

    def flush(self):
        if not self.waiting:
            return ()
        frames = tuple(
            FrameGeometry(
                view=View(frame.stamp_ns, frame.image, None, frame.frame_id, frame.source),
                map_from_camera=world_from_camera(index),
                intrinsics=INTRINSICS,
                depth=np.full((HEIGHT, WIDTH), 2.0, np.float32),
                confidence=np.full((HEIGHT, WIDTH), 3.0, np.float32),
            )
            for index, frame in enumerate(self.waiting)
        )
        self.waiting = []
        return (
            Reconstruction(
                self.segment,
                frames,
                self.scale,
                window_size=2,
                position_sigma=0.02,
                rotation_sigma=0.01,
            ),
        )


class Outbox(list):
    def emit(self, topic, message, stamp_ns):
        self.append((topic, message, stamp_ns))

    def of(self, topic):
        return [message for name, message, _ in self if name == topic]


def make(
    reconstructor=None,
    parameters=None,
    *,
    publish_tf="world_to_camera",
    wanted=lambda topic: True,
    lookup=lambda target, source, stamp_ns: None,
    now_ns=None,
    **options,
):
    outbox = Outbox()
    reconstructor = reconstructor or PairReconstructor()
    parameters = parameters or Parameters(publish_tf=publish_tf)
    driver = Driver(M, outbox.emit, wanted, lookup, now_ns)
    session = ReconstructionSession(reconstructor, parameters, driver, **options)
    return session, reconstructor, outbox


def test_each_frame_gives_each_output_with_the_stamp_of_its_image():
    session, _, outbox = make()
    for index in range(4):
        session.on_image(image_message(index))
    stamps = [stamp_of(index) for index in range(4)]
    for topic in set(OUTPUTS) - {"path"}:
        assert [stamp for name, _, stamp in outbox if name == topic] == stamps
    for topic in ("pose", "depth/image", "depth/camera_info", "points"):
        found = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in outbox.of(topic)]
        assert found == stamps


def test_geometry_is_in_the_camera_s_frame_and_poses_in_the_world_s():
    session, _, outbox = make()
    session.on_image(image_message(0, header=header(0, "drone_camera")))
    session.on_image(image_message(1, header=header(1, "")))
    assert [m.header.frame_id for m in outbox.of("points")] == [
        "drone_camera",
        "camera_optical_frame",
    ]
    assert {m.header.frame_id for m in outbox.of("pose")} == {"qvggt_unscaled"}
    assert outbox.of("tf")[0].transforms[0].child_frame_id == "drone_camera"


def test_a_known_scale_names_the_map_and_quiets_the_warning():
    session, _, outbox = make(PairReconstructor(Scale(2.0, "parameter")))
    session.on_image(image_message(0))
    assert session.status().level == "OK"
    session.on_image(image_message(1))
    assert outbox.of("pose")[0].header.frame_id == "map"
    assert session.status().level == "OK"
    assert session.status().values["metres_per_unit"] == 2.0


def test_an_unknown_scale_is_a_warning_once_there_is_geometry():
    session, _, _ = make()
    session.on_image(image_message(0))
    assert session.status().level == "OK"
    session.finish()
    assert session.status().level == "WARN"
    assert "scale is unknown" in session.status().message


def test_finish_publishes_what_waits():
    session, _, outbox = make()
    session.on_image(image_message(0))
    assert not outbox
    (result,) = session.finish()
    assert len(result.frames) == len(outbox.of("pose")) == 1


def test_without_subscribers_nothing_is_made():
    session, _, outbox = make(wanted=lambda topic: topic == "pose")
    for index in range(2):
        session.on_image(image_message(index))
    assert {topic for topic, _, _ in outbox} == {"pose"}


def test_images_are_paired_with_the_calibration_of_their_stamp_else_with_the_newest():
    session, reconstructor, _ = make()
    for index, focal in ((0, 40.0), (1, 50.0)):
        matrix = np.array([focal, 0, 28, 0, focal, 21, 0, 0, 1])
        session.on_camera_info(camera_info_message(index, k=matrix))
    for index in (0, 1, 7):
        session.on_image(image_message(index))
    focals = [frame.camera.intrinsics[0, 0] for frame in reconstructor.frames]
    assert focals == [40.0, 50.0, 50.0]


def test_without_calibration_images_are_used_as_they_are():
    session, reconstructor, _ = make()
    session.on_image(image_message(0))
    assert reconstructor.frames[0].camera is None
    assert session.counters.uncalibrated == 1


def test_a_broken_calibration_costs_the_calibration_not_the_image():
    session, reconstructor, _ = make()
    session.on_camera_info(camera_info_message(0, k=np.full(9, np.nan)))
    session.on_image(image_message(0))
    session.on_camera_info(camera_info_message(1))
    session.on_image(image_message(1))
    assert [frame.camera is None for frame in reconstructor.frames] == [True, False]
    assert "not finite" in next(iter(session.counters.rejected))


def test_a_bad_image_is_left_out_and_reported_once_per_kind(caplog):
    session, reconstructor, outbox = make()
    with caplog.at_level(logging.WARNING):
        session.on_image(image_message(0))
        for height in (9000, 9001, 9002):
            session.on_image(image_message(1, height=height))
        session.on_image(image_message(1, encoding="32FC1"))
        session.on_image(image_message(1))
    assert len(reconstructor.frames) == 2
    assert len(outbox.of("pose")) == 2
    assert sorted(session.counters.rejected.values()) == [1, 3]
    assert session.counters.received == 6
    assert len(session.counters.events) == len(caplog.records) == 2
    assert session.status().level == "WARN"


def test_a_frame_that_the_reconstructor_refuses_is_left_out():
    session, _, outbox = make(PairReconstructor(refuse={stamp_of(1)}))
    for index in range(3):
        session.on_image(image_message(index))
    assert [stamp for topic, _, stamp in outbox if topic == "pose"] == [stamp_of(0), stamp_of(2)]
    assert sum(session.counters.rejected.values()) == 1


def test_the_path_grows_within_a_segment_and_begins_anew_with_the_next():
    session, reconstructor, outbox = make()
    for index in range(4):
        session.on_image(image_message(index))
    reconstructor.segment = 1
    for index in range(4, 6):
        session.on_image(image_message(index))
    assert [len(message.poses) for message in outbox.of("path")] == [2, 4, 2]
    assert outbox.of("path")[2].header.frame_id == "qvggt_unscaled_1"
    assert session.counters.segments == 2


def test_a_long_path_is_thinned_and_keeps_its_newest_pose():
    session, _, outbox = make(wanted=lambda topic: topic == "path")
    tiny = {"height": 1, "width": 1, "step": 3, "data": np.zeros(3, np.uint8)}
    for index in range(MAX_PATH_POSES + 50):
        session.on_image(image_message(0, header=header(index), **tiny))
    last = outbox.of("path")[-1]
    assert MAX_PATH_POSES // 2 <= len(last.poses) <= MAX_PATH_POSES
    newest = last.poses[-1].header.stamp
    assert newest.sec * 10**9 + newest.nanosec == stamp_of(MAX_PATH_POSES + 49)


def test_latency_is_from_image_to_geometry():
    ticks = iter(range(100))
    session, _, _ = make(clock=lambda: float(next(ticks)))
    for index in range(2):
        session.on_image(image_message(index))
    # Image 0 arrives at 0, image 1 at 1; their geometry is out at 2 and 3.
    assert list(session.counters.latencies) == [2.0, 2.0]
    assert session.status().values["latency_s"]["max"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("of_info", "of_image", "is_odd"),
    [("right", "left", True), ("/left", "left", False), ("", "left", False), ("left", "", False)],
)
def test_a_calibration_of_another_frame_is_named(of_info, of_image, is_odd):
    session, _, _ = make()
    session.on_camera_info(camera_info_message(0, header=header(0, of_info)))
    session.on_image(image_message(0, header=header(0, of_image)))
    found = [text for text in session.counters.events if "CameraInfo is of the frame" in text]
    assert len(found) == is_odd
    assert session.counters.uncalibrated == 0


# Live


def odometry(index, position=(0.0, 0.0, 0.0), child="base_link"):
    heading_left = Rotation.from_euler("z", np.pi / 2).as_matrix()
    return odometry_message(index, transform(heading_left, np.array(position)), child)


BASE_FROM_CAMERA = transform(FLU_FROM_OPTICAL[:3, :3], np.array([0.2, 0.0, 0.1]))
KNOWN = {("base_link", "camera_optical_frame"): BASE_FROM_CAMERA}


def known_transform(target, source, stamp_ns):
    if (target, source) in KNOWN:
        return KNOWN[target, source]
    return inverse(KNOWN[source, target]) if (source, target) in KNOWN else None


def test_odometry_of_the_base_becomes_that_of_the_camera():
    session, reconstructor, _ = make(lookup=known_transform)
    session.on_odometry(odometry(0))
    assert reconstructor.odometry == []  # which camera is not known yet
    session.on_image(image_message(0))
    session.on_odometry(odometry(1, position=(5.0, 1.0, 0.0)))
    ((stamp, position),) = reconstructor.odometry
    assert stamp == stamp_of(1)
    # The base is turned left by 90 degrees: 0.2 m ahead is 0.2 m along y.
    assert np.allclose(position, [5.0, 1.2, 0.1])


def test_odometry_without_a_transform_is_taken_as_the_camera_s_and_reported_once():
    session, reconstructor, _ = make()
    session.on_image(image_message(0))
    for index in (1, 2):
        session.on_odometry(odometry(index, position=(5.0, 1.0, 0.0)))
    assert np.allclose(reconstructor.odometry[-1][1], [5.0, 1.0, 0.0])
    assert sum("no transform from base_link" in event for event in session.counters.events) == 1


def test_broken_odometry_costs_itself():
    session, reconstructor, _ = make()
    session.on_image(image_message(0))
    session.on_odometry(odometry(1, position=(np.nan, 0.0, 0.0)))
    assert reconstructor.odometry == []
    assert "odometry" in next(iter(session.counters.rejected))


def test_odometry_goes_out_for_the_base_with_growing_variance_and_a_twist():
    metric = PairReconstructor(Scale(1.0, "parameter"))
    session, _, outbox = make(metric, lookup=known_transform)
    for index in range(4):
        session.on_image(image_message(index))
    first, second, third, _ = outbox.of("odometry")
    assert (first.header.frame_id, first.child_frame_id) == ("map", "base_link")
    expected = world_from_camera(0) @ inverse(BASE_FROM_CAMERA)
    assert np.allclose(read_pose(first), expected)
    assert first.twist.covariance[0] >= 1e6
    between = inverse(read_pose(first)) @ read_pose(second)
    # Constant velocity over the step ends where the second pose is, by the exponential map.
    twist = second.twist.twist
    turn = Rotation.from_rotvec(0.1 * np.array([getattr(twist.angular, a) for a in "xyz"]))
    assert np.allclose(turn.as_matrix(), between[:3, :3], atol=1e-9)
    linear = 0.1 * np.array([getattr(twist.linear, a) for a in "xyz"])
    assert np.allclose(turn.apply(linear), between[:3, 3], atol=1e-9)
    variances = [message.pose.covariance[0] for message in (first, third)]
    assert 0 < variances[0] < variances[1]


def test_without_the_base_s_transform_odometry_is_the_camera_s():
    session, _, outbox = make()
    for index in range(2):
        session.on_image(image_message(index))
    assert outbox.of("odometry")[0].child_frame_id == "camera_optical_frame"


def test_an_image_that_comes_late_is_left_out_and_time_that_goes_back_resets():
    session, reconstructor, outbox = make(live=True)
    for index in (0, 2, 1, 3):
        session.on_image(image_message(index))
    assert [frame.stamp_ns for frame in reconstructor.frames] == [
        stamp_of(index) for index in (0, 2, 3)
    ]
    assert "came late" in next(iter(session.counters.rejected))
    session.on_image(image_message(100))
    session.on_image(image_message(0))
    (reason,) = reconstructor.resets
    assert "time went back by 10.000 s" in reason
    outbox.clear()
    session.on_image(image_message(1))
    assert [len(path.poses) for path in outbox.of("path")] == [2]


def test_reset_forgets_the_path():
    session, reconstructor, outbox = make()
    for index in range(4):
        session.on_image(image_message(index))
    session.reset()
    for index in range(4, 6):
        session.on_image(image_message(index))
    assert len(reconstructor.resets) == 1
    assert [len(path.poses) for path in outbox.of("path")] == [2, 4, 2]


def test_a_path_does_not_mix_units():
    session, reconstructor, outbox = make()
    for index in range(2):
        session.on_image(image_message(index))
    reconstructor.scale = Scale(2.0, "odometry")
    for index in range(2, 4):
        session.on_image(image_message(index))
    assert [(p.header.frame_id, len(p.poses)) for p in outbox.of("path")] == [
        ("qvggt_unscaled", 2),
        ("map", 2),
    ]


def test_the_map_is_saved_as_it_is_published(tmp_path):
    parameters = Parameters(map_directory=str(tmp_path / "maps"), map_voxel=1e-6)
    session, _, outbox = make(parameters=parameters, live=True)
    with pytest.raises(RecordingError, match="no map yet"):
        session.save_map()
    for index in range(2):
        session.on_image(image_message(index))
    path, points = session.save_map()
    assert path.parent == tmp_path / "maps"
    assert f"element vertex {points}\n".encode() in path.read_bytes()
    assert points == sum(message.width for message in outbox.of("points"))


class LoopReconstructor(PairReconstructor):
    """The third pair of images closes a loop: all keyframes so far move by 10 to the side."""

    moved = transform(np.eye(3), np.array([0.0, 10.0, 0.0]))

    def flush(self):
        (result,) = super().flush()
        if len(self.frames) <= 4:
            return (replace(result, loops=LoopStatus(2 * len(self.frames))),)
        stamps = np.array([stamp_of(0), stamp_of(4)])
        corrections = KeyframeCorrections(
            stamps, np.zeros(2, int), np.zeros(2, int), np.stack([self.moved] * 2)
        )
        return (
            replace(
                result,
                frames=tuple(frame.moved(self.moved) for frame in result.frames),
                loops=LoopStatus(6),
                map_from_odometry=self.moved,
                corrections=corrections,
            ),
        )


def test_the_map_that_is_saved_follows_a_loop(tmp_path):
    parameters = Parameters(map_directory=str(tmp_path), map_voxel=0.01, loop_closure=True)
    session, _, _ = make(LoopReconstructor(), parameters, live=True)
    for index in range(4):
        session.on_image(image_message(index))
    before = read_ply(session.save_map()[0])
    for index in range(4, 6):
        session.on_image(image_message(index))
    after = read_ply(session.save_map()[0])
    # Each pair is at the same two places.
    low, high = before.positions.min(axis=0), before.positions.max(axis=0)
    np.testing.assert_allclose(after.positions.min(axis=0), np.add(low, [0, 10, 0]), atol=0.05)
    np.testing.assert_allclose(after.positions.max(axis=0), np.add(high, [0, 10, 0]), atol=0.05)


def test_a_map_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "maps").write_text("a file")
    parameters = Parameters(map_directory=str(tmp_path / "maps"))
    session, _, _ = make(parameters=parameters, live=True)
    for index in range(2):
        session.on_image(image_message(index))
    with pytest.raises(RecordingError, match="cannot be written"):
        session.save_map()


def test_clouds_come_in_the_world_on_request_and_at_once():
    session, _, outbox = make()
    for index in range(2):
        session.on_image(image_message(index))
    session.set_parameters(Parameters(points_frame="world", point_stride=2))
    for index in range(2, 4):
        session.on_image(image_message(index))
    before, after = outbox.of("points")[0], outbox.of("points")[-1]
    assert (before.header.frame_id, after.header.frame_id) == (
        "camera_optical_frame",
        "qvggt_unscaled",
    )
    assert after.width < before.width
    points = np.frombuffer(after.data, conversions.POINT_DTYPE)
    in_world = np.stack([points["x"], points["y"], points["z"]], axis=1)
    in_camera = in_world @ world_from_camera(1)[:3, :3] + inverse(world_from_camera(1))[:3, 3]
    assert np.allclose(in_camera[:, 2], 2.0, atol=1e-5)


def transforms(mode, known=None, scale=None, segment=0):
    reconstructor = PairReconstructor(scale or Scale(1.0, "odometry"))
    reconstructor.segment = segment
    session, _, outbox = make(
        reconstructor,
        Parameters(publish_tf=mode),
        lookup=lambda target, source, stamp_ns: (known or {}).get((target, source)),
    )
    for index in range(2):
        session.on_image(image_message(index))
    return session, [message.transforms[0] for message in outbox.of("tf")]


def test_tf_is_off_by_default():
    assert transforms("none")[1] == []


def test_the_map_holds_odom_so_that_the_camera_is_where_it_was_found():
    odom_from_camera = transform(FLU_FROM_OPTICAL[:3, :3], np.array([4.0, -1.0, 0.3]))
    _, (first, _) = transforms(
        "map_to_odom", {("camera_optical_frame", "odom"): inverse(odom_from_camera)}
    )
    assert (first.header.frame_id, first.child_frame_id) == ("map", "odom")
    assert np.allclose(read_transform(first) @ odom_from_camera, world_from_camera(0))


def test_alone_it_gives_odom_to_base():
    _, (first, _) = transforms(
        "odom_to_base", {("camera_optical_frame", "base_link"): inverse(BASE_FROM_CAMERA)}
    )
    assert (first.header.frame_id, first.child_frame_id) == ("odom", "base_link")
    assert np.allclose(read_transform(first) @ BASE_FROM_CAMERA, world_from_camera(0))


def test_nothing_of_an_unknown_unit_is_hung_into_the_robot_s_tree():
    known = {("camera_optical_frame", "base_link"): inverse(BASE_FROM_CAMERA)}
    assert transforms("odom_to_base", known, Scale())[1] == []


def test_a_missing_transform_is_named():
    session, found = transforms("map_to_odom")
    assert found == []
    assert "no transform from odom to camera_optical_frame" in session.counters.events[-1]


RIG = Parameters(cameras=["front", "left"], publish_tf="world_to_camera")


def test_a_rig_fills_one_window_and_each_camera_has_its_outputs():
    session, reconstructor, outbox = make(parameters=RIG)
    session.on_camera_info(camera_info_message(0), "left")
    images = {
        "left": image_message(0, header=header(0, "left_optical")),
        "front": image_message(0, header=header(0, "front_optical")),
    }
    session.on_images(images)
    assert [frame.source for frame in reconstructor.frames] == ["front", "left"]
    assert [frame.camera is None for frame in reconstructor.frames] == [True, False]
    assert len(outbox.of("pose")) == len(outbox.of("path")[0].poses) == 1
    assert outbox.of("tf")[0].transforms[0].child_frame_id == "front_optical"
    assert [m.header.frame_id for m in outbox.of("points")] == ["front_optical"]
    assert [m.header.frame_id for m in outbox.of("left/points")] == ["left_optical"]
    assert {topic for topic, _, _ in outbox} <= set(outputs_of(RIG))
    assert session.counters.received == session.counters.published == 2


def test_a_rig_goes_on_without_a_camera_but_not_without_its_first():
    session, reconstructor, _ = make(parameters=RIG)
    broken = image_message(0, height=9000)
    session.on_images({"front": image_message(0), "left": broken})
    assert [frame.source for frame in reconstructor.frames] == ["front"]
    session.on_images({"front": broken, "left": image_message(1)})
    assert len(reconstructor.frames) == 1
    assert sorted(session.counters.rejected.values()) == [1, 1, 1]


def test_age_is_that_of_the_image_when_the_network_starts():
    session, _, _ = make(now_ns=lambda: stamp_of(1) + 30_000_000)
    for index in range(2):
        session.on_image(image_message(index))
    assert list(session.counters.ages) == [pytest.approx(0.03)]
    assert session.status().values["age_s"]["p50"] == pytest.approx(0.03)


def test_reasons_without_end_are_bounded_in_number_and_length():
    session, _, _ = make()
    for index in range(500):
        name = "".join(chr(97 + int(digit)) for digit in str(index))
        session.on_image(image_message(0, encoding=f"strange{name}" + "x" * 2000))
    rejected = session.counters.rejected
    assert len(rejected) <= 101
    assert sum(rejected.values()) == 500
    assert rejected["other reasons"] >= 400
    assert max(map(len, rejected)) <= 500
    assert len(session.counters.events) <= 200


def test_a_long_flight_keeps_no_more_poses_than_its_path_has():
    path = PathPoses()
    for index in range(50_000):
        path.add(index)
        assert len(path.poses) <= MAX_PATH_POSES
        assert path.poses[-1] == index
    steps = {b - a for a, b in zip(path.poses[:-1], path.poses[1:-1], strict=False)}
    assert len(steps) == 1
    assert path.poses[0] == 0


def test_a_node_forgets_what_is_over_and_a_recording_does_not():
    node, _, _ = make(live=True)
    recording, _, _ = make()
    for session in (node, recording):
        session.on_image(image_message(0, step=1))
        assert session.status().level == "WARN"
        later = session.counters.clock() + 60.0
        session.counters.clock = lambda later=later: later
    assert node.status().level == "OK"
    assert recording.status().level == "WARN"
    assert node.status().values["rejected"]


class CorrectedReconstructor(PairReconstructor):
    """Answers as if a loop had moved the map by the second pair of frames."""

    correction = transform(Rotation.from_euler("z", 0.3).as_matrix(), np.array([1.0, -2.0, 0.5]))

    def flush(self):
        results = super().flush()
        moved = np.eye(4) if len(self.frames) <= 2 else self.correction
        return tuple(
            replace(
                result,
                frames=tuple(frame.moved(moved) for frame in result.frames),
                map_from_odometry=moved,
                loops=LoopStatus(7, 2, {"few corners look alike": 3}, shift=0.4),
            )
            for result in results
        )


def closed_loop(mode, known=None):
    """Return a session, what it sent, and whether a transform by name was sent last."""
    session, _, outbox = make(
        CorrectedReconstructor(Scale(1.0, "odometry")),
        Parameters(publish_tf=mode, loop_closure=True),
        lookup=lambda target, source, stamp_ns: (known or {}).get((target, source)),
    )
    for index in range(4):
        session.on_image(image_message(index))
    tree = {}
    for message in outbox.of("tf"):
        (sent,) = message.transforms
        tree[sent.header.frame_id, sent.child_frame_id] = read_transform(sent)
    return session, outbox, tree


def test_a_loop_moves_poses_and_not_odometry():
    _, outbox, tree = closed_loop("world_to_camera")
    pose, odometry = outbox.of("pose")[-1], outbox.of("odometry")[-1]
    assert (pose.header.frame_id, odometry.header.frame_id) == ("map", "map_odometry")
    continuous = world_from_camera(1)
    assert np.allclose(read_pose(odometry), continuous)
    assert np.allclose(read_pose(pose), CorrectedReconstructor.correction @ continuous)
    assert np.allclose(
        tree["map", "map_odometry"] @ continuous, tree["map", "camera_optical_frame"]
    )


def test_a_loop_moves_odom_in_the_map_where_odometry_is_this_node_s():
    known = {("camera_optical_frame", "base_link"): inverse(BASE_FROM_CAMERA)}
    _, outbox, tree = closed_loop("odom_to_base", known)
    assert outbox.of("pose")[-1].header.frame_id == "map"
    assert outbox.of("odometry")[-1].header.frame_id == "odom"
    assert np.allclose(tree["map", "odom"], CorrectedReconstructor.correction)
    assert np.allclose(tree["odom", "base_link"] @ BASE_FROM_CAMERA, world_from_camera(1))


def test_what_has_become_of_loops_is_in_the_diagnostics():
    values = closed_loop("none")[0].status().values
    assert values["loops_accepted"] == 2
    assert values["loops_rejected"] == {"few corners look alike": 3}
    assert values["loop_shift"] == 0.4
    session = make()[0]
    session.on_image(image_message(0))
    assert session.status().values["loop_shift"] is None
