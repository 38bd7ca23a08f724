"""Depth as image_transport's `compressedDepth`: a PNG of 16 bits that is linear in inverse depth.

The message's data begins with a header of 12 bytes in the machine's byte order: an int32, 0 for
inverse depth, and two float32, a and b. Then comes the PNG. A pixel c means a depth of a / (c - b);
0 is invalid. Every decoder takes a and b from the message, so they are chosen for each image: all
of its depths fit, and none is cut off at a limit.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import FrameGeometry
from qvggt_ros.io.conversions import header
from qvggt_ros.io.messages import Messages

FORMAT = "32FC1; compressedDepth png"
"""Of the message: what is decoded, and how it is encoded."""

_INVERSE_DEPTH = 0
_MOST = 65535
_EXTREMES = (1e-6, 1e6)
"""Depths outside are invalid: they would take the others their precision."""


def compressed_depth_message(messages: Messages, geometry: FrameGeometry) -> Any:
    """Return the depth along the optical axis as sensor_msgs/CompressedImage, 0 invalid."""
    return messages.with_octets(
        messages.CompressedImage,
        encode(geometry.depth),
        header=header(messages, geometry.view.stamp_ns, geometry.view.frame_id),
        format=FORMAT,
    )


def encode(depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return depth (H, W), in any unit, as the octets of a message.

    A pixel's error in inverse depth is at most a half of a 65534th of the image's range of inverse
    depths. What is not finite, not positive, or beyond a millionth or a million, is invalid.
    """
    nearest, farthest = _EXTREMES
    with np.errstate(invalid="ignore"):
        valid = (depth >= nearest) & (depth <= farthest)
    a, b = _quantization(depth[valid])
    codes = np.zeros(depth.shape, dtype=np.uint16)
    codes[valid] = np.clip(np.rint(a / depth[valid].astype(np.float64) + b), 1, _MOST)
    _, png = cv2.imencode(".png", codes)
    return np.concatenate(
        [np.frombuffer(struct.pack("=iff", _INVERSE_DEPTH, a, b), np.uint8), png.ravel()]
    )


def _quantization(depths: NDArray[np.float32]) -> tuple[float, float]:
    """Return a and b, exact in float32: the farthest depth is 1, the nearest 65535."""
    if not len(depths):
        return 1.0, 0.0
    low, high = 1.0 / float(depths.max()), 1.0 / float(depths.min())
    # One depth alone is 1.
    a = (_MOST - 1) / (high - low) if high > low else 1.0 / low
    a = float(np.float32(a))
    return a, float(np.float32(1.0 - a * low))
