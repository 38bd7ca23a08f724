"""The node's transforms: they survive a jump back in time, and serve who looks up the present."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import numpy as np
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile
from robot import robot, ros_class
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger
from support.recordings import (
    camera_info_message,
    header,
    image_message,
    odometry_message,
    transform_message,
    world_from_camera,
)
from tf2_ros import Buffer, TransformListener

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL
from qvggt_ros.io.conversions import stamp_ns

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BASE_FROM_CAMERA = np.eye(4)
BASE_FROM_CAMERA[:3, :3] = FLU_FROM_OPTICAL[:3, :3]
PERIOD_NS = 100_000_000


class Drive:
    """A robot that drives through the room, with its description, odometry and camera."""

    def __init__(self, it, *, describe=True, odometry_tf=True):
        self.it = it
        self.odometry_tf = odometry_tf
        it.listen("/tf", "TFMessage", QoSProfile(depth=500))
        it.listen("/diagnostics", "DiagnosticArray")
        if describe:
            static = transform_message("base_link", "camera_optical_frame", BASE_FROM_CAMERA, 0)
            it.publish("/tf_static", static, "TFMessage", LATCHED)

    def go(self, start_ns, indices=range(20)):
        for index in indices:
            stamp = start_ns + index * PERIOD_NS
            odom_from_base = world_from_camera(index) @ np.linalg.inv(BASE_FROM_CAMERA)
            if self.odometry_tf:
                message = transform_message("odom", "base_link", odom_from_base, index)
                message.transforms[0].header = header(index, "odom", stamp_ns=stamp)
                self.it.publish("/tf", message, "TFMessage", QoSProfile(depth=100))
            message = odometry_message(index, odom_from_base)
            message.header = header(index, "odom", stamp_ns=stamp)
            self.it.publish("odom", message, "Odometry")
            message = camera_info_message(index)
            message.header = header(index, stamp_ns=stamp)
            self.it.publish("camera_info", message, "CameraInfo")
            taken = self.it.images_taken
            self.it.publish(
                "image", image_message(index, header=header(index, stamp_ns=stamp)), "Image"
            )
            self.it.spin_until(lambda taken=taken: self.it.images_taken > taken)
            self.it.idle()

    def owned(self, parent="map", child="odom"):
        """Stamps of the node's transforms."""
        return [
            stamp_ns(each)
            for message in self.it.received["/tf"]
            for each in message.transforms
            if (each.header.frame_id, each.child_frame_id) == (parent, child)
        ]

    def texts(self):
        return [message.status[0].message for message in self.it.received["/diagnostics"]]


def now_ns():
    return time.time_ns()


@pytest.mark.parametrize("by_request", [False, True])
def test_after_a_jump_back_by_an_hour_transforms_go_on(by_request):
    with robot(publish_tf="map_to_odom", metres_per_unit=1.5, transform_rate_hz=0.0) as it:
        assert it.node.start()
        drive = Drive(it)
        later = now_ns()
        earlier = later - 3600 * 10**9
        drive.go(later)
        it.spin_until(drive.owned)
        if by_request:
            assert it.ask(Trigger, "reset", Trigger.Request()).success
        # What is still on its way came from before.
        it.idle()
        it.spin(0.5)
        it.received["/tf"].clear()
        drive.go(earlier)
        it.spin_until(drive.owned)
        assert all(stamp < earlier + 3600 * 10**9 - 1 for stamp in drive.owned())


def test_who_looks_up_the_present_finds_it():
    with robot(publish_tf="map_to_odom", metres_per_unit=1.5) as it:
        assert it.node.start()
        buffer = Buffer()
        listener = TransformListener(buffer, it.peer)
        drive = Drive(it)
        drive.go(now_ns() - 20 * PERIOD_NS)
        it.spin_until(drive.owned)
        found = 0
        for _ in range(10):
            it.spin(0.1)
            found += buffer.can_transform("map", "odom", it.peer.get_clock().now(), Duration())
        assert found >= 8
        stamps = drive.owned()
        assert len(stamps) == len(set(stamps))
        assert stamps == sorted(stamps)
        listener.unregister()


def test_of_the_base_where_the_robot_was_and_where_it_is_are_sent():
    options = {"publish_tf": "odom_to_base", "metres_per_unit": 1.5}
    with robot(**options) as it:
        assert it.node.start()
        buffer = Buffer()
        listener = TransformListener(buffer, it.peer)
        drive = Drive(it, odometry_tf=False)
        start = now_ns() - 20 * PERIOD_NS
        drive.go(start)
        it.spin_until(lambda: drive.owned("odom", "base_link"))
        it.spin(0.3)
        stamps = set(drive.owned("odom", "base_link"))
        assert stamps & {start + index * PERIOD_NS for index in range(20)}
        assert buffer.can_transform("odom", "base_link", it.peer.get_clock().now(), Duration())
        listener.unregister()


def test_a_reset_ends_what_is_repeated():
    with robot(publish_tf="map_to_odom", metres_per_unit=1.5) as it:
        assert it.node.start()
        drive = Drive(it)
        drive.go(now_ns() - 20 * PERIOD_NS)
        it.spin_until(drive.owned)
        assert it.ask(Trigger, "reset", Trigger.Request()).success
        it.spin(0.2)
        it.received["/tf"].clear()
        it.spin(0.5)
        assert not drive.owned()


def test_a_robot_without_a_description_is_a_warning_for_as_long():
    with robot(publish_tf="map_to_odom", metres_per_unit=1.5, diagnostics_period_s=0.2) as it:
        assert it.node.start()
        drive = Drive(it, describe=False)
        drive.go(now_ns() - 20 * PERIOD_NS)
        it.spin_until(lambda: any("no transform from odom" in text for text in drive.texts()))
        assert not drive.owned()
        static = transform_message("base_link", "camera_optical_frame", BASE_FROM_CAMERA, 0)
        it.publish("/tf_static", static, "TFMessage", LATCHED)
        drive.go(now_ns(), range(20, 28))
        it.spin_until(drive.owned)


OWNS_ODOM_TO_BASE = {
    "publish_tf": "odom_to_base",
    "metres_per_unit": 1.5,
    "diagnostics_period_s": 0.2,
}


def test_two_owners_of_one_frame_are_named():
    with robot(**OWNS_ODOM_TO_BASE) as it:
        assert it.node.start()
        drive = Drive(it, odometry_tf=True)
        drive.go(now_ns() - 20 * PERIOD_NS, range(8))
        it.spin_until(lambda: any("somebody else broadcasts" in text for text in drive.texts()))


def test_the_own_transforms_are_no_one_else_s():
    with robot(**OWNS_ODOM_TO_BASE) as it:
        assert it.node.start()
        drive = Drive(it, odometry_tf=False)
        drive.go(now_ns() - 20 * PERIOD_NS)
        it.spin_until(lambda: drive.owned("odom", "base_link"))
        it.spin(0.5)
        assert not any("somebody else" in text for text in drive.texts())


@pytest.mark.parametrize(("publish_tf", "count"), [("none", 0), ("world_to_camera", 1)])
def test_only_a_node_that_broadcasts_publishes_on_tf(publish_tf, count):
    with robot(publish_tf=publish_tf) as it:
        assert it.node.start()
        it.spin(0.2)
        own = [
            info
            for info in it.peer.get_publishers_info_by_topic("/tf")
            if info.node_name == "reconstruct"
        ]
        assert len(own) == count


def test_simulated_time_that_goes_back_forgets_the_time_before():
    with robot(publish_tf="map_to_odom", use_sim_time=True) as it:
        assert it.node.start()
        publisher = it.peer.create_publisher(Clock, "/clock", 10)
        it.spin_until(lambda: publisher.get_subscription_count() > 0)

        def set_time(seconds):
            publisher.publish(Clock(clock=ros_class("Time")(sec=seconds)))
            it.spin_until(lambda: it.node.get_clock().now().nanoseconds == seconds * 10**9)

        def move(seconds):
            message = transform_message("odom", "base_link", np.eye(4), 0)
            message.transforms[0].header = header(0, "odom", stamp_ns=seconds * 10**9)
            it.publish("/tf", message, "TFMessage", QoSProfile(depth=100))

        def is_known(seconds):
            stamp = seconds * 10**9
            return it.node._transforms.lookup("odom", "camera_optical_frame", stamp) is not None

        set_time(1000)
        Drive(it)
        move(1000)
        it.spin_until(lambda: is_known(1000))
        set_time(10)
        assert not is_known(1000)
        move(10)
        it.spin_until(lambda: is_known(10))
