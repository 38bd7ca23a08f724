"""True depth images of a recording, laid over the depth images of its reconstruction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.geometry.camera import Camera, rectification_map
from qvggt_core.parameters import Parameters
from qvggt_core.results.truth import DepthPair
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import frames_of, stamp_ns
from qvggt_ros.io.images import decode_depth, is_depth
from qvggt_ros.io.messages import TYPES
from qvggt_ros.io.recording import Recording
from qvggt_ros.io.topics import OWN_NAMESPACE

# How far true depth may come before the frame that it belongs to, in messages.
_TRUTHS_KEPT = 64


def depth_topic(recording: Recording, image_topic: str, named: str | None) -> str | None:
    """Return the topic of true depth: the named one, or the only one in the camera's frame.

    Raises:
        RecordingError: the named topic is not there or holds no depth.
    """
    if named is not None:
        first = recording.first(named) if recording.types.get(named) == TYPES["Image"] else None
        if first is None or not is_depth(first):
            raise RecordingError(f"{recording.path} has no depth images on {named}")
        return named
    image = recording.first(image_topic) if image_topic in recording.types else None
    if image is None:
        return None
    found = []
    for topic, kind in recording.types.items():
        if kind != TYPES["Image"] or topic.startswith(OWN_NAMESPACE):
            continue
        first = recording.first(topic)
        # Depth of another camera, or at another place, does not lie over the image.
        if first is not None and is_depth(first) and frames_of(first)[0] == frames_of(image)[0]:
            found.append(topic)
    return found[0] if len(found) == 1 else None


def depth_pairs(
    result: Recording,
    recording: Recording,
    topic: str,
    camera_info_topic: str | None,
    parameters: Parameters,
    *,
    tolerance_s: float,
    rectified: bool,
) -> Iterator[DepthPair]:
    """Yield the depth images of a result that have a true one, in the order of time.

    The true depth is brought to the pixels of the other by what was done to the image: rectified,
    resized, cropped; the nearest pixel is taken, never a mean across an edge.

    Args:
        result: recording of the reconstruction.
        recording: recording that it was made of.
        topic: true depth, in the pixels of the camera's image.
        camera_info_topic: calibration of the image.
        parameters: those of the reconstruction.
        tolerance_s: largest difference of stamps.
        rectified: whether the images of the recording were rectified already.
    """
    info = recording.first(camera_info_topic) if camera_info_topic else None
    truths = _decoded(recording, topic)
    kept: deque[tuple[int, NDArray[np.float32]]] = deque(maxlen=_TRUTHS_KEPT)
    layers: dict[tuple[Any, ...], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for stamp, depth, intrinsics in _reconstructed(result):
        while not kept or kept[-1][0] < stamp + round(tolerance_s * 1e9):
            following = next(truths, None)
            if following is None:
                break
            kept.append(following)
        nearest = min(kept, key=lambda entry: abs(entry[0] - stamp), default=None)
        if nearest is None or abs(nearest[0] - stamp) > round(tolerance_s * 1e9):
            continue
        truth = nearest[1]
        key = (truth.shape, depth.shape, intrinsics.tobytes())
        if key not in layers:
            layers = {
                key: _sampling(truth.shape, depth.shape, intrinsics, info, parameters, rectified)
            }
        columns, rows = layers[key]
        moved = cv2.remap(
            truth,
            columns,
            rows,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=float("nan"),
        )
        yield DepthPair(stamp, depth, np.asarray(moved, dtype=np.float32))


def _decoded(recording: Recording, topic: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for _, msgtype, received_ns, data in recording.messages([topic]):
        try:
            message = recording.deserialize(data, msgtype)
            yield stamp_ns(message) or received_ns, decode_depth(message)
        except QvggtError:
            continue


def _reconstructed(
    result: Recording,
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float64]]]:
    """Yield stamp, depth and intrinsics of the result's depth images."""
    image, info = OWN_NAMESPACE + "depth/image", OWN_NAMESPACE + "depth/camera_info"
    images: dict[int, NDArray[np.float32]] = {}
    matrices: dict[int, NDArray[np.float64]] = {}
    for topic, msgtype, _, data in result.messages([image, info]):
        message = result.deserialize(data, msgtype)
        stamp = stamp_ns(message)
        if topic == image:
            images[stamp] = decode_depth(message)
        else:
            matrices[stamp] = np.array(message.k, dtype=np.float64).reshape(3, 3)
        if stamp in images and stamp in matrices:
            yield stamp, images.pop(stamp), matrices.pop(stamp)


def _sampling(
    source: tuple[int, ...],
    depth: tuple[int, ...],
    intrinsics: NDArray[np.float64],
    info: Any | None,
    parameters: Parameters,
    rectified: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return where each pixel of a depth image lies in an image of the camera.

    Args:
        source: shape of the camera's image, height and width first.
        depth: shape of the depth image.
        intrinsics: (3, 3) pinhole matrix of the depth image.
        info: CameraInfo of the camera's image, or None.
        parameters: those of the reconstruction.
        rectified: whether the camera's images were rectified already.

    Returns:
        Columns and rows for `cv2.remap`, of the shape of the depth image.
    """
    (true_height, true_width), (height, width) = source[:2], depth
    camera = (
        camera_from_info(info, true_width, true_height, rectified=rectified)
        if info is not None
        else None
    )
    if camera is not None and parameters.use_camera_intrinsics:
        if not parameters.rectify:
            camera = Camera(camera.width, camera.height, camera.intrinsics)
        return rectification_map(camera, intrinsics, width, height)
    # Without a calibration the image was resized to the width, and rows were cropped alike.
    scale = width / true_width
    cropped = max(0.0, (true_height * scale - height) / 2.0)
    vertical = scale if cropped > 0.5 else height / true_height
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return (
        ((columns + 0.5) / scale - 0.5).astype(np.float32),
        ((rows + cropped + 0.5) / vertical - 0.5).astype(np.float32),
    )
