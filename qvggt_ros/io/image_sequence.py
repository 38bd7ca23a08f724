"""A video or a folder of images as a recording: a camera without anything around it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError, RecordingError
from qvggt_core.util.image_files import (
    VIDEO_SUFFIXES,
    Video,
    exif_focal_length,
    image_files,
    image_size,
    read_image,
)
from qvggt_ros.io import conversions
from qvggt_ros.io.bag import Recording
from qvggt_ros.io.messages import TYPES, rosbags_messages, rosbags_typestore

logger = logging.getLogger(__name__)

IMAGE_TOPIC = "/camera/image_raw"
CAMERA_INFO_TOPIC = "/camera/camera_info"
FRAME_ID = "camera_optical_frame"

_PERIOD_NS = 100_000_000
"""Between images whose times are not known."""
_STAMP_DIGITS = range(16, 20)
"""Digits of a file name that is a time in microseconds or nanoseconds since 1970."""
_UNREADABLE = b"unreadable "


def is_image_sequence(path: Path) -> bool:
    """Return whether a path is a video, or a folder of images that is no rosbag2 directory."""
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES
    if not path.is_dir() or any({".mcap", ".db3"} & set(file.suffixes) for file in path.iterdir()):
        return False
    return bool(image_files(path))


class ImageSequence(Recording):
    """Images with times and, where their EXIF has it, a calibration; see `Recording`.

    Attributes:
        path: what was opened.
        warnings: sentences about what could not be read, or was assumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages = ()
        self.warnings: list[str] = []
        self._messages = rosbags_messages()
        self.typestore = rosbags_typestore()
        self._video = Video(path) if path.is_file() else None
        self._files = [] if self._video else image_files(path)
        self._stamps: list[int] = []
        self._focal_lengths: list[float] = []
        if self._video is None:
            self._survey()
        elif self._video.rate is None:
            self._warn(f"{path} has no frame rate: 30 frames a second are assumed")

    def _survey(self) -> None:
        """Look at the images' names and headers, without decoding them."""
        names = [file.stem for file in self._files]
        if all(name.isdigit() and len(name) in _STAMP_DIGITS for name in names):
            # Names of equal length are in order of time; 16 digits are microseconds.
            self._stamps = [int(name.ljust(19, "0")) for name in names]
        else:
            self._stamps = [_PERIOD_NS * (index + 1) for index in range(len(names))]
            self._warn(
                f"the times of the images in {self.path} are not known: ten a second are assumed"
            )
        sizes: dict[tuple[int, int], list[str]] = {}
        for file in self._files:
            if (size := image_size(file)) is not None:
                sizes.setdefault(size, []).append(file.name)
        if len(sizes) > 1:
            listed = "; ".join(
                f"{len(files)} of {width}x{height}, first {files[0]}"
                for (width, height), files in sizes.items()
            )
            self._warn(
                f"the images in {self.path} have {len(sizes)} sizes, and a new map segment begins "
                f"where the size changes: {listed}"
            )
        lengths = [exif_focal_length(file) for file in self._files]
        if None not in lengths:
            self._focal_lengths = [length for length in lengths if length is not None]

    def _warn(self, warning: str) -> None:
        logger.warning("%s", warning)
        self.warnings.append(warning)

    @property
    def types(self) -> dict[str, str]:
        """Message type per topic, by name."""
        types = {IMAGE_TOPIC: TYPES["Image"]}
        return {CAMERA_INFO_TOPIC: TYPES["CameraInfo"], **types} if self._focal_lengths else types

    @property
    def message_count(self) -> int:
        """Number of messages."""
        return sum(map(self.count, self.types))

    def count(self, topic: str) -> int:
        """Return the number of messages of a topic."""
        if topic not in self.types:
            return 0
        return len(self._files) if self._video is None else len(self._video)

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield topic, type, time in nanoseconds and CDR bytes, in order of time."""
        if self._video is not None:
            if IMAGE_TOPIC in topics:
                for seconds, image in self._video.frames():
                    stamp = round(1e9 * seconds) + 1
                    yield IMAGE_TOPIC, TYPES["Image"], stamp, self._picture(image, stamp)
            return
        for index, file in enumerate(self._files):
            yield from self._of_file(index, file, topics)

    def _of_file(
        self, index: int, file: Path, topics: Sequence[str]
    ) -> Iterator[tuple[str, str, int, bytes]]:
        stamp = self._stamps[index]
        if CAMERA_INFO_TOPIC in topics and self._focal_lengths:
            size = image_size(file)
            if size is not None:
                data = self._info(size, self._focal_lengths[index], stamp)
                yield CAMERA_INFO_TOPIC, TYPES["CameraInfo"], stamp, data
        if IMAGE_TOPIC in topics:
            try:
                data = self._picture(read_image(file), stamp)
            except ImageError as error:
                data = _UNREADABLE + str(error).encode()
            yield IMAGE_TOPIC, TYPES["Image"], stamp, data

    def first(self, topic: str) -> Any | None:
        """Return the first message of a topic that can be read, or None."""
        for _, msgtype, _, data in self.messages([topic]):
            if not data.startswith(_UNREADABLE):
                return self.deserialize(data, msgtype)
        return None

    def deserialize(self, data: bytes, msgtype: str) -> Any:
        """Return a message.

        Raises:
            RecordingError: it stands for an image that could not be read.
        """
        if data.startswith(_UNREADABLE):
            raise RecordingError(data.removeprefix(_UNREADABLE).decode())
        return self.typestore.deserialize_cdr(data, msgtype)

    def _picture(self, image: NDArray[np.uint8], stamp: int) -> bytes:
        head = conversions.header(self._messages, stamp, FRAME_ID)
        message = conversions.picture_message(self._messages, image, head)
        return bytes(self.typestore.serialize_cdr(message, TYPES["Image"]))

    def _info(self, size: tuple[int, int], focal_length: float, stamp: int) -> bytes:
        width, height = size
        matrix = np.array(
            [[focal_length, 0.0, width / 2], [0.0, focal_length, height / 2], [0.0, 0.0, 1.0]]
        )
        head = conversions.header(self._messages, stamp, FRAME_ID)
        message = conversions.pinhole_info_message(self._messages, matrix, width, height, head)
        return bytes(self.typestore.serialize_cdr(message, TYPES["CameraInfo"]))


def open_image_sequence(path: Path) -> ImageSequence:
    """Open a video or a folder of images.

    Raises:
        RecordingError: it cannot be read, or holds no frame.
    """
    try:
        sequence = ImageSequence(path)
    except ImageError as error:
        raise RecordingError(str(error)) from error
    if sequence.count(IMAGE_TOPIC) == 0:
        raise RecordingError(f"{path} holds no frame that can be read")
    return sequence
