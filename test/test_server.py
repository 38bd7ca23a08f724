"""The server: messages in, messages out, with a reconstructor whose answers are known."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from recordings import (
    HEIGHT,
    INTRINSICS,
    WIDTH,
    M,
    camera_info_message,
    header,
    image_message,
    stamp_of,
    world_from_camera,
)

from qvggt_core.errors import ImageError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, Scale, View
from qvggt_ros.server import MAX_PATH_POSES, OUTPUTS, ReconstructionServer


class PairReconstructor:
    """Answers every second frame with the geometry of two."""

    def __init__(self, scale=Scale(), refuse=()):  # noqa: B008
        self.frames = []
        self.waiting = []
        self.gated = 0
        self.segment = 0
        self.scale = scale
        self.refuse = refuse
        self.odometry = []
        self.resets = []
        self.parameters = None

    def add(self, frame, *others):
        if frame.stamp_ns in self.refuse:
            raise ImageError(f"frame {frame.stamp_ns} is refused")
        self.frames.append(frame)
        self.waiting += [frame, *others]
        return self.flush() if len(self.waiting) >= 2 else ()

    def add_odometry(self, stamp_ns, position):
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
        return (Reconstruction(self.segment, frames, self.scale, window_size=2),)


class Outbox(list):
    def emit(self, topic, message, stamp_ns):
        self.append((topic, message, stamp_ns))

    def of(self, topic):
        return [message for name, message, _ in self if name == topic]


def make(reconstructor=None, parameters=None, **options):
    outbox = Outbox()
    reconstructor = reconstructor or PairReconstructor()
    options = {"transform_mode": "world_to_camera", **options}
    server = ReconstructionServer(
        reconstructor, parameters or Parameters(), M, outbox.emit, **options
    )
    return server, reconstructor, outbox


def test_each_frame_gives_each_output_with_the_stamp_of_its_image():
    server, _, outbox = make()
    for index in range(4):
        server.on_image(image_message(index))
    stamps = [stamp_of(index) for index in range(4)]
    for topic in set(OUTPUTS) - {"path"}:
        assert [stamp for name, _, stamp in outbox if name == topic] == stamps
    for topic in ("pose", "depth/image", "depth/camera_info", "points"):
        found = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in outbox.of(topic)]
        assert found == stamps


def test_geometry_is_in_the_camera_s_frame_and_poses_in_the_world_s():
    server, _, outbox = make()
    server.on_image(image_message(0, header=header(0, "drone_camera")))
    server.on_image(image_message(1, header=header(1, "")))
    assert [m.header.frame_id for m in outbox.of("points")] == [
        "drone_camera",
        "camera_optical_frame",
    ]
    assert {m.header.frame_id for m in outbox.of("pose")} == {"qvggt_unscaled"}
    assert outbox.of("tf")[0].transforms[0].child_frame_id == "drone_camera"


def test_a_known_scale_names_the_map_and_quiets_the_warning():
    server, _, outbox = make(PairReconstructor(Scale(2.0, "parameter")))
    server.on_image(image_message(0))
    assert server.status().level == "OK"
    server.on_image(image_message(1))
    assert outbox.of("pose")[0].header.frame_id == "map"
    assert server.status().level == "OK"
    assert server.status().values["metres_per_unit"] == 2.0


def test_an_unknown_scale_is_a_warning_once_there_is_geometry():
    server, _, _ = make()
    server.on_image(image_message(0))
    assert server.status().level == "OK"
    server.finish()
    assert server.status().level == "WARN"
    assert "scale is unknown" in server.status().message


def test_finish_publishes_what_waits():
    server, _, outbox = make()
    server.on_image(image_message(0))
    assert not outbox
    (result,) = server.finish()
    assert len(result.frames) == len(outbox.of("pose")) == 1


def test_nobody_listens_nothing_is_made():
    server, _, outbox = make(wanted=lambda topic: topic == "pose")
    for index in range(2):
        server.on_image(image_message(index))
    assert {topic for topic, _, _ in outbox} == {"pose"}


def test_images_are_paired_with_the_calibration_of_their_stamp_else_with_the_newest():
    server, reconstructor, _ = make()
    for index, focal in ((0, 40.0), (1, 50.0)):
        matrix = np.array([focal, 0, 28, 0, focal, 21, 0, 0, 1])
        server.on_camera_info(camera_info_message(index, k=matrix))
    for index in (0, 1, 7):
        server.on_image(image_message(index))
    focals = [frame.camera.intrinsics[0, 0] for frame in reconstructor.frames]
    assert focals == [40.0, 50.0, 50.0]


def test_without_calibration_images_are_used_as_they_are():
    server, reconstructor, _ = make()
    server.on_image(image_message(0))
    assert reconstructor.frames[0].camera is None
    assert server.counters.uncalibrated == 1


def test_a_broken_calibration_costs_the_calibration_not_the_image():
    server, reconstructor, _ = make()
    server.on_camera_info(camera_info_message(0, k=np.full(9, np.nan)))
    server.on_image(image_message(0))
    server.on_camera_info(camera_info_message(1))
    server.on_image(image_message(1))
    assert [frame.camera is None for frame in reconstructor.frames] == [True, False]
    assert "not finite" in next(iter(server.counters.rejected))


def test_a_bad_image_costs_itself_and_is_told_once_per_kind(caplog):
    server, reconstructor, outbox = make()
    with caplog.at_level(logging.WARNING):
        server.on_image(image_message(0))
        for height in (9000, 9001, 9002):
            server.on_image(image_message(1, height=height))
        server.on_image(image_message(1, encoding="32FC1"))
        server.on_image(image_message(1))
    assert len(reconstructor.frames) == 2
    assert len(outbox.of("pose")) == 2
    assert sorted(server.counters.rejected.values()) == [1, 3]
    assert server.counters.received == 6
    assert len(server.events) == len(caplog.records) == 2
    assert server.status().level == "WARN"


def test_a_frame_that_the_reconstructor_refuses_costs_only_itself():
    server, _, outbox = make(PairReconstructor(refuse={stamp_of(1)}))
    for index in range(3):
        server.on_image(image_message(index))
    assert [stamp for topic, _, stamp in outbox if topic == "pose"] == [stamp_of(0), stamp_of(2)]
    assert sum(server.counters.rejected.values()) == 1


def test_the_path_grows_within_a_segment_and_begins_anew_with_the_next():
    server, reconstructor, outbox = make()
    for index in range(4):
        server.on_image(image_message(index))
    reconstructor.segment = 1
    for index in range(4, 6):
        server.on_image(image_message(index))
    assert [len(message.poses) for message in outbox.of("path")] == [2, 4, 2]
    assert outbox.of("path")[2].header.frame_id == "qvggt_unscaled_1"
    assert server.counters.segments == 2


def test_a_long_path_is_thinned_and_keeps_its_newest_pose():
    server, _, outbox = make(wanted=lambda topic: topic == "path")
    tiny = {"height": 1, "width": 1, "step": 3, "data": np.zeros(3, np.uint8)}
    for index in range(MAX_PATH_POSES + 50):
        server.on_image(image_message(0, header=header(index), **tiny))
    last = outbox.of("path")[-1]
    assert MAX_PATH_POSES // 2 <= len(last.poses) <= MAX_PATH_POSES
    newest = last.poses[-1].header.stamp
    assert newest.sec * 10**9 + newest.nanosec == stamp_of(MAX_PATH_POSES + 49)


def test_latency_is_from_image_to_geometry():
    ticks = iter(range(100))
    server, _, _ = make(clock=lambda: float(next(ticks)))
    for index in range(2):
        server.on_image(image_message(index))
    # Image 0 arrives at 0, image 1 at 1; their geometry is out at 2 and 3.
    assert list(server.counters.latencies) == [2.0, 2.0]
    assert server.status().values["latency_s"]["max"] == pytest.approx(2.0)
