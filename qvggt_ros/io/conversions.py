"""ROS messages to frames, and geometry to ROS messages: the only file that knows message fields.

Frames follow REP-103 and REP-105: a camera's frame is optical (x right, y down, z forward), a
world is z-up. `PoseStamped` and TF give the pose of the camera's optical frame in the world.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from scipy.spatial.transform import Rotation

from qvggt_core.errors import ImageError, RecordingError
from qvggt_core.geometry.camera import Camera, resized_intrinsics
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import quaternion, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Scale
from qvggt_ros.io.messages import Messages

NANOSECONDS = 1_000_000_000

MAX_PIXELS = 1 << 26
"""Largest picture that is decoded (67 megapixels), so that a header cannot ask for all memory."""

POINT_DTYPE = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4")]
)
"""Layout of a point in PointCloud2; `rgb` is 0x00RRGGBB, declared FLOAT32 as RViz expects."""

_SAME_ASPECT = 0.01


@dataclass(frozen=True)
class OdometryEstimate:
    """A pose, a velocity, and how sure they are.

    Attributes:
        world_from_child: (4, 4) float64.
        twist: (6,) linear m/s and angular rad/s, in the child's frame.
        pose_variance: (6,) of x, y, z and rotation about x, y, z.
        twist_variance: (6,) of the twist.
    """

    world_from_child: NDArray[np.float64]
    twist: NDArray[np.float64]
    pose_variance: NDArray[np.float64]
    twist_variance: NDArray[np.float64]


@dataclass(frozen=True)
class _Encoding:
    channels: int
    itemsize: int
    to_rgb: int | None


_ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(3, 1, None),
    "bgr8": _Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Encoding(3, 2, None),
    "bgr16": _Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": _Encoding(4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": _Encoding(4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": _Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    # OpenCV's type names carry no colour order; cv_bridge takes them as grey and BGR.
    "8uc1": _Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "8uc3": _Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "8uc4": _Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "16uc1": _Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    "16uc3": _Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "yuv422": _Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuy2": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
} | {
    f"bayer_{pattern.lower()}{bits}": _Encoding(
        1, bits // 8, getattr(cv2, f"COLOR_Bayer{pattern}2RGB")
    )
    for pattern in ("RGGB", "BGGR", "GBRG", "GRBG")
    for bits in (8, 16)
}

_DEPTH_ENCODINGS = {"16uc1", "32fc1", "64fc1"}


def stamp_ns(message: Any) -> int:
    """Return the header stamp of a message in integer nanoseconds."""
    stamp = message.header.stamp
    return stamp.sec * NANOSECONDS + stamp.nanosec


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


def is_picture(message: Any) -> bool:
    """Return whether an Image or CompressedImage message looks like a picture, not like depth."""
    if hasattr(message, "format"):
        return "compresseddepth" not in message.format.lower() and not _is_depth(
            message.format.split(";")[0]
        )
    return not _is_depth(message.encoding)


def _is_depth(encoding: str) -> bool:
    return encoding.strip().lower() in _DEPTH_ENCODINGS


def decode_image(message: Any) -> NDArray[np.uint8]:
    """Return the picture of a sensor_msgs/Image or CompressedImage.

    Pictures of 16 bits a channel keep their upper 8 bits, as cv_bridge does: 0 to 65535 is the
    full range. Alpha is dropped.

    Returns:
        (H, W, 3) uint8, RGB, writable.

    Raises:
        ImageError: the picture is empty, too large, broken, or of an unknown encoding.
    """
    if hasattr(message, "format"):
        return _decode_compressed(message)
    return _decode_raw(message)


def _decode_raw(message: Any) -> NDArray[np.uint8]:
    width, height, step = message.width, message.height, message.step
    _check_size(width, height)
    encoding = _ENCODINGS.get(message.encoding.strip().lower())
    if encoding is None:
        return _decode_by_cv_bridge(message)
    row = width * encoding.channels * encoding.itemsize
    if step < row:
        raise ImageError(
            f"image step of {step} bytes is too small: {width} pixels of {message.encoding} "
            f"need {row}"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size < step * height:
        raise ImageError(
            f"image data is short: {data.size} bytes, but {height} rows of {step} bytes "
            f"make {step * height}"
        )
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
    if encoding.itemsize == 2:
        pixels = rows.view(">u2" if message.is_bigendian else "<u2")
        rows = (pixels >> 8).astype(np.uint8)
    return _to_rgb(rows.reshape(height, width, encoding.channels), encoding, message.encoding)


def _decode_by_cv_bridge(message: Any) -> NDArray[np.uint8]:
    """Return a picture of one of the rarer encodings, such as nv21, as cv_bridge reads it."""
    unknown = f"image encoding {message.encoding!r} is not a picture that can be read"
    if _is_depth(message.encoding):
        raise ImageError(f"{unknown}: it is depth; known: {', '.join(_ENCODINGS)}")
    try:
        # Its C++ part was built for one major version of NumPy, and says so in several ways.
        from cv_bridge import CvBridge
    except Exception as error:
        raise ImageError(
            f"{unknown} without cv_bridge, which cannot be imported ({error}): install "
            "ros-$ROS_DISTRO-cv-bridge (with NumPy 1.x on Humble and Jazzy); "
            f"known without it: {', '.join(_ENCODINGS)}"
        ) from error
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"), dtype=np.uint8)
    except Exception as error:  # C++ exceptions come as several types
        raise ImageError(f"{unknown}, by cv_bridge neither: {error}") from error


def _to_rgb(pixels: NDArray[np.uint8], encoding: _Encoding, name: str) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    if encoding.channels == 2 and width % 2:
        raise ImageError(f"image of encoding {name} has an odd width, {width}: pairs share colour")
    if name.lower().startswith("bayer") and min(height, width) < 2:
        raise ImageError(f"image of encoding {name} is {width}x{height}: a mosaic needs 2x2")
    if encoding.to_rgb is None:
        return pixels.copy()
    return np.asarray(cv2.cvtColor(pixels, encoding.to_rgb), dtype=np.uint8)


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(f"image is empty: {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"image of {width}x{height} pixels is larger than the limit of {MAX_PIXELS} pixels"
        )


def _decode_compressed(message: Any) -> NDArray[np.uint8]:
    if "compresseddepth" in message.format.lower():
        raise ImageError(
            f"compressed image of format {message.format!r} is depth, not a picture: "
            "name the topic of the camera's colour or grey image"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    # Pillow reads the size from the header before it decodes, and unlike OpenCV it refuses a
    # JPEG that was cut off instead of filling the rest with grey.
    try:
        picture = PilImage.open(BytesIO(data.tobytes()), formats=("JPEG", "PNG"))
    except Exception as error:
        raise ImageError(
            f"compressed image of {data.size} bytes, format {message.format!r}, has no JPEG or "
            f"PNG header that can be read ({type(error).__name__})"
        ) from error
    _check_size(*picture.size)
    try:
        pixels = _pixels_8_bit(picture)
    except Exception as error:  # a decoder may raise anything on bytes from a broken camera
        raise ImageError(
            f"compressed image of {data.size} bytes, format {message.format!r}, is broken: {error}"
        ) from error
    if pixels.ndim == 3:
        return pixels
    # image_transport compresses a Bayer mosaic as a grey picture and keeps its name in front.
    name = message.format.split(";")[0].strip().lower()
    encoding = _ENCODINGS.get(name if name.startswith("bayer") else "mono8", _ENCODINGS["mono8"])
    return _to_rgb(pixels[..., None], encoding, name)


def _pixels_8_bit(picture: PilImage.Image) -> NDArray[np.uint8]:
    """Return (H, W) grey or (H, W, 3) RGB."""
    if picture.mode.startswith("I"):
        return (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
    if picture.mode in ("L", "1", "LA"):
        return np.array(picture.convert("L"))
    return np.array(picture.convert("RGB"))


def camera_from_info(
    info: Any, width: int, height: int, *, rectified: bool = False
) -> Camera | None:
    """Return the calibration of an image of a given size, or None if it is uncalibrated.

    CameraInfo describes the full sensor (REP-104): the region of interest shifts the principal
    point, binning divides the matrix. If the image then has another size but the same aspect
    ratio, it was resized on the way, and the matrix is scaled with it. Coefficients that are all
    zero are no distortion, except for an equidistant lens.

    Args:
        info: sensor_msgs/CameraInfo.
        width: width in pixels of the image as delivered.
        height: height in pixels of the image as delivered.
        rectified: whether the image was rectified already (`image_rect`); then the left 3x3 of
            `P` holds and there is no distortion.

    Raises:
        ImageError: a number is not finite, the sizes disagree, or `Camera` refuses the values.
    """
    distortion = np.array([] if rectified else info.d, dtype=np.float64)
    matrix = (
        np.array(info.p, dtype=np.float64).reshape(3, 4)[:, :3].copy()
        if rectified
        else np.array(info.k, dtype=np.float64).reshape(3, 3)
    )
    for name, values in (("P" if rectified else "K", matrix), ("D", distortion)):
        if not np.isfinite(values).all():
            raise ImageError(f"CameraInfo has a {name} that is not finite: {values.tolist()}")
    if matrix[0, 0] == 0.0:
        return None
    full_width = info.roi.width or info.width
    full_height = info.roi.height or info.height
    matrix[0, 2] -= info.roi.x_offset
    matrix[1, 2] -= info.roi.y_offset
    # Same arithmetic as image_geometry: binning scales the principal point about zero.
    binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)], dtype=np.float64)
    matrix[:2] /= binning[:, None]
    delivered = np.array([full_width, full_height]) // binning.astype(int)
    if not delivered.all():
        raise ImageError(
            f"CameraInfo is for {info.width}x{info.height} pixels with binning "
            f"{info.binning_x}x{info.binning_y}: there is no such image"
        )
    scale = np.array([width, height]) / delivered
    if abs(scale[0] / scale[1] - 1.0) > _SAME_ASPECT:
        raise ImageError(
            f"CameraInfo is for {delivered[0]}x{delivered[1]} pixels, the image has "
            f"{width}x{height}: another aspect ratio, so the calibration does not hold"
        )
    matrix = resized_intrinsics(matrix, (float(scale[0]), float(scale[1])))
    if rectified or not (distortion.any() or info.distortion_model == "equidistant"):
        return Camera(width, height, matrix)
    return Camera(width, height, matrix, info.distortion_model, tuple(distortion.tolist()))


def world_frame(parameters: Parameters, scale: Scale, segment: int) -> str:
    """Return the name of the world: it says whether its unit is the metre, and which map it is."""
    if scale.metres_per_unit is None:
        name = parameters.unscaled_frame
    elif parameters.publish_tf == "odom_to_base":
        name = parameters.odom_frame
    else:
        name = parameters.map_frame
    return name if segment == 0 else f"{name}_{segment}"


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
            covariance=messages.doubles(np.diag(odometry.pose_variance).ravel()),
        ),
        twist=messages.TwistWithCovariance(
            twist=messages.Twist(
                linear=messages.Vector3(**dict(zip("xyz", linear, strict=True))),
                angular=messages.Vector3(**dict(zip("xyz", angular, strict=True))),
            ),
            covariance=messages.doubles(np.diag(odometry.twist_variance).ravel()),
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
    points = np.empty(len(cloud), dtype=POINT_DTYPE)
    for axis, name in enumerate("xyz"):
        points[name] = cloud.positions[:, axis]
    red, green, blue = (cloud.colors[:, channel].astype(np.uint32) for channel in range(3))
    points["rgb"] = (red << 16) | (green << 8) | blue
    points["confidence"] = cloud.confidence
    float32 = messages.PointField.FLOAT32
    # Not by sensor_msgs_py's create_cloud: it copies twice, and a copy into new pages is what a
    # large message costs (benchmarks/ros_layer.py has both).
    return messages.with_octets(
        messages.PointCloud2,
        points,
        header=header(messages, nanoseconds, frame_id),
        height=1,
        width=len(points),
        fields=[
            messages.PointField(name=name, offset=4 * index, datatype=float32, count=1)
            for index, name in enumerate(POINT_DTYPE.names or ())
        ],
        is_bigendian=False,
        point_step=POINT_DTYPE.itemsize,
        row_step=POINT_DTYPE.itemsize * len(points),
        is_dense=True,
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


def read_transform(message: Any) -> NDArray[np.float64]:
    """Return parent_from_child, (4, 4), of a geometry_msgs/TransformStamped.

    Raises:
        RecordingError: a number is not finite, or the quaternion is zero.
    """
    translation, q = message.transform.translation, message.transform.rotation
    return _rigid([translation.x, translation.y, translation.z, q.x, q.y, q.z, q.w])


def read_pose(message: Any) -> NDArray[np.float64]:
    """Return the pose of a PoseStamped or Odometry message, (4, 4), in its header's frame.

    Raises:
        RecordingError: a number is not finite, or the quaternion is zero.
    """
    pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
    position, q = pose.position, pose.orientation
    return _rigid([position.x, position.y, position.z, q.x, q.y, q.z, q.w])


def _rigid(values: Sequence[float]) -> NDArray[np.float64]:
    numbers = np.array(values, dtype=np.float64)
    if not np.isfinite(numbers).all() or not numbers[3:].any():
        raise RecordingError(f"a pose of {numbers.tolist()} is no pose")
    return transform(Rotation.from_quat(numbers[3:]).as_matrix(), numbers[:3])
