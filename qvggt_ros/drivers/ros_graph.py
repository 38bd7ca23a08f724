"""A look at a running ROS graph: cameras, their QoS, and what they send; uses rclpy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data

from qvggt_core.doctor import Finding, check_camera_stream
from qvggt_core.doctor.finding import ok, problem, warn
from qvggt_ros.io.camera_streams import stream_of
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.io.messages import TYPES, Messages, installed_messages
from qvggt_ros.io.topics import OWN_NAMESPACE, Topics

_NAME = "qvggt_doctor"
_IMAGES = (TYPES["Image"], TYPES["CompressedImage"])
_MAX_IMAGES = 300


def check_graph(
    image_topic: str | None = None, camera_info_topic: str | None = None, seconds: float = 5.0
) -> list[Finding]:
    """Return findings on the cameras that publish now, and on one of them in detail.

    Args:
        image_topic: the camera that is meant; the only one if None.
        camera_info_topic: beside the images if None.
        seconds: to wait for publishers, and again for messages.
    """
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node(_NAME, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        return _check(node, executor, image_topic, camera_info_topic, seconds)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def _check(
    node: Node,
    executor: SingleThreadedExecutor,
    image_topic: str | None,
    camera_info_topic: str | None,
    seconds: float,
) -> list[Finding]:
    published = _published(node, executor, image_topic, seconds)
    images = [
        topic
        for topic, msgtype in published.items()
        if msgtype in _IMAGES and not topic.startswith(OWN_NAMESPACE)
    ]
    if image_topic is None and len(images) == 1:
        image_topic = images[0]
    if image_topic is None or published.get(image_topic) not in _IMAGES:
        found = ", ".join(images) if images else "no topic has a publisher of images"
        return [
            problem(
                "images",
                found if image_topic is None else f"no images on {image_topic}; there are: {found}",
                "name one with --image-topic"
                if images
                else "start the camera driver; if "
                "`ros2 topic list` shows it, compare ROS_DOMAIN_ID and RMW_IMPLEMENTATION",
            )
        ]
    if camera_info_topic is None:
        base = image_topic.removesuffix("/compressed").rpartition("/")[0]
        beside = f"{base}/camera_info"
        camera_info_topic = beside if published.get(beside) == TYPES["CameraInfo"] else None
    topics = Topics(image_topic, camera_info_topic)
    publishers = [
        (info.node_name, info.qos_profile.reliability.name.lower())
        for info in node.get_publishers_info_by_topic(image_topic)
    ]
    findings = [publishers_finding(publishers, image_topic)]
    odometry = TYPES["Odometry"] in published.values()
    return findings + _received(node, executor, topics, published[image_topic], seconds, odometry)


def _published(
    node: Node, executor: SingleThreadedExecutor, wanted: str | None, seconds: float
) -> dict[str, str]:
    """Return the type of each topic that has a publisher, once `wanted` is there or time is up."""
    end = time.monotonic() + seconds
    while True:
        executor.spin_once(timeout_sec=0.1)
        found = {
            topic: types[0]
            for topic, types in node.get_topic_names_and_types()
            if node.count_publishers(topic)
        }
        if wanted in found or time.monotonic() > end:
            return found


def publishers_finding(publishers: Sequence[tuple[str, str]], topic: str) -> Finding:
    """Return whether one node alone publishes a topic.

    Args:
        publishers: name and reliability of each node that publishes it.
        topic: name of the topic.
    """
    found = ", ".join(f"{name} ({reliability})" for name, reliability in publishers)
    if len(publishers) > 1:
        return warn(
            "publishers",
            f"{topic} has {len(publishers)}, whose images interleave: {found}",
            "stop one of them, e.g. a second driver, or a recording that plays",
        )
    return ok("publishers", f"{topic}: {found}")


def _received(
    node: Node,
    executor: SingleThreadedExecutor,
    topics: Topics,
    image_type: str,
    seconds: float,
    has_odometry: bool,
) -> list[Finding]:
    messages: Messages = installed_messages()
    images: list[tuple[Any, int]] = []
    infos: list[Any] = []

    def take(message: Any) -> None:
        if len(images) < _MAX_IMAGES:
            images.append((message if not images else None, time.time_ns()))
            stamps.append(stamp_ns(message))

    stamps: list[int] = []
    image_class = getattr(messages, image_type.rpartition("/")[2])
    node.create_subscription(image_class, topics.image, take, qos_profile_sensor_data)
    if topics.camera_info is not None:
        node.create_subscription(
            messages.CameraInfo, topics.camera_info, infos.append, qos_profile_sensor_data
        )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    if not images:
        return [
            warn(
                "images",
                f"{topics.image} has a publisher, but no message came in {seconds:g} s",
                "see the driver; wait longer with --seconds; compare RMW_IMPLEMENTATION on both",
            )
        ]
    received = np.array([received_ns for _, received_ns in images], dtype=np.int64)
    if node.get_parameter("use_sim_time").value:
        received = np.array(stamps, dtype=np.int64)
    stream = stream_of(
        images[0][0],
        infos[0] if infos else None,
        topics,
        np.array(stamps, dtype=np.int64),
        received,
        has_odometry,
    )
    return check_camera_stream(stream)
