"""The lens of a recording without a calibration: what the user says, or what its images show."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ParameterError, QvggtError
from qvggt_core.stream.focal_length import FocalLength, estimate_focal_length
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.images import PictureDecoder
from qvggt_ros.io.recording import Recording
from qvggt_ros.io.topics import Topics

logger = logging.getLogger(__name__)

_MOST_IMAGES = 300


@dataclass(frozen=True)
class AssumedLens:
    """What is taken for the lens of images without a calibration.

    Attributes:
        focal_length: of the images as they come; None leaves the lens to the network.
        width: of the images, pixels.
        height: of the images, pixels.
        note: a sentence on where it is from, or on why there is none.
    """

    focal_length: FocalLength | None
    width: int
    height: int
    note: str


def check_focal_length(pixels: float | None) -> None:
    """Check a focal length that a user gives.

    Raises:
        ParameterError: it is none.
    """
    if pixels is not None and not (math.isfinite(pixels) and pixels >= 0.0):
        raise ParameterError(
            f"a focal length of {pixels} pixels is none: give that of the images, or 0 for the "
            "network's own"
        )


def assumed_lens(
    recording: Recording,
    topics: Topics,
    given: float | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AssumedLens | None:
    """Return the lens that is taken for images without a calibration; None if they have one.

    Args:
        recording: what is reconstructed.
        topics: of its images and CameraInfo.
        given: focal length in pixels; 0 for the network's own; None to find it.
        progress: called with the number of steps done and the number in all while it is looked for.
    """
    images = _images(recording, topics.image)
    first = next(images, None)
    if first is None or _is_calibrated(recording, topics, first):
        return None
    height, width = first.shape[:2]
    if given is not None:
        focal = FocalLength(given, 0.0) if given else None
        return AssumedLens(focal, width, height, f"no calibration: focal length {given:.0f} pixels")
    logger.info("no calibration: looking for the focal length in the images")
    same = (image for image in _images(recording, topics.image) if image.shape == first.shape)
    found = estimate_focal_length(islice(same, _MOST_IMAGES), progress)
    if isinstance(found, str):
        note = f"no calibration, and none found from the images ({found}): the network's own"
        return AssumedLens(None, width, height, note)
    note = (
        f"no calibration: focal length {found.pixels:.0f} pixels, to {found.sigma:.1%}, found from "
        "the images"
    )
    return AssumedLens(found, width, height, note)


def _images(recording: Recording, topic: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the images that can be decoded."""
    decoder = PictureDecoder(lambda warning: None)
    for _, kind, _, data in recording.messages([topic]):
        try:
            image = decoder.decode(recording.deserialize(data, kind))
        except QvggtError:
            continue
        yield image


def _is_calibrated(recording: Recording, topics: Topics, image: NDArray[np.uint8]) -> bool:
    info = topics.camera_info and recording.first(topics.camera_info)
    if not info:
        return False
    height, width = image.shape[:2]
    try:
        return camera_from_info(info, width, height, rectified=topics.rectified) is not None
    except QvggtError:
        # It is named where it is used; its images are not calibrated by it.
        return False
