"""The node on a real ROS 2: its life, its answers, and what it does with nonsense."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import gc
import threading
import weakref

import numpy as np
import rclpy
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from robot import robot, ros_class
from sensor_msgs_py.point_cloud2 import read_points
from std_srvs.srv import Trigger
from support.recordings import (
    camera_info_message,
    header,
    odometry_message,
    stamp_of,
    transform_message,
    world_from_camera,
)

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.publishing import OUTPUTS

SUCCESS = TransitionCallbackReturn.SUCCESS


def entities(node):
    kinds = ("publishers", "subscriptions", "services", "clients", "timers", "guards")
    return {
        kind: sorted(str(getattr(e, "topic", e)) for e in getattr(node, kind)) for kind in kinds
    }


def test_two_lives_leave_nothing_behind():
    with robot() as it:
        node = it.node
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        gc.collect()
        before, threads = entities(node), threading.active_count()
        for _ in range(2):
            assert node.trigger_configure() == SUCCESS
            network = weakref.ref(node._live._session._reconstructor._network)
            assert node.trigger_activate() == SUCCESS
            it.film(range(5))
            assert node.trigger_deactivate() == SUCCESS
            assert node.trigger_activate() == SUCCESS
            assert node.trigger_deactivate() == SUCCESS
            assert node.trigger_cleanup() == SUCCESS
            gc.collect()
            assert entities(node) == before
            assert threading.active_count() == threads
            assert network() is None


def test_each_image_gets_its_geometry_with_its_own_stamp():
    outputs = {topic: name for topic, name in OUTPUTS.items() if topic not in ("path", "tf")}
    assert len(outputs) == 6
    with robot() as it:
        assert it.node.start()
        for topic, name in outputs.items():
            it.listen(topic, name)
        it.publish("camera_info", camera_info_message(0), "CameraInfo")
        it.film(range(8))
        it.spin_until(lambda: all(len(it.received[topic]) >= 8 for topic in outputs))
        for topic in outputs:
            assert [stamp_ns(message) for message in it.received[topic]] == [
                stamp_of(index) for index in range(8)
            ], topic
        cloud, depth = it.received["points"][-1], it.received["depth/image"][-1]
        assert cloud.header.frame_id == depth.header.frame_id == "camera_optical_frame"
        assert it.received["pose"][0].header.frame_id == "qvggt_unscaled"
        points = read_points(cloud, field_names=("x", "y", "z"))
        assert len(points) == cloud.width > 1000
        assert np.isfinite(points["z"]).all()
        assert (points["z"] > 0).all()
        info = it.received["depth/camera_info"][-1]
        assert (info.width, info.height) == (depth.width, depth.height)
        assert len(depth.data) == 4 * depth.width * depth.height


def test_the_path_is_there_for_who_comes_late():
    with robot() as it:
        assert it.node.start()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        it.listen("path", "Path", latched)
        it.film(range(8))
        it.spin_until(lambda: it.received["path"])
        late: list = []
        it.peer.create_subscription(ros_class("Path"), "path", late.append, latched)
        it.spin_until(lambda: late)
        assert len(late[-1].poses) in (4, 8)


def test_nonsense_costs_itself_and_diagnostics_say_so():
    with robot() as it:
        assert it.node.start()
        it.listen("pose", "PoseStamped")
        it.listen("/diagnostics", "DiagnosticArray")
        it.film(range(3))
        it.film([3], height=9000)
        it.film([3], encoding="nonsense")
        it.film([3], width=0)
        it.publish("camera_info", camera_info_message(3, k=np.full(9, np.nan)), "CameraInfo")
        it.film(range(3, 8))
        it.spin_until(lambda: len(it.received["pose"]) >= 8)
        status = lambda: it.received["/diagnostics"][-1].status[0]  # noqa: E731
        values = lambda: {entry.key: entry.value for entry in status().values}  # noqa: E731
        # Not the first report that names it: the last images may not have been counted there.
        it.spin_until(lambda: it.received["/diagnostics"] and values().get("received") == "11")
        assert "nonsense" in status().message
        assert status().level == b"\x01"
        assert values()["scale_source"] == "unknown"


def test_parameters_are_refused_with_a_reason_and_taken_while_it_runs():
    with robot() as it:
        assert it.node.start()
        it.listen("points", "PointCloud2")

        def set_parameter(name, value):
            request = SetParameters.Request(
                parameters=[Parameter(name, value=value).to_parameter_msg()]
            )
            (result,) = it.ask(SetParameters, "reconstruct/set_parameters", request).results
            return result

        for name, value, reason in (
            ("min_confidence_percentile", 140.0, "out of range"),
            ("max_depth_edge", 0.0, "greater than 0"),
            ("points_frame", "sideways", "'camera' or 'world'"),
            ("point_stride", "many", "type"),
            ("checkpoint", "other.safetensors", "fixed while the network is loaded"),
            ("map_directory", "/etc", "read-only"),
        ):
            result = set_parameter(name, value)
            assert not result.successful, name
            assert reason in result.reason, result.reason
        it.film(range(4))
        it.spin_until(lambda: len(it.received["points"]) == 4)
        assert set_parameter("points_frame", "world").successful
        assert set_parameter("metres_per_unit", 2.0).successful
        assert set_parameter("point_stride", 2).successful
        it.film(range(4, 8))
        it.spin_until(lambda: len(it.received["points"]) == 8)
        before, after = it.received["points"][0], it.received["points"][-1]
        assert after.header.frame_id == "map"
        assert after.width < before.width


def test_every_parameter_describes_itself():
    with robot() as it:
        names = ["metres_per_unit", "window_size", "publish_tf", "map_directory"]
        request = DescribeParameters.Request(names=names)
        answer = it.ask(DescribeParameters, "reconstruct/describe_parameters", request)
        metres, window, tf, _ = answer.descriptors
        assert metres.floating_point_range[0].from_value == 0.0
        assert (window.integer_range[0].from_value, window.integer_range[0].to_value) == (1, 64)
        assert "map_to_odom" in tf.additional_constraints
        assert [each.read_only for each in answer.descriptors] == [False, False, False, True]
        assert all(each.description for each in answer.descriptors)


def test_a_wrong_parameter_at_start_is_named():
    rclpy.init()
    try:
        from qvggt_ros.drivers.node import ReconstructNode

        for name, value, reason in (
            ("window_stride", 64, "window_stride"),
            ("window_size", 4, "leaves no overlap"),
            ("publish_tf", "yes", "publish_tf"),
            ("metres_per_unit", "one", "metres_per_unit"),
        ):
            with pytest.raises(ParameterError, match=reason):
                ReconstructNode(parameter_overrides=[Parameter(name, value=value)])
    finally:
        rclpy.try_shutdown()


@pytest.mark.parametrize("content", [None, b"this is no checkpoint"])
def test_a_missing_or_foreign_checkpoint_is_a_clean_failure(tmp_path, capfd, content):
    path = tmp_path / "net.safetensors"
    if content is not None:
        path.write_bytes(content)
    with robot(checkpoint=str(path)) as it:
        threads = threading.active_count()
        assert not it.node.start()
        assert str(path) in capfd.readouterr().err
        it.spin_until(lambda: threading.active_count() == threads)
        assert it.node.trigger_configure() != SUCCESS  # still alive, still unconfigured


def test_simulated_time_that_begins_again_begins_a_new_map():
    with robot(use_sim_time=True) as it:
        assert it.node.start()
        it.listen("path", "Path")
        it.film(range(20, 28))
        it.spin_until(lambda: sum(len(p.poses) == 8 for p in it.received["path"]) == 1)
        it.film(range(8))  # the recording is played in a loop
        it.spin_until(lambda: sum(len(p.poses) == 8 for p in it.received["path"]) == 2)
        assert {path.header.frame_id for path in it.received["path"]} == {"qvggt_unscaled"}
        first = it.received["path"][-1].poses[0]
        assert stamp_ns(first) == stamp_of(0)


def test_odometry_and_transforms_make_it_metric_and_map_holds_odom():
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = FLU_FROM_OPTICAL[:3, :3]
    with robot(knows_the_room=True, publish_tf="map_to_odom", min_odometry_distance=0.2) as it:
        assert it.node.start()
        for topic, name in (
            ("pose", "PoseStamped"),
            ("odometry", "Odometry"),
            ("/tf", "TFMessage"),
        ):
            it.listen(topic, name)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        it.publish(
            "/tf_static",
            transform_message("base_link", "camera_optical_frame", base_from_camera, 0),
            "TFMessage",
            latched,
        )
        for index in range(24):
            odom_from_base = world_from_camera(index) @ np.linalg.inv(base_from_camera)
            it.publish(
                "/tf",
                transform_message("odom", "base_link", odom_from_base, index),
                "TFMessage",
                QoSProfile(depth=100),
            )
            it.publish("odom", odometry_message(index, odom_from_base), "Odometry")
            it.film([index])
        it.spin_until(lambda: any(m.header.frame_id == "map" for m in it.received["pose"]))
        it.spin_until(
            lambda: any(
                t.child_frame_id == "odom" for m in it.received["/tf"] for t in m.transforms
            )
        )
        (owned,) = {
            (t.header.frame_id, t.child_frame_id)
            for m in it.received["/tf"]
            for t in m.transforms
            if t.child_frame_id != "base_link"
        }
        assert owned == ("map", "odom")
        assert it.received["odometry"][-1].child_frame_id == "base_link"


def test_a_rig_of_two_cameras():
    with robot(cameras=["front", "left"], sync_slop_s=0.02) as it:
        assert it.node.start()
        it.listen("points", "PointCloud2")
        it.listen("left/points", "PointCloud2")
        for index in range(8):
            it.show(index, topic="front/image", header=header(index, "front_optical"))
            late = header(0, "left_optical", stamp_ns=stamp_of(index) + 10_000_000)
            taken = it.images_taken
            it.show(index, topic="left/image", header=late)
            it.spin_until(lambda taken=taken: it.images_taken > taken)
            it.idle()
        it.spin_until(
            lambda: len(it.received["points"]) >= 4 and len(it.received["left/points"]) >= 4
        )
        assert {m.header.frame_id for m in it.received["points"]} == {"front_optical"}
        assert {m.header.frame_id for m in it.received["left/points"]} == {"left_optical"}


def test_services(tmp_path):
    with robot(map_directory=str(tmp_path)) as it:
        assert it.node.start()
        it.listen("pose", "PoseStamped")
        nothing = it.ask(Trigger, "save_map", Trigger.Request())
        assert not nothing.success
        assert "no map yet" in nothing.message
        it.film(range(4))
        it.spin_until(lambda: len(it.received["pose"]) == 4)
        saved = it.ask(Trigger, "save_map", Trigger.Request())
        assert saved.success
        (file,) = tmp_path.glob("*.ply")
        assert str(file) in saved.message
        kept = it.ask(Trigger, "save_keyframes", Trigger.Request())
        assert not kept.success
        assert "set loop_closure to true" in kept.message
        assert it.ask(Trigger, "reset", Trigger.Request()).success
        assert not it.ask(Trigger, "save_map", Trigger.Request()).success


def test_what_is_missing_is_reported():
    with robot(diagnostics_period_s=0.5) as it:
        assert it.node.start()
        it.listen("/diagnostics", "DiagnosticArray")
        it.peer.create_publisher(type(it.node._messages.CompressedImage()), "image", 1)
        it.spin_until(
            lambda: any(
                "see image_transport" in m.status[0].message for m in it.received["/diagnostics"]
            )
        )
