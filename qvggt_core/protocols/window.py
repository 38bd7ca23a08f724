"""One window of a data set's frames through a network, as the papers' protocols need it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets import PosedFrame
from qvggt_core.errors import EvaluationError
from qvggt_core.geometry.camera import Camera
from qvggt_core.stream import Frame, Network, Preprocessor, View, WindowPrediction
from qvggt_core.stream.poses_from_matches import PosesFromMatches

_WHITE = 255


@dataclass(frozen=True)
class PredictedWindow:
    """Prediction of frames as one window.

    Attributes:
        prediction: in the network's own gauge.
        views: the frames as the network saw them.
        seconds: wall time of encoding and prediction, without reading files.
    """

    prediction: WindowPrediction
    views: tuple[View, ...]
    seconds: float


def predict_window(
    network: Network, frames: Sequence[PosedFrame], poses_from: str = "camera_head"
) -> PredictedWindow:
    """Run a network on frames at once, in the order that they are given in.

    Images are resized to the network's width and cropped to at most a square, as VGGT does; where
    heights differ, the lower ones get white rows above and below. Known intrinsics are not used.

    Args:
        network: gives poses and depth.
        frames: of one scene.
        poses_from: as the parameter, "matches" or "camera_head".

    Raises:
        DatasetError: an image is missing or broken.
        EvaluationError: a predicted camera or depth is not finite.
    """
    preprocessor = Preprocessor(network.image_width, network.patch_size)
    views = [preprocessor.view(_stream_frame(frame)) for frame in frames]
    height = max(view.image.shape[0] for view in views)
    views = [_padded(view, height) for view in views]
    start = time.perf_counter()
    tokens = [network.encode(view.image) for view in views]
    prediction = network.predict(tokens, height, network.image_width)
    if poses_from == "matches":
        matches = PosesFromMatches(network, use_camera_intrinsics=False)
        prediction = matches.solved(prediction, views)
    seconds = time.perf_counter() - start
    for name, values in (
        ("cameras", prediction.camera_from_world),
        ("intrinsics", prediction.intrinsics),
        ("depth images", prediction.depth),
    ):
        finite = np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if not finite.all():
            raise EvaluationError(
                f"{np.count_nonzero(~finite)} of {len(finite)} predicted {name} are not finite; "
                "does compute_dtype float32 help?"
            )
    return PredictedWindow(prediction, tuple(views), seconds)


def sampled_depth(depth: NDArray, camera: Camera, view: View) -> NDArray[np.float32]:
    """Return a depth image at a view's pixels, each from the nearest pixel of the original.

    Args:
        depth: (H, W) in the camera's own pixels, NaN where invalid.
        camera: a camera without distortion.
        view: made of the camera's image; its intrinsics are known.

    Returns:
        (H', W') float32 of the view's size; NaN where the view shows nothing of the original.
    """
    assert view.intrinsics is not None
    height, width = view.image.shape[:2]
    indices = []
    for axis, count, limit in ((0, width, camera.width), (1, height, camera.height)):
        ray = (np.arange(count) - view.intrinsics[axis, 2]) / view.intrinsics[axis, axis]
        pixel = ray * camera.intrinsics[axis, axis] + camera.intrinsics[axis, 2]
        index = np.rint(pixel).astype(np.int64)
        indices.append(np.where((index >= 0) & (index < limit), index, -1))
    columns, rows = indices
    sampled = np.asarray(depth, dtype=np.float32)[rows[:, None], columns[None, :]]
    outside = (rows < 0)[:, None] | (columns < 0)[None, :]
    return np.where(outside, np.float32(np.nan), sampled).astype(np.float32)


def _stream_frame(frame: PosedFrame) -> Frame:
    return Frame(frame.stamp_ns, frame.image(), frame.camera)


def _padded(view: View, height: int) -> View:
    missing = height - view.image.shape[0]
    if missing == 0:
        return view
    above = missing // 2
    image = np.pad(view.image, ((above, missing - above), (0, 0), (0, 0)), constant_values=_WHITE)
    intrinsics = view.intrinsics
    if intrinsics is not None:
        intrinsics = intrinsics.copy()
        intrinsics[1, 2] += above
    return replace(view, image=image, intrinsics=intrinsics)
