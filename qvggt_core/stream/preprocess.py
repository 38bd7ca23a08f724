"""From a camera's image to the network's: rectified, resized and cropped in one resampling."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError, ParameterError
from qvggt_core.geometry.camera import (
    Camera,
    rectification_map,
    rectified_intrinsics,
    resized_intrinsics,
)
from qvggt_core.stream.frame import Frame, View

# Beyond these a message is broken rather than large: 16384 is the side of a 200 megapixel sensor,
# and OpenCV's remap ends at 32767.
_MAX_SIDE = 16384
_MAX_ASPECT = 8.0
# Share of a pixel that may show what moves.
_STATIC = 0.01


@dataclass(frozen=True)
class _Layout:
    """Where the network's image lies in the camera's: `scale` per axis, then rows from `top`."""

    width: int
    height: int
    resized_height: int
    top: int
    scale: tuple[float, float]


@dataclass(frozen=True)
class _Rectification:
    """What every image of one camera needs: reduce to `size`, then sample at `columns`, `rows`."""

    key: tuple[object, ...]
    size: tuple[int, int]
    columns: NDArray[np.float32]
    rows: NDArray[np.float32]
    intrinsics: NDArray[np.float64]


class Preprocessor:
    """Makes views of frames as VGGT wants them ("crop" in its preprocessing).

    The width becomes `width`, the height follows the aspect ratio, rounded to whole patches, and
    rows beyond `max_height` are cropped above and below alike. Because of the rounding the two
    axes have their own scale.
    """

    def __init__(
        self, width: int, patch_size: int, rectify: bool = True, max_height: int | None = None
    ) -> None:
        """Prepare for a network.

        Args:
            width: width in pixels of all views; a multiple of `patch_size`.
            patch_size: side in pixels of the network's patches.
            rectify: undistort images whose camera has distortion; otherwise the distortion is
                ignored, and the views' intrinsics are those of the middle of the image.
            max_height: height in pixels from which views are cropped; `width` if not given.

        Raises:
            ParameterError: `width` or `max_height` holds no whole number of patches.
        """
        max_height = width if max_height is None else max_height
        for name, value in (("width", width), ("height", max_height)):
            if value <= 0 or value % patch_size:
                raise ParameterError(
                    f"the network's image {name} {value} is not a positive multiple of its patch "
                    f"size {patch_size}"
                )
        self._width = width
        self._patch = patch_size
        self._rectify = rectify
        self._max_height = max_height
        self._rectification: _Rectification | None = None

    def view(self, frame: Frame) -> View:
        """Return the frame as the network sees it.

        Raises:
            ImageError: the image is not (H, W, 3) uint8, is empty, too long or too large, or is
                not of the size that its calibration is for.
        """
        _check_image(frame.image)
        camera = frame.camera
        height, width = frame.image.shape[:2]
        if camera is not None and (camera.width, camera.height) != (width, height):
            raise ImageError(
                f"the image has {width}x{height} pixels, its calibration is for "
                f"{camera.width}x{camera.height}: send the calibration of the resized image"
            )
        layout = self._layout(width, height)
        intrinsics: NDArray[np.float64] | None
        if camera is not None and camera.is_distorted and self._rectify:
            rectification = self._rectification_of(camera, layout)
            image = _rectified(frame.image, rectification)
            mask = _rectified_mask(frame.mask, rectification)
            intrinsics = rectification.intrinsics.copy()
        else:
            image = _resized(frame.image, layout)
            mask = _resized_mask(frame.mask, layout)
            intrinsics = None if camera is None else _view_intrinsics(camera.intrinsics, layout)
        return View(frame.stamp_ns, image, intrinsics, frame.frame_id, frame.source, mask)

    def view_pixels(
        self, frame: Frame, view: View, pixels: NDArray[np.float64], rays: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return where in a frame's view its pixels lie, (N, 2).

        Args:
            frame: the frame.
            view: what `view` made of it.
            pixels: (N, 2) in the frame's image.
            rays: (N, 2) x / z and y / z of the same, without distortion.
        """
        if frame.camera is not None and frame.camera.is_distorted and self._rectify:
            assert view.intrinsics is not None
            return rays * np.diag(view.intrinsics)[:2] + view.intrinsics[:2, 2]
        layout = self._layout(frame.image.shape[1], frame.image.shape[0])
        return (pixels + 0.5) * np.array(layout.scale) - 0.5 - np.array([0.0, layout.top])

    def camera(self, frame: Frame, intrinsics: NDArray[np.float64]) -> Camera:
        """Return the pinhole camera of a frame whose view has these intrinsics (3, 3)."""
        height, width = frame.image.shape[:2]
        layout = self._layout(width, height)
        matrix = np.eye(3)
        for axis, offset in ((0, 0.0), (1, float(layout.top))):
            matrix[axis, axis] = intrinsics[axis, axis] / layout.scale[axis]
            matrix[axis, 2] = (intrinsics[axis, 2] + offset + 0.5) / layout.scale[axis] - 0.5
        return Camera(width, height, matrix)

    def _layout(self, width: int, height: int) -> _Layout:
        patches = max(1, round(height * self._width / width / self._patch))
        resized_height = patches * self._patch
        view_height = min(resized_height, self._max_height)
        return _Layout(
            width=self._width,
            height=view_height,
            resized_height=resized_height,
            top=(resized_height - view_height) // 2,
            scale=(self._width / width, resized_height / height),
        )

    def _rectification_of(self, camera: Camera, layout: _Layout) -> _Rectification:
        # A stream has one camera, so one set of maps is enough and memory stays bounded.
        if self._rectification is None or self._rectification.key != camera.key:
            self._rectification = _plan_rectification(camera, layout)
        return self._rectification


def _check_image(image: NDArray) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"an image of shape {np.shape(image)} is not (height, width, 3) RGB")
    if image.dtype != np.uint8:
        raise ImageError(f"an image of {image.dtype} is not uint8: scale it to 0...255 before")
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise ImageError(f"the image is empty: {width}x{height} pixels")
    if max(height, width) > _MAX_SIDE:
        raise ImageError(f"an image of {width}x{height} is beyond {_MAX_SIDE} pixels a side")
    if max(height / width, width / height) > _MAX_ASPECT:
        raise ImageError(
            f"an image of {width}x{height} is more than {_MAX_ASPECT:g} times as long as it is wide"
        )


def _view_intrinsics(intrinsics: NDArray, layout: _Layout) -> NDArray[np.float64]:
    return resized_intrinsics(intrinsics, layout.scale, (0.0, float(layout.top)))


def _resized(image: NDArray[np.uint8], layout: _Layout) -> NDArray[np.uint8]:
    # Averaging over each pixel's area is what keeps fine texture from aliasing; enlarging has
    # nothing to average and wants a smooth kernel.
    shrinks = min(layout.scale) < 1.0
    resized = cv2.resize(
        np.ascontiguousarray(image),
        (layout.width, layout.resized_height),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
    )
    return np.ascontiguousarray(resized[layout.top : layout.top + layout.height])


def _plan_rectification(camera: Camera, layout: _Layout) -> _Rectification:
    pinhole = rectified_intrinsics(camera)
    intrinsics = _view_intrinsics(pinhole, layout)
    columns, rows = rectification_map(camera, intrinsics, layout.width, layout.height)
    # Bilinear sampling sees 2x2 pixels, so it aliases when the image shrinks by more than two.
    # The distorted image is first reduced by a whole factor, averaging areas, to below that.
    zoom = pinhole[0, 0] / camera.intrinsics[0, 0]
    factor = max(1, int(1.0 / (max(layout.scale) * zoom)))
    size = (max(1, round(camera.width / factor)), max(1, round(camera.height / factor)))
    return _Rectification(
        key=camera.key,
        size=size,
        columns=(columns + np.float32(0.5)) * np.float32(size[0] / camera.width) - np.float32(0.5),
        rows=(rows + np.float32(0.5)) * np.float32(size[1] / camera.height) - np.float32(0.5),
        intrinsics=intrinsics,
    )


def _rectified(image: NDArray[np.uint8], plan: _Rectification) -> NDArray[np.uint8]:
    # Reducing to the same size copies.
    reduced = cv2.resize(np.ascontiguousarray(image), plan.size, interpolation=cv2.INTER_AREA)
    view = cv2.remap(
        reduced, plan.columns, plan.rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(view, dtype=np.uint8)


def _resized_mask(mask: NDArray[np.uint8] | None, layout: _Layout) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    # What moves in any part of a pixel makes all of it moving.
    moving = np.where(mask == 0, np.float32(1), np.float32(0))
    size = (layout.width, layout.resized_height)
    resized = cv2.resize(moving, size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized[layout.top : layout.top + layout.height] <= _STATIC, np.bool_)


def _rectified_mask(
    mask: NDArray[np.uint8] | None, plan: _Rectification
) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    moving = np.where(mask == 0, np.float32(1), np.float32(0))
    reduced = cv2.resize(moving, plan.size, interpolation=cv2.INTER_AREA)
    # Outside of the image nothing is known.
    view = cv2.remap(reduced, plan.columns, plan.rows, cv2.INTER_LINEAR, borderValue=1.0)
    return np.asarray(view <= _STATIC, np.bool_)
