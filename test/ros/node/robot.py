"""A robot in the same process: its camera, odometry and transforms, and ears for the answers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from support.recordings import M, image_message, load_room_network

from qvggt_core.stream.load_network import load_network
from qvggt_ros.drivers.node import ReconstructNode
from qvggt_ros.io.messages import TYPES, rosbags_typestore

NAMESPACE = "/qvggt"


def ros_class(name: str) -> type:
    """Return the installed ROS's class of a message type that qvggt uses."""
    package, _, name = TYPES[name].split("/")
    return getattr(import_module(f"{package}.msg"), name)


def to_ros(message: Any, name: str) -> Any:
    """Return a message of rosbags as one of rclpy, through the bytes on the wire."""
    data = bytes(rosbags_typestore().serialize_cdr(message, TYPES[name]))
    return deserialize_message(data, ros_class(name))


class Robot:
    """The node under test and one that talks to it, both in one executor."""

    def __init__(self, knows_the_room: bool = False, **parameters: Any) -> None:
        # The room's images are too small to follow points through them.
        parameters = {"confirm": False, "refine": False, **parameters}
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        load = load_room_network if knows_the_room else load_network
        self.node = ReconstructNode(load=load, namespace=NAMESPACE, parameter_overrides=overrides)
        self.peer = rclpy.create_node("robot", namespace=NAMESPACE)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self._publishers: dict[str, Any] = {}

    def listen(self, topic: str, name: str, qos: Any = None) -> None:
        self.peer.create_subscription(
            ros_class(name), topic, self.received[topic].append, qos or QoSProfile(depth=50)
        )

    def publish(
        self, topic: str, message: Any, name: str, qos: Any = qos_profile_sensor_data
    ) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self.peer.create_publisher(ros_class(name), topic, qos)
            self.spin_until(lambda: self._publishers[topic].get_subscription_count() > 0)
        if not isinstance(message, ros_class(name)):
            message = to_ros(message, name)
        self._publishers[topic].publish(message)

    def show(self, index: int, topic: str = "image", **changes: Any) -> None:
        self.publish(topic, image_message(index, **changes), "Image")

    def film(self, indices: Any, **changes: Any) -> None:
        """Show images at the pace at which the node takes them: none is dropped."""
        for index in indices:
            taken = self.images_taken
            self.show(index, **changes)
            self.spin_until(lambda taken=taken: self.images_taken > taken)
            self.idle()

    @property
    def images_taken(self) -> int:
        return 0 if self.node._live is None else self.node._live._images

    def idle(self) -> None:
        """Wait until the node has done what it was given."""
        live = self.node._live
        if live is not None:
            # An image goes after calls: the second call comes when the first one's image is done.
            for _ in range(2):
                live._worker.call(lambda: None).result(20.0)
                self.spin(0.01)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def spin_until(self, happened: Callable[[], bool], timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < end, "it did not happen in time"
            self.executor.spin_once(timeout_sec=0.05)

    def ask(self, service_type: type, service: str, request: Any) -> Any:
        client = self.peer.create_client(service_type, service)
        self.spin_until(client.service_is_ready)
        future = client.call_async(request)
        self.spin_until(future.done)
        self.peer.destroy_client(client)
        return future.result()

    def close(self) -> None:
        self.idle()
        self.executor.shutdown()
        assert self.node.release()
        self.node.destroy_node()
        self.peer.destroy_node()


@contextmanager
def robot(**parameters: Any) -> Iterator[Robot]:
    """Yield a robot in a ROS context that ends with it."""
    rclpy.init()
    try:
        made = Robot(**parameters)
        try:
            yield made
        finally:
            made.close()
    finally:
        rclpy.try_shutdown()


__all__ = ["NAMESPACE", "M", "Robot", "robot", "ros_class", "to_ros"]
