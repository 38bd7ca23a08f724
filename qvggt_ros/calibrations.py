"""The CameraInfo messages of a session's cameras, and the calibration of an image among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from qvggt_core.errors import QvggtError
from qvggt_core.geometry.camera import Camera
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import frames_of, stamp_ns

_KEPT = 32


class Calibrations:
    """The newest CameraInfo messages of one camera."""

    def __init__(
        self, reject: Callable[[str], None], warn: Callable[[str], None], *, rectified: bool
    ) -> None:
        """Start with none.

        Args:
            reject: called with the reason why a message cannot be used.
            warn: called with what is odd about one that is used.
            rectified: whether the images are rectified already.
        """
        self._reject = reject
        self._warn = warn
        self._rectified = rectified
        self._messages: OrderedDict[int, Any] = OrderedDict()
        self._last: Camera | None = None

    def add(self, message: Any) -> None:
        """Take a sensor_msgs/CameraInfo."""
        stamp = stamp_ns(message)
        self._messages[stamp] = message
        self._messages.move_to_end(stamp)
        while len(self._messages) > _KEPT:
            self._messages.popitem(last=False)

    def at(self, stamp: int, width: int, height: int, frame_id: str = "") -> Camera | None:
        """Return the calibration of an image: of the same stamp, else the newest.

        If that one is broken, the last good one for images of this size stays in use. One of
        another frame than the image's is used, with a warning: it may be another camera's.
        """
        if not self._messages:
            return None
        newest = next(reversed(self._messages))
        info = self._messages.get(stamp, self._messages[newest])
        frame_of_info = frames_of(info)[0]
        if frame_id and frame_of_info and frame_of_info != frame_id:
            self._warn(
                f"CameraInfo is of the frame {frame_of_info!r}, its image of {frame_id!r}: is it "
                "another camera's?"
            )
        try:
            self._last = camera_from_info(info, width, height, rectified=self._rectified)
        except QvggtError as error:
            self._reject(
                f"calibration: {error}; the last good calibration stays in use, if there was one"
            )
            last = self._last
            if last is not None and (last.width, last.height) != (width, height):
                self._last = None
        return self._last
