"""Stamps, poses and geometry to ROS messages, and poses from them.

Frames follow REP-103 and REP-105: a camera's frame is optical (x right, y down, z forward), a
world is z-up. `PoseStamped` and TF give the pose of the camera's optical frame in the world.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import RecordingError
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import quaternion, transform
from qvggt_core.occupancy.grid import OccupancyGrid
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Scale
from qvggt_ros.io.messages import Messages

NANOSECONDS = 1_000_000_000

_LAST_NS = ((1 << 31) - 1) * NANOSECONDS + NANOSECONDS - 1
# Less, and it is a quaternion that no one set; more, and its square overflows.
_LEAST_NORM = 1e-6
# The moon is nearer; far beyond, differences of positions drown in the rounding of their sums.
_FARTHEST_M = 1e9

POINT_DTYPE = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4")]
)
"""Layout of a point in PointCloud2; `rgb` is 0x00RRGGBB, declared FLOAT32 as RViz expects."""


@dataclass(frozen=True)
class OdometryEstimate:
    """A pose, a velocity, and how sure they are.

    Attributes:
        world_from_child: (4, 4) float64.
        twist: (6,) linear m/s and angular rad/s, in the child's frame.
        pose_covariance: (6, 6) of x, y, z and rotation about the world's axes.
        twist_covariance: (6, 6) of the twist.
    """

    world_from_child: NDArray[np.float64]
    twist: NDArray[np.float64]
    pose_covariance: NDArray[np.float64]
    twist_covariance: NDArray[np.float64]


def stamp_ns(message: Any) -> int:
    """Return the header stamp of a message in integer nanoseconds.

    Raises:
        RecordingError: it is no time that a stamp can hold.
    """
    stamp = message.header.stamp
    nanoseconds = int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)
    if not -_LAST_NS <= nanoseconds <= _LAST_NS:
        raise RecordingError(f"a stamp of {stamp.sec} s and {stamp.nanosec} ns is no time")
    return nanoseconds


def set_stamp(message: Any, nanoseconds: int) -> None:
    """Replace the header stamp of one of rosbags' messages."""
    stamp = message.header.stamp
    stamp.sec, stamp.nanosec = divmod(nanoseconds, NANOSECONDS)


def time_message(messages: Messages, nanoseconds: int) -> Any:
    """Return integer nanoseconds as builtin_interfaces/Time."""
    seconds, nanosec = divmod(nanoseconds, NANOSECONDS)
    return messages.Time(sec=seconds, nanosec=nanosec)


def move_stamps(message: Any, moved: Callable[[int], int]) -> None:
    """Replace every stamp in one of rosbags' messages, in place; a stamp of zero, none, stays.

    Args:
        message: the message.
        moved: returns the new stamp of a stamp, in nanoseconds.
    """
    if isinstance(message, list):
        for element in message:
            move_stamps(element, moved)
    elif getattr(message, "__msgtype__", "") == "builtin_interfaces/msg/Time":
        if message.sec or message.nanosec:
            nanoseconds = moved(message.sec * NANOSECONDS + message.nanosec)
            message.sec, message.nanosec = divmod(nanoseconds, NANOSECONDS)
    elif dataclasses.is_dataclass(message):
        for each in dataclasses.fields(message):
            move_stamps(getattr(message, each.name), moved)


def header(messages: Messages, nanoseconds: int, frame_id: str) -> Any:
    """Return a std_msgs/Header."""
    return messages.Header(stamp=time_message(messages, nanoseconds), frame_id=frame_id)


def world_frame(parameters: Parameters, scale: Scale, segment: int) -> str:
    """Return the name of the world: it shows whether its unit is the metre, and which map it is."""
    if scale.metres_per_unit is None:
        name = parameters.unscaled_frame
    elif parameters.publish_tf == "odom_to_base" and not parameters.loop_closure:
        name = parameters.odom_frame
    else:
        name = parameters.map_frame
    return name if segment == 0 else f"{name}_{segment}"


def odometry_frame(parameters: Parameters, scale: Scale, segment: int) -> str:
    """Return the name of the world in which odometry goes on continuously.

    It is the map's, as long as nothing corrects the map.
    """
    world = world_frame(parameters, scale, segment)
    if not parameters.loop_closure:
        return world
    if parameters.publish_tf == "odom_to_base" and scale.metres_per_unit is not None:
        name = parameters.odom_frame
        return name if segment == 0 else f"{name}_{segment}"
    return f"{world}_odometry"


def pose_message(messages: Messages, geometry: FrameGeometry, world: str) -> Any:
    """Return the camera's optical frame in the world, as geometry_msgs/PoseStamped."""
    x, y, z = geometry.map_from_camera[:3, 3].tolist()
    return messages.PoseStamped(
        header=header(messages, geometry.view.stamp_ns, world),
        pose=messages.Pose(
            position=messages.Point(x=x, y=y, z=z),
            orientation=_quaternion_message(messages, geometry.map_from_camera),
        ),
    )


def transform_message(
    messages: Messages,
    parent_from_child: NDArray[np.float64],
    parent: str,
    child: str,
    nanoseconds: int,
) -> Any:
    """Return tf2_msgs/TFMessage of one (4, 4) transform."""
    x, y, z = parent_from_child[:3, 3].tolist()
    return messages.TFMessage(
        transforms=[
            messages.TransformStamped(
                header=header(messages, nanoseconds, parent),
                child_frame_id=child,
                transform=messages.Transform(
                    translation=messages.Vector3(x=x, y=y, z=z),
                    rotation=_quaternion_message(messages, parent_from_child),
                ),
            )
        ]
    )


def odometry_message(
    messages: Messages, odometry: OdometryEstimate, world: str, child: str, nanoseconds: int
) -> Any:
    """Return nav_msgs/Odometry: the pose in the world, the twist in the child's frame (REP-147)."""
    x, y, z = odometry.world_from_child[:3, 3].tolist()
    linear, angular = odometry.twist[:3].tolist(), odometry.twist[3:].tolist()
    return messages.Odometry(
        header=header(messages, nanoseconds, world),
        child_frame_id=child,
        pose=messages.PoseWithCovariance(
            pose=messages.Pose(
                position=messages.Point(x=x, y=y, z=z),
                orientation=_quaternion_message(messages, odometry.world_from_child),
            ),
            covariance=messages.doubles(odometry.pose_covariance.ravel()),
        ),
        twist=messages.TwistWithCovariance(
            twist=messages.Twist(
                linear=messages.Vector3(**dict(zip("xyz", linear, strict=True))),
                angular=messages.Vector3(**dict(zip("xyz", angular, strict=True))),
            ),
            covariance=messages.doubles(odometry.twist_covariance.ravel()),
        ),
    )


def _quaternion_message(messages: Messages, a_from_b: NDArray[np.float64]) -> Any:
    x, y, z, w = quaternion(a_from_b[:3, :3]).tolist()
    return messages.Quaternion(x=x, y=y, z=z, w=w)


def path_message(messages: Messages, poses: Sequence[Any]) -> Any:
    """Return nav_msgs/Path of one or more PoseStamped in one world, stamped like the last."""
    return messages.Path(header=poses[-1].header, poses=list(poses))


def depth_message(messages: Messages, geometry: FrameGeometry) -> Any:
    """Return the depth along the optical axis as sensor_msgs/Image 32FC1, NaN invalid (REP-118)."""
    return _float_image(messages, geometry, geometry.depth)


def confidence_message(messages: Messages, geometry: FrameGeometry) -> Any:
    """Return the network's confidence in the depth as sensor_msgs/Image 32FC1, 1 and above."""
    return _float_image(messages, geometry, geometry.confidence)


def _float_image(messages: Messages, geometry: FrameGeometry, values: NDArray[np.float32]) -> Any:
    pixels = np.ascontiguousarray(values, dtype=np.float32)
    height, width = pixels.shape
    return messages.with_octets(
        messages.Image,
        pixels,
        header=header(messages, geometry.view.stamp_ns, geometry.view.frame_id),
        height=height,
        width=width,
        encoding="32FC1",
        is_bigendian=int(sys.byteorder == "big"),
        step=4 * width,
    )


def depth_info_message(messages: Messages, geometry: FrameGeometry) -> Any:
    """Return the CameraInfo of the depth image: its own K and P, rectified, no distortion."""
    height, width = geometry.depth.shape
    head = header(messages, geometry.view.stamp_ns, geometry.view.frame_id)
    return pinhole_info_message(messages, geometry.intrinsics, width, height, head)


def picture_message(messages: Messages, image: NDArray[np.uint8], head: Any) -> Any:
    """Return an RGB image (H, W, 3) as sensor_msgs/Image."""
    height, width = image.shape[:2]
    return messages.with_octets(
        messages.Image,
        image,
        header=head,
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
    )


def pinhole_info_message(
    messages: Messages, intrinsics: NDArray[np.float64], width: int, height: int, head: Any
) -> Any:
    """Return the CameraInfo of a camera without distortion, with its (3, 3) matrix in pixels."""
    matrix = np.asarray(intrinsics, dtype=np.float64)
    projection = np.hstack([matrix, np.zeros((3, 1))])
    return messages.CameraInfo(
        header=head,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=messages.doubles([]),
        k=messages.doubles(matrix.ravel()),
        r=messages.doubles(np.eye(3).ravel()),
        p=messages.doubles(projection.ravel()),
        binning_x=0,
        binning_y=0,
        roi=messages.RegionOfInterest(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def cloud_message(messages: Messages, cloud: Cloud, nanoseconds: int, frame_id: str) -> Any:
    """Return a cloud as sensor_msgs/PointCloud2 with fields x, y, z, rgb and confidence.

    Invalid points are not in the cloud, so it is unordered (height 1) and dense.
    """
    float32 = messages.PointField.FLOAT32
    # sensor_msgs_py's create_cloud copies twice (benchmarks/ros_layer.py has both).
    return messages.with_items(
        messages.PointCloud2,
        POINT_DTYPE,
        len(cloud),
        lambda points: _fill_points(points, cloud),
        header=header(messages, nanoseconds, frame_id),
        height=1,
        width=len(cloud),
        fields=[
            messages.PointField(name=name, offset=4 * index, datatype=float32, count=1)
            for index, name in enumerate(POINT_DTYPE.names or ())
        ],
        is_bigendian=False,
        point_step=POINT_DTYPE.itemsize,
        row_step=POINT_DTYPE.itemsize * len(cloud),
        is_dense=True,
    )


def _fill_points(points: NDArray, cloud: Cloud) -> None:
    points["x"], points["y"], points["z"] = cloud.positions.T
    rgb = points["rgb"]
    rgb[:] = cloud.colors[:, 0]
    for channel in (1, 2):  # in place: a temporary would be as large
        rgb <<= 8
        rgb |= cloud.colors[:, channel]
    points["confidence"] = cloud.confidence


def grid_message(messages: Messages, grid: OccupancyGrid, nanoseconds: int, frame_id: str) -> Any:
    """Return a floor plan as nav_msgs/OccupancyGrid: -1 unknown, 0 free, 100 occupied."""
    height, width = grid.cells.shape
    x, y, z = grid.origin.tolist()
    return messages.OccupancyGrid(
        header=header(messages, nanoseconds, frame_id),
        info=messages.MapMetaData(
            map_load_time=time_message(messages, nanoseconds),
            resolution=grid.resolution,
            width=width,
            height=height,
            origin=messages.Pose(
                position=messages.Point(x=x, y=y, z=z),
                orientation=messages.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
            ),
        ),
        data=messages.small_integers(grid.cells),
    )


DIAGNOSTIC_LEVELS = {"OK": 0, "WARN": 1, "ERROR": 2, "STALE": 3}
"""Levels of diagnostic_msgs/DiagnosticStatus."""


def diagnostics_message(
    messages: Messages,
    name: str,
    level: str,
    text: str,
    values: Mapping[str, str],
    nanoseconds: int,
) -> Any:
    """Return diagnostic_msgs/DiagnosticArray with one status."""
    return messages.DiagnosticArray(
        header=header(messages, nanoseconds, ""),
        status=[
            messages.DiagnosticStatus(
                level=messages.octet(DIAGNOSTIC_LEVELS[level]),
                name=name,
                message=text,
                hardware_id="",
                values=[messages.KeyValue(key=key, value=value) for key, value in values.items()],
            )
        ],
    )


def frames_of(message: Any) -> tuple[str, str]:
    """Return the names of the frames that a pose is in and of; the second may be empty."""
    return (
        message.header.frame_id.lstrip("/"),
        getattr(message, "child_frame_id", "").lstrip("/"),
    )


def read_transform(message: Any) -> NDArray[np.float64]:
    """Return parent_from_child, (4, 4), of a geometry_msgs/TransformStamped.

    Raises:
        RecordingError: a number is not finite, or the quaternion is zero.
    """
    translation, q = message.transform.translation, message.transform.rotation
    return _rigid([translation.x, translation.y, translation.z, q.x, q.y, q.z, q.w])


def read_pose(message: Any) -> NDArray[np.float64]:
    """Return the pose of a PoseStamped, Odometry or TransformStamped message, (4, 4).

    It is given in the frame of the message's header.

    Raises:
        RecordingError: a number is not finite, or the quaternion is zero.
    """
    if hasattr(message, "transform"):
        return read_transform(message)
    pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
    position, q = pose.position, pose.orientation
    return _rigid([position.x, position.y, position.z, q.x, q.y, q.z, q.w])


def _rigid(values: Sequence[float]) -> NDArray[np.float64]:
    numbers = np.array(values, dtype=np.float64)
    norm = math.hypot(*numbers[3:])
    if not (
        np.isfinite(numbers).all()
        and _LEAST_NORM < norm < 1 / _LEAST_NORM
        and np.abs(numbers[:3]).max() < _FARTHEST_M
    ):
        raise RecordingError(
            f"a pose of position {numbers[:3].tolist()} and quaternion {numbers[3:].tolist()} is "
            "no pose"
        )
    return transform(Rotation.from_quat(numbers[3:] / norm).as_matrix(), numbers[:3])
