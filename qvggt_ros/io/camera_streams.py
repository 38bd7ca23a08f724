"""What the messages of one camera hold, for the checks of `qvggt doctor`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.doctor import CameraStream, Finding, check_camera_stream
from qvggt_core.doctor.finding import ok, problem, warn
from qvggt_core.errors import ImageError, RecordingError
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.images import decode_image
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.topics import Topics, choose_topics, odometry_topic

_MAX_IMAGES = 3000
"""Images whose stamps are checked, from the first on."""

_ENCAPSULATION = 4
"""Bytes before a serialized message; the second one is odd for little endian (DDS-XTypes 7.6.3)."""

_NANOSECONDS = 1_000_000_000


def check_recording(
    path: Path, image_topic: str | None = None, camera_info_topic: str | None = None
) -> list[Finding]:
    """Return findings on a recording and the camera of it that a reconstruction takes.

    Args:
        path: rosbag2 directory, or a bare .mcap or .db3 file.
        image_topic: found by type if None.
        camera_info_topic: found beside the images if None.
    """
    try:
        with open_recording(path) as recording:
            topics = choose_topics(recording, image_topic, camera_info_topic)
            findings = check_camera_stream(recorded_stream(recording, topics))
            damage = [
                warn("recording", text, "record again, or use what there is: it is read so far")
                for text in recording.warnings
            ]
            count = recording.message_count
            return [*(damage or [ok("recording", f"{path}: {count} messages")]), *findings]
    except RecordingError as error:
        advice = "see what it holds with `qvggt topics` or `ros2 bag info`; record images with "
        advice += "`ros2 bag record`, or name them with --image-topic"
        return [problem("recording", str(error), advice)]


def recorded_stream(recording: Recording, topics: Topics) -> CameraStream:
    """Return what a recording holds of one camera.

    Raises:
        RecordingError: no image of the topic can be read.
    """
    stamps, received = [], []
    for _, _, received_ns, data in recording.messages([topics.image]):
        if len(data) >= _ENCAPSULATION + 8:
            stamps.append(_header_stamp_ns(data))
            received.append(received_ns)
        if len(stamps) == _MAX_IMAGES:
            break
    image = recording.first(topics.image)
    if image is None:
        raise RecordingError(f"{recording.path}: no image of {topics.image} can be read")
    info = recording.first(topics.camera_info) if topics.camera_info else None
    return stream_of(
        image,
        info,
        topics,
        np.array(stamps, dtype=np.int64),
        np.array(received, dtype=np.int64),
        has_odometry=odometry_topic(recording) is not None,
    )


def stream_of(
    image: Any,
    info: Any | None,
    topics: Topics,
    stamps_ns: np.ndarray,
    received_ns: np.ndarray,
    has_odometry: bool,
) -> CameraStream:
    """Return the camera of one image, its CameraInfo if there is one, and stamps of all images."""
    image_error, calibration_error, camera = "", "", None
    height = width = 0
    try:
        height, width = decode_image(image).shape[:2]
    except ImageError as error:
        image_error = str(error)
    if info is not None and width:
        try:
            # What no lens can have is a finding of its own, by `check_camera_stream`.
            camera = camera_from_info(
                info, width, height, rectified=topics.rectified, plausible=False
            )
        except ImageError as error:
            calibration_error = str(error)
    return CameraStream(
        image_topic=topics.image,
        image_frame=image.header.frame_id,
        width=width,
        height=height,
        stamps_ns=stamps_ns,
        received_ns=received_ns,
        info_topic=None if info is None else topics.camera_info,
        info_frame="" if info is None else info.header.frame_id,
        info_size=(0, 0) if info is None else (info.width, info.height),
        camera=camera,
        calibration_error=calibration_error,
        image_error=image_error,
        has_odometry=has_odometry,
    )


def _header_stamp_ns(data: bytes) -> int:
    """Return the stamp of a serialized message that begins with a header."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, _ENCAPSULATION)
    return seconds * _NANOSECONDS + nanoseconds
