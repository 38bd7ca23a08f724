"""Masks of what stands still in a camera's images, and the one that belongs to an image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError, QvggtError
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.io.images import decode_image

_KEPT = 16
_ENCODINGS = ("mono8", "8uc1")
# A network that finds people gives its mask when the image has passed already: that of an image
# so shortly before is better than none.
_REACH_NS = 250_000_000


class Masks:
    """The newest masks of one camera: mono8, of the image's size, non-zero where it is static."""

    def __init__(self, reject: Callable[[str], None]) -> None:
        """Start with none.

        Args:
            reject: called with the reason why a message cannot be used.
        """
        self._reject = reject
        self._messages: OrderedDict[int, Any] = OrderedDict()

    def add(self, message: Any) -> None:
        """Take a sensor_msgs/Image."""
        stamp = stamp_ns(message)
        if message.encoding.strip().lower() not in _ENCODINGS:
            self._reject(f"a mask of encoding {message.encoding!r} is left out: send mono8")
            return
        self._messages[stamp] = message
        self._messages.move_to_end(stamp)
        while len(self._messages) > _KEPT:
            self._messages.popitem(last=False)

    def at(self, stamp: int, width: int, height: int) -> NDArray[np.uint8] | None:
        """Return the mask (H, W) of an image.

        It is that of the same stamp, else the nearest within a quarter of a second, else one of
        stamp 0, which holds for all images, as that of the robot's own body.
        """
        nearest = min(self._messages, key=lambda each: abs(each - stamp), default=None)
        if nearest is None or abs(nearest - stamp) > _REACH_NS:
            nearest = 0
        message = self._messages.get(nearest)
        if message is None:
            return None
        try:
            mask = decode_image(message)[:, :, 0]
            if mask.shape != (height, width):
                raise ImageError(
                    f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels does not fit images of "
                    f"{width}x{height}: send it in the image's size"
                )
        except QvggtError as error:
            del self._messages[nearest]
            self._reject(str(error))
            return None
        return np.ascontiguousarray(mask)
