"""Equal input gives equal bytes, whether rclpy or rosbags made the message."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import numpy as np
from rclpy.serialization import serialize_message
from robot import to_ros
from support.recordings import HEIGHT, INTRINSICS, WIDTH, M, image_message, world_from_camera

from qvggt_core.occupancy.grid import OccupancyGrid
from qvggt_core.stream.frame import FrameGeometry, View
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_ros.io import conversions, images
from qvggt_ros.io.messages import TYPES, installed_messages, rosbags_typestore

RNG = np.random.default_rng(5)
DEPTH = RNG.uniform(1, 5, (HEIGHT, WIDTH)).astype(np.float32)
DEPTH[3, 4:9] = np.nan
GEOMETRY = FrameGeometry(
    view=View(1_700_000_000_123_456_789, RNG.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)),
    map_from_camera=world_from_camera(3),
    intrinsics=INTRINSICS,
    depth=DEPTH,
    confidence=RNG.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32),
)
ESTIMATE = conversions.OdometryEstimate(
    GEOMETRY.map_from_camera, np.arange(6.0), np.arange(36.0).reshape(6, 6), np.eye(6)
)
STAMP = GEOMETRY.view.stamp_ns
GRID = OccupancyGrid(
    np.array([[-1, 0, 100], [0, 0, -1]], np.int8), 0.05, np.array([-3.2, 0.05, -0.4])
)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("PoseStamped", lambda m: conversions.pose_message(m, GEOMETRY, "map")),
        ("Odometry", lambda m: conversions.odometry_message(m, ESTIMATE, "map", "base", STAMP)),
        ("Image", lambda m: conversions.depth_message(m, GEOMETRY)),
        ("Image", lambda m: conversions.confidence_message(m, GEOMETRY)),
        ("CameraInfo", lambda m: conversions.depth_info_message(m, GEOMETRY)),
        (
            "PointCloud2",
            lambda m: conversions.cloud_message(m, frame_cloud(GEOMETRY, 1.0), STAMP, "optical"),
        ),
        (
            "Path",
            lambda m: conversions.path_message(m, [conversions.pose_message(m, GEOMETRY, "map")]),
        ),
        ("OccupancyGrid", lambda m: conversions.grid_message(m, GRID, STAMP, "map")),
        (
            "TFMessage",
            lambda m: conversions.transform_message(
                m, GEOMETRY.map_from_camera, "map", "optical", STAMP
            ),
        ),
        (
            "DiagnosticArray",
            lambda m: conversions.diagnostics_message(
                m, "qvggt", "WARN", "no scale", {"a": "1"}, STAMP
            ),
        ),
    ],
)
def test_bytes_are_equal(name, make):
    ours = bytes(rosbags_typestore().serialize_cdr(make(M), TYPES[name]))
    assert serialize_message(make(installed_messages())) == ours


def test_pictures_of_rclpy_and_rosbags_decode_alike():
    message = image_message(2)
    assert np.array_equal(
        images.decode_image(to_ros(message, "Image")), images.decode_image(message)
    )
