"""Where message classes come from: an installed ROS, else rosbags' type store.

Both families have the same fields, take keyword arguments and serialise to the same bytes. They
differ in how arrays get in: rosbags wants numpy arrays, rclpy `array.array`, which is filled
quickly only through a view. That difference lives here and nowhere else.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from qvggt_ros.io.message_pool import MessagePool

TYPES: dict[str, str] = {
    name: f"{package}/msg/{name}"
    for package, names in {
        "builtin_interfaces": ("Time",),
        "diagnostic_msgs": ("DiagnosticArray", "DiagnosticStatus", "KeyValue"),
        "std_msgs": ("Header",),
        "geometry_msgs": (
            "Point",
            "Pose",
            "PoseStamped",
            "PoseWithCovariance",
            "Quaternion",
            "Transform",
            "TransformStamped",
            "Twist",
            "TwistWithCovariance",
            "Vector3",
        ),
        "nav_msgs": ("MapMetaData", "OccupancyGrid", "Odometry", "Path"),
        "sensor_msgs": (
            "CameraInfo",
            "CompressedImage",
            "Image",
            "Imu",
            "NavSatFix",
            "NavSatStatus",
            "PointCloud2",
            "PointField",
            "Range",
            "RegionOfInterest",
        ),
        "tf2_msgs": ("TFMessage",),
    }.items()
    for name in names
}
"""Full ROS names of the message types in use."""


_NO_LIMIT = QosTime(sec=2147483647, nsec=4294967295)

LATCHED = (
    Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL,
        deadline=_NO_LIMIT,
        lifespan=_NO_LIMIT,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_NO_LIMIT,
        avoid_ros_namespace_conventions=False,
    ),
)
"""For a recorded topic that late listeners need too, such as /tf_static: a player offers what the
recording says, and without it `ros2 bag play` and a transform listener do not match."""


class Messages:
    """Message classes as attributes: `messages.Image`, `messages.PoseStamped`, ...

    Attributes:
        installed: whether the classes are those of an installed ROS.
    """

    def __init__(self, installed: bool, lookup: Callable[[str], type]) -> None:
        """Take the classes from `lookup`, which maps a full ROS name to a class."""
        self.installed = installed
        self._pool = MessagePool()
        self._classes = {name: lookup(full_name) for name, full_name in TYPES.items()}

    def __getattr__(self, name: str) -> Any:
        """Return the class of a message type."""
        try:
            return self.__dict__["_classes"][name]
        except KeyError:
            raise AttributeError(f"qvggt uses no message type {name!r}") from None

    def octet(self, value: int) -> Any:
        """Return a value of a `byte` field: rclpy wants one byte, rosbags a number."""
        return bytes([value]) if self.installed else value

    def with_octets(self, message_class: Callable[..., Any], data: NDArray, **fields: Any) -> Any:
        """Return a message whose field `data` (uint8[]) holds the octets of an array.

        Those of rosbags share its memory. Those of ROS have memory of their own and are filled
        again once neither they nor a view of their data is held.
        """
        octets = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if not self.installed:
            return message_class(data=octets, **fields)

        def copy(memory: NDArray) -> None:
            memory[:] = octets

        return self.with_items(message_class, np.dtype(np.uint8), len(octets), copy, **fields)

    def with_items(
        self,
        message_class: Callable[..., Any],
        dtype: np.dtype[Any],
        count: int,
        fill: Callable[[NDArray], None],
        **fields: Any,
    ) -> Any:
        """Return a message whose field `data` (uint8[]) is an array that is filled in place.

        Args:
            message_class: of the message.
            dtype: of the array's items.
            count: of them.
            fill: called once with the array, whose values are arbitrary; it must not keep it.
            fields: the others.
        """
        if not self.installed:
            items = np.empty(count, dtype)
            fill(items)
            return message_class(data=items.view(np.uint8), **fields)
        message = self._pool.take(message_class, count * dtype.itemsize, **fields)
        if count:
            fill(np.frombuffer(message.data, dtype))
        return message

    def small_integers(self, values: NDArray[np.int8]) -> Any:
        """Return an int8 sequence as the message classes want it."""
        flat = np.ascontiguousarray(values, np.int8).reshape(-1)
        if not self.installed:
            return flat
        numbers = array("b")
        numbers.frombytes(flat.tobytes())
        return numbers

    def doubles(self, values: Iterable[float]) -> Any:
        """Return a float64 sequence as the message classes want it."""
        numbers = [float(value) for value in values]
        return array("d", numbers) if self.installed else np.array(numbers, dtype=np.float64)


def rosbags_typestore() -> Typestore:
    """Return the types that recordings are written with, and read with if they bring none."""
    return get_typestore(Stores.ROS2_JAZZY)


def rosbags_messages() -> Messages:
    """Return rosbags' message classes, which need no ROS."""
    types = rosbags_typestore().types
    return Messages(installed=False, lookup=types.__getitem__)


def installed_messages() -> Messages:
    """Return the message classes of the installed ROS.

    Raises:
        ImportError: a message package is not installed; the message has its name.
    """

    def module(name: str) -> Any:
        try:
            return import_module(name)
        except ImportError as error:
            package = name.split(".")[0]
            raise ImportError(
                f"the ROS package {package} cannot be imported ({error}): source your ROS "
                f"installation, or install ros-$ROS_DISTRO-{package.replace('_', '-')}"
            ) from error

    def lookup(full_name: str) -> type:
        package, _, name = full_name.split("/")
        return getattr(module(f"{package}.msg"), name)

    return Messages(installed=True, lookup=lookup)


def available_messages() -> Messages:
    """Return the installed ROS's message classes, or rosbags' where there is no ROS."""
    try:
        return installed_messages()
    except ImportError:
        return rosbags_messages()
