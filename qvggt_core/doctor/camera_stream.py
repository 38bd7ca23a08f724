"""Checks of a camera's messages: calibration, frames, stamps, rate, and what gives metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.doctor.finding import Finding, ok, problem, warn
from qvggt_core.geometry.camera import Camera

_S = 1e9
_VIEW_ANGLES = (20.0, 150.0)
"""Horizontal fields of view in degrees between which a camera of a robot lies; a fisheye lens
(equidistant) may see more."""
_OFF_CENTRE = 0.2
_UNEQUAL_FOCAL = 0.1
_CLOCK_OFFSET_S = 5.0
_LONG_GAP_S = 1.0
_SLOW_RATE = 2.0
_CALIBRATE = (
    "calibrate: `ros2 run camera_calibration cameracalibrator --size 8x6 --square 0.02`, "
    "and see docs/your_camera.md"
)


@dataclass(frozen=True)
class CameraStream:
    """What some messages of one camera hold, free of ROS types.

    Attributes:
        image_topic: topic of the images.
        image_frame: frame_id of their headers.
        image_error: why the first image cannot be decoded; empty if it can.
        width: of the images in pixels.
        height: of the images in pixels.
        stamps_ns: (N,) header stamps of images in nanoseconds, in order of reception.
        received_ns: (N,) when they were received.
        info_topic: topic of CameraInfo; None if there is none.
        info_frame: frame_id of its header.
        info_size: width and height that CameraInfo states.
        camera: the calibration for the images; None if there is none that can be used.
        calibration_error: why not.
        has_odometry: whether a topic holds odometry.
    """

    image_topic: str
    image_frame: str
    width: int
    height: int
    stamps_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    info_topic: str | None = None
    info_frame: str = ""
    info_size: tuple[int, int] = (0, 0)
    camera: Camera | None = None
    calibration_error: str = ""
    image_error: str = ""
    has_odometry: bool = False


def check_camera_stream(stream: CameraStream) -> list[Finding]:
    """Return findings on one camera."""
    if stream.image_error:
        images = problem(
            "images",
            f"{stream.image_topic}: {stream.image_error}",
            "let the driver publish rgb8, bgr8, mono8, JPEG or PNG, or name another image topic",
        )
    else:
        images = ok("images", f"{stream.image_topic}: {stream.width}x{stream.height} pixels")
    return [
        images,
        *_calibration(stream),
        *_frames(stream),
        *_stamps(stream),
        _metres(stream),
    ]


def _calibration(stream: CameraStream) -> list[Finding]:
    name = "calibration"
    if stream.info_topic is None:
        return [
            warn(
                name,
                f"no CameraInfo beside {stream.image_topic}: the network estimates the lens",
                "publish it from your camera driver, or name it with camera_info_topic",
            )
        ]
    if stream.calibration_error:
        return [problem(name, stream.calibration_error, _CALIBRATE)]
    if stream.camera is None:
        return [
            warn(
                name,
                f"{stream.info_topic} has a matrix of zeros: the camera is not calibrated, the "
                "network estimates the lens",
                _CALIBRATE,
            )
        ]
    findings = [
        ok(name, f"{stream.info_topic}, distortion: {stream.camera.distortion_model or 'none'}")
    ]
    if stream.info_size != (stream.width, stream.height):
        width, height = stream.info_size
        findings.append(
            warn(
                "image size",
                f"CameraInfo is for {width}x{height}, the images are "
                f"{stream.width}x{stream.height}: the matrix is scaled with them",
                "publish CameraInfo of the resized images (image_proc's resize node does)",
            )
        )
    return [*findings, *_matrix(stream.camera)]


def _matrix(camera: Camera) -> list[Finding]:
    fx, fy = camera.intrinsics[0, 0], camera.intrinsics[1, 1]
    cx, cy = camera.intrinsics[0, 2], camera.intrinsics[1, 2]
    centre = f"({cx:.1f}, {cy:.1f}) in {camera.width}x{camera.height}"
    findings = []
    if not (0 < cx < camera.width and 0 < cy < camera.height):
        findings.append(problem("principal point", f"{centre}: outside of the image", _CALIBRATE))
    elif abs(cx / camera.width - 0.5) > _OFF_CENTRE or abs(cy / camera.height - 0.5) > _OFF_CENTRE:
        findings.append(
            warn(
                "principal point",
                f"{centre}: far from the centre",
                "if the image is cropped, set `roi` in CameraInfo; else calibrate again",
            )
        )
    else:
        findings.append(ok("principal point", centre))
    angle = float(np.degrees(2 * np.arctan(camera.width / (2 * fx))))
    found = f"fx {fx:.1f}, fy {fy:.1f} pixels: {angle:.0f} degrees across"
    low, high = _VIEW_ANGLES
    if not low <= angle <= high and camera.distortion_model != "equidistant":
        findings.append(
            problem(
                "focal length",
                f"{found}, which no usual lens has ({low:.0f} to {high:.0f})",
                f"check that K is in pixels and not in millimetres; {_CALIBRATE}",
            )
        )
    elif abs(fx / fy - 1) > _UNEQUAL_FOCAL:
        findings.append(
            warn("focal length", f"{found}; fx and fy differ by {abs(fx / fy - 1):.0%}", _CALIBRATE)
        )
    else:
        findings.append(ok("focal length", found))
    return findings


def _frames(stream: CameraStream) -> list[Finding]:
    if not stream.image_frame:
        return [
            warn(
                "frame",
                f"{stream.image_topic} has an empty frame_id: TF cannot place the camera",
                "set `frame_id` of your camera driver to the camera's optical frame",
            )
        ]
    if stream.info_topic is not None and stream.info_frame != stream.image_frame:
        return [
            warn(
                "frame",
                f"images are in {stream.image_frame!r}, CameraInfo in {stream.info_frame!r}",
                "let both name the same optical frame, else the calibration may be of another "
                "camera",
            )
        ]
    return [ok("frame", stream.image_frame)]


def _stamps(stream: CameraStream) -> list[Finding]:
    stamps = stream.stamps_ns
    if len(stamps) < 2:
        return [warn("stamps", f"{len(stamps)} image", "record or wait for more")]
    if not stamps.any():
        return [problem("stamps", "all are zero", "let the driver stamp images at their exposure")]
    steps = np.diff(stamps) / _S
    if (steps <= 0).any():
        return [
            problem(
                "stamps",
                f"{int((steps <= 0).sum())} of {len(steps)} do not increase, first at image "
                f"{int(np.argmax(steps <= 0)) + 1}",
                "let one driver publish this topic, with a stamp of its own per image; a looped "
                "recording starts a new map each time",
            )
        ]
    findings = []
    offset = float(np.median(stream.received_ns - stamps)) / _S
    if abs(offset) > _CLOCK_OFFSET_S:
        findings.append(
            warn(
                "clock",
                f"stamps differ from the time of reception by {offset:.1f} s",
                "synchronise the clocks (chrony), or play the recording with `--clock` and "
                "`use_sim_time:=true`",
            )
        )
    median, longest = float(np.median(steps)), float(steps.max())
    found = f"{1 / median:.1f} Hz, longest gap {longest:.2f} s"
    if longest > max(_LONG_GAP_S, 5 * median):
        findings.append(
            warn(
                "rate",
                found,
                "images are lost: see the driver, QoS and network; after `max_gap_s` a new map "
                "begins",
            )
        )
    elif 1 / median < _SLOW_RATE:
        findings.append(
            warn("rate", found, "raise the camera's rate: images must overlap by two thirds")
        )
    else:
        findings.append(ok("rate", found))
    return findings


def _metres(stream: CameraStream) -> Finding:
    if stream.has_odometry:
        return ok("metres", "from odometry")
    return warn(
        "metres",
        "no odometry: the map has no metric scale",
        "record or remap nav_msgs/Odometry, or set `metres_per_unit`; see docs/metres.md",
    )
