"""CameraInfo messages as calibrations of the images that they came with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError
from qvggt_core.geometry.camera import Camera, resized_intrinsics

_SAME_ASPECT = 0.01
_MOST_COEFFICIENTS = {"plumb_bob": 5, "equidistant": 4}
# From a fisheye lens that sees behind itself to a telescope.
_FOCAL_BY_WIDTH = (0.05, 100.0)


def camera_from_info(
    info: Any, width: int, height: int, *, rectified: bool = False, plausible: bool = True
) -> Camera | None:
    """Return the calibration of an image of a given size, or None if it is uncalibrated.

    CameraInfo describes the full sensor (REP-104): the region of interest shifts the principal
    point, binning divides the matrix. If the image then has another size but the same aspect
    ratio, it was resized on the way, and the matrix is scaled with it. Coefficients that are all
    zero are no distortion, except for an equidistant lens.

    Args:
        info: sensor_msgs/CameraInfo.
        width: width in pixels of the image as delivered.
        height: height in pixels of the image as delivered.
        rectified: whether the image was rectified already (`image_rect`); then the left 3x3 of
            `P` holds, or `K` if it is empty, and there is no distortion.
        plausible: whether what no lens can have is refused.

    Raises:
        ImageError: a number is not finite or not possible, the sizes disagree, or `Camera` refuses
            the values.
    """
    distortion = np.array([] if rectified else info.d, dtype=np.float64)
    projection = np.array(info.p, dtype=np.float64).reshape(3, 4)
    # Drivers of rectified images often leave P empty.
    by_projection = rectified and projection.any()
    matrix = (
        projection[:, :3].copy()
        if by_projection
        else np.array(info.k, dtype=np.float64).reshape(3, 3)
    )
    for name, values in (("P" if by_projection else "K", matrix), ("D", distortion)):
        if not np.isfinite(values).all():
            raise ImageError(f"CameraInfo has a {name} that is not finite: {values.tolist()}")
    if matrix[0, 0] == 0.0:
        return None
    full_width = info.roi.width or info.width
    full_height = info.roi.height or info.height
    matrix[0, 2] -= info.roi.x_offset
    matrix[1, 2] -= info.roi.y_offset
    # Same arithmetic as image_geometry: binning scales the principal point about zero.
    binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)], dtype=np.float64)
    matrix[:2] /= binning[:, None]
    delivered = np.array([full_width, full_height]) // binning.astype(int)
    if not delivered.all():
        raise ImageError(
            f"CameraInfo is for {info.width}x{info.height} pixels with binning "
            f"{info.binning_x}x{info.binning_y}: there is no such image"
        )
    scale = np.array([width, height]) / delivered
    if abs(scale[0] / scale[1] - 1.0) > _SAME_ASPECT:
        raise ImageError(
            f"CameraInfo is for {delivered[0]}x{delivered[1]} pixels, the image has "
            f"{width}x{height}: another aspect ratio, so the calibration does not hold"
        )
    matrix = resized_intrinsics(matrix, (float(scale[0]), float(scale[1])))
    if plausible:
        _check_plausible(matrix, width, height)
    if rectified or not (distortion.any() or info.distortion_model == "equidistant"):
        return Camera(width, height, matrix)
    # Zeros at the end add nothing: some drivers fill up plumb_bob to eight coefficients.
    most = _MOST_COEFFICIENTS.get(info.distortion_model, len(distortion))
    while len(distortion) > most and distortion[-1] == 0.0:
        distortion = distortion[:-1]
    return Camera(width, height, matrix, info.distortion_model, tuple(distortion.tolist()))


def _check_plausible(matrix: NDArray[np.float64], width: int, height: int) -> None:
    """Raise ImageError where no lens can have such a matrix."""
    focal, centre = np.diag(matrix)[:2], matrix[:2, 2]
    size = np.array([width, height])
    least, most = _FOCAL_BY_WIDTH
    # What is not positive at all is refused by `Camera`.
    if ((focal > 0.0) & ((focal < least * width) | (focal > most * width))).any():
        raise ImageError(
            f"CameraInfo has focal lengths of {focal[0]:g} and {focal[1]:g} pixels for an image "
            f"{width} pixels wide: {least:g} to {most:g} times the width are possible"
        )
    if ((centre < 0) | (centre > size)).any():
        raise ImageError(
            f"CameraInfo has its principal point at {centre[0]:g}, {centre[1]:g}, outside of the "
            f"{width}x{height} image"
        )
