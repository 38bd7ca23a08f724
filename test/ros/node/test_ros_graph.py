"""`qvggt doctor --ros` on a graph with a camera in it."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import threading
from contextlib import contextmanager

import rclpy
from rclpy.context import Context
from rclpy.qos import qos_profile_sensor_data
from robot import ros_class, to_ros
from support.recordings import INTRINSICS, camera_info_message, header, image_message

from qvggt_core.doctor import Level
from qvggt_ros.drivers.ros_graph import check_graph


@contextmanager
def camera(topic="/camera/image_raw", info=None, drivers=1):
    """Nodes that publish images and CameraInfo ten times a second, in a context of their own."""
    context = Context()
    rclpy.init(context=context)
    stop = threading.Event()
    nodes = [rclpy.create_node(f"driver_{n}", context=context) for n in range(drivers)]
    qos = qos_profile_sensor_data
    images = [node.create_publisher(ros_class("Image"), topic, qos) for node in nodes]
    infos = [
        node.create_publisher(ros_class("CameraInfo"), "/camera/camera_info", qos) for node in nodes
    ]

    def run():
        while not stop.wait(0.1):
            for node, image, calibration in zip(nodes, images, infos, strict=True):
                at = header(0, stamp_ns=node.get_clock().now().nanoseconds)
                image.publish(to_ros(image_message(0, header=at), "Image"))
                changes = {"header": at, **(info or {})}
                calibration.publish(to_ros(camera_info_message(0, **changes), "CameraInfo"))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for node in nodes:
            node.destroy_node()
        rclpy.try_shutdown(context=context)


def problems(*arguments, level=Level.PROBLEM):
    return [each.name for each in check_graph(*arguments, seconds=2.0) if each.level is level]


def test_a_sound_camera_lacks_only_odometry():
    with camera():
        findings = check_graph(seconds=2.0)
    assert [each.name for each in findings if each.level is not Level.OK] == ["metres"]
    assert "/camera/camera_info" in " ".join(each.found for each in findings)


def test_a_wrong_focal_length_is_found_live():
    wrong = INTRINSICS.copy()
    wrong[0, 0] = wrong[1, 1] = 4.0
    with camera(info={"k": wrong.ravel()}):
        assert problems("/camera/image_raw") == ["focal length"]


def test_no_camera_is_a_problem_with_what_to_compare():
    (finding,) = check_graph(seconds=0.5)
    assert finding.level is Level.PROBLEM
    assert "ROS_DOMAIN_ID" in finding.advice


def test_a_topic_that_is_not_there_is_named_beside_those_that_are():
    with camera():
        (finding,) = check_graph("/other", seconds=2.0)
    assert finding.level is Level.PROBLEM
    assert "/camera/image_raw" in finding.found


def test_two_drivers_on_one_topic_are_found():
    with camera(drivers=2):
        assert "publishers" in problems("/camera/image_raw", level=Level.WARN)
