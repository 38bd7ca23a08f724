"""Messages of reference data as arrays: poses, transforms and depth images, with their fields."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError
from qvggt_ros.io import conversions

# Metres per unit (REP-118).
_DEPTH_ENCODINGS = {"32fc1": ("f4", 1.0), "64fc1": ("f8", 1.0), "16uc1": ("u2", 1e-3)}
_DEPTH_ENCODINGS["mono16"] = _DEPTH_ENCODINGS["16uc1"]


def read_reference_pose(message: Any) -> NDArray[np.float64]:
    """Return the pose of a PoseStamped, Odometry or TransformStamped message, (4, 4).

    Raises:
        RecordingError: a number is not finite, or the quaternion is zero.
    """
    if not hasattr(message, "transform"):
        return conversions.read_pose(message)
    return conversions.read_transform(message)


def frames_of(message: Any) -> tuple[str, str]:
    """Return the names of the frames that a pose is in and of; the second may be empty."""
    return (
        message.header.frame_id.lstrip("/"),
        getattr(message, "child_frame_id", "").lstrip("/"),
    )


def is_depth(message: Any) -> bool:
    """Return whether an Image message holds depth."""
    return not hasattr(message, "format") and (
        message.encoding.strip().lower() in ("32fc1", "64fc1", "16uc1")
    )


def decode_depth(message: Any) -> NDArray[np.float32]:
    """Return the depth of a sensor_msgs/Image in metres, (H, W), NaN where invalid (REP-118).

    Raises:
        ImageError: the encoding is not that of depth, or the data is short or too large.
    """
    known = _DEPTH_ENCODINGS.get(message.encoding.strip().lower())
    if known is None:
        raise ImageError(
            f"an image of encoding {message.encoding!r} is no depth: 32FC1 (metres) and 16UC1 "
            "(millimetres) are"
        )
    width, height, step = message.width, message.height, message.step
    kind = np.dtype((">" if message.is_bigendian else "<") + known[0])
    data = np.frombuffer(message.data, dtype=np.uint8)
    if width <= 0 or height <= 0 or width * height > conversions.MAX_PIXELS:
        raise ImageError(f"depth of {width}x{height} pixels cannot be used")
    if step < width * kind.itemsize or data.size < step * height:
        raise ImageError(
            f"depth data is short: {data.size} bytes in rows of {step} for {width}x{height} pixels "
            f"of {message.encoding}"
        )
    rows = np.ascontiguousarray(
        data[: step * height].reshape(height, step)[:, : width * kind.itemsize]
    )
    depth = rows.view(kind).astype(np.float32) * np.float32(known[1])
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth) & (depth > 0.0), depth, np.float32(np.nan))
