"""The calibration of a camera, and the pinhole camera that its rectified images have."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError

# Coefficients per model, in the order of OpenCV and of sensor_msgs/CameraInfo.
_COEFFICIENTS = {
    "": (0,),
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (0, 8, 12, 14),
    "equidistant": (0, 4),
}
_MAX_ZOOM = 4.0
_ZOOM_STEPS = 24
_RAY_SAMPLES = 64
_BORDER_SAMPLES = 33


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera, as in `sensor_msgs/CameraInfo` but without its ROS type.

    A camera that was never calibrated (a matrix of zeros) has no `Camera`: pass None instead.

    Attributes:
        width: width in pixels of the images that the calibration is for.
        height: height in pixels of the same images.
        intrinsics: (3, 3) float64 pinhole matrix in pixels, without skew; pixel centres lie at
            integer coordinates, as in OpenCV and ROS.
        distortion_model: "" (none), "plumb_bob", "rational_polynomial" or "equidistant".
        distortion: coefficients in the order of the model; empty when there is no distortion.

    Raises:
        ImageError: a number is not finite, a focal length is not positive, or the model is
            unknown or has another number of coefficients.
    """

    width: int
    height: int
    intrinsics: NDArray[np.float64]
    distortion_model: str = ""
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        intrinsics = np.array(self.intrinsics, dtype=np.float64)
        intrinsics.setflags(write=False)
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "distortion", tuple(float(value) for value in self.distortion))
        _check_intrinsics(self)
        _check_distortion(self)

    @property
    def is_distorted(self) -> bool:
        """Whether straight lines come out bent; an equidistant lens bends even with zeros."""
        return any(self.distortion) or (
            self.distortion_model == "equidistant" and len(self.distortion) > 0
        )

    @property
    def key(self) -> tuple[object, ...]:
        """All values in a form that can be compared and hashed."""
        return (
            self.width,
            self.height,
            self.intrinsics.tobytes(),
            self.distortion_model,
            self.distortion,
        )

    def project(self, points: NDArray) -> NDArray[np.float64]:
        """Return the pixels (N, 2) of points (N, 3) in the optical frame, distortion included."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 1, 3)
        if len(points) == 0:
            return np.empty((0, 2))
        zero = np.zeros(3)
        coefficients = np.array(self.distortion)
        if self.distortion_model == "equidistant" and self.distortion:
            pixels, _ = cv2.fisheye.projectPoints(points, zero, zero, self.intrinsics, coefficients)
        else:
            pixels, _ = cv2.projectPoints(points, zero, zero, self.intrinsics, coefficients)
        return np.asarray(pixels, dtype=np.float64).reshape(-1, 2)

    def rays(self, pixels: NDArray) -> NDArray[np.float64]:
        """Return x / z and y / z (N, 2) of what is seen at pixels (N, 2), distortion removed."""
        pixels = np.asarray(pixels, dtype=np.float64).reshape(-1, 1, 2)
        if len(pixels) == 0:
            return np.empty((0, 2))
        if not self.is_distorted:
            centre, focal = self.intrinsics[:2, 2], np.diag(self.intrinsics)[:2]
            return (pixels[:, 0] - centre) / focal
        coefficients = np.array(self.distortion)
        if self.distortion_model == "equidistant":
            rays = cv2.fisheye.undistortPoints(pixels, self.intrinsics, coefficients)
        else:
            rays = cv2.undistortPoints(pixels, self.intrinsics, coefficients)
        return np.asarray(rays, dtype=np.float64).reshape(-1, 2)


def resized_intrinsics(
    intrinsics: NDArray, scale: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Return the pinhole matrix of an image that was resized, then cropped.

    Resizing keeps the outer edges of the image, and a pixel's centre has integer coordinates, so
    that a point at u comes to (u + 0.5) * scale - 0.5. The half pixels are left out in VGGT's
    own preprocessing, where they cost up to half a pixel of principal point.

    Args:
        intrinsics: (3, 3) pinhole matrix of the original image, in pixels.
        scale: new size by old size along x and along y.
        offset: columns and rows of the resized image that were cropped at its left and top.
    """
    result = np.array(intrinsics, dtype=np.float64)
    for axis in (0, 1):
        result[axis, axis] *= scale[axis]
        result[axis, 2] = (result[axis, 2] + 0.5) * scale[axis] - 0.5 - offset[axis]
    return result


def rectified_intrinsics(camera: Camera) -> NDArray[np.float64]:
    """Return the pinhole matrix (3, 3) that the rectified images of a camera get, at full size.

    It is the camera's own matrix, so the middle of the image keeps its resolution, unless that
    would leave pixels that the lens never saw (a pincushion lens). Then both focal lengths grow
    by the smallest common factor that leaves none: a network takes a black border for a thing.

    Raises:
        ImageError: no rectangle around the principal point is seen, the calibration is wrong.
    """
    if _is_seen(camera, 1.0):
        return camera.intrinsics.copy()
    blind, seen = 1.0, _MAX_ZOOM
    if not _is_seen(camera, seen):
        raise ImageError(
            f"the calibration of the {camera.width}x{camera.height} camera cannot be rectified: "
            f"{camera.distortion_model} distortion {camera.distortion} with focal lengths "
            f"{camera.intrinsics[0, 0]:g}, {camera.intrinsics[1, 1]:g} folds even the middle of "
            "the image; calibrate again, or set rectify to false"
        )
    for _ in range(_ZOOM_STEPS):
        zoom = 0.5 * (blind + seen)
        blind, seen = (blind, zoom) if _is_seen(camera, zoom) else (zoom, seen)
    return _zoomed(camera.intrinsics, seen)


def rectification_map(
    camera: Camera,
    intrinsics: NDArray,
    width: int,
    height: int,
    turn: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the columns and rows of the distorted image from which a pinhole image is sampled.

    Args:
        camera: the camera that took the distorted image.
        intrinsics: (3, 3) pinhole matrix of the image to make, in its own pixels.
        width: width of the image to make.
        height: height of the image to make.
        turn: (3, 3) rotation from the camera's axes to those of the image to make; none if not
            given.

    Returns:
        Two (height, width) float32 arrays in pixels of the distorted image, for `cv2.remap`.
    """
    model = cv2.fisheye if camera.distortion_model == "equidistant" else cv2
    columns, rows = model.initUndistortRectifyMap(
        camera.intrinsics,
        np.array(camera.distortion),
        np.eye(3) if turn is None else turn,
        np.asarray(intrinsics, dtype=np.float64),
        (width, height),
        cv2.CV_32FC1,
    )
    return columns, rows


def _zoomed(intrinsics: NDArray, zoom: float) -> NDArray[np.float64]:
    result = np.array(intrinsics, dtype=np.float64)
    result[0, 0] *= zoom
    result[1, 1] *= zoom
    return result


def _is_seen(camera: Camera, zoom: float) -> bool:
    """Return whether the lens saw all of the rectified image, and saw each part of it once."""
    pinhole = _zoomed(camera.intrinsics, zoom)
    x = (np.linspace(0, camera.width - 1, _BORDER_SAMPLES) - pinhole[0, 2]) / pinhole[0, 0]
    y = (np.linspace(0, camera.height - 1, _BORDER_SAMPLES) - pinhole[1, 2]) / pinhole[1, 1]
    border = np.concatenate(
        [np.stack(np.broadcast_arrays(x, edge), axis=-1) for edge in (y[0], y[-1])]
        + [np.stack(np.broadcast_arrays(edge, y), axis=-1) for edge in (x[0], x[-1])]
    )
    # Polynomials of a lens turn back beyond the angles that were calibrated: on a ray from the
    # principal point outwards, the distorted radius must grow all the way to the border.
    rays = border[:, None, :] * np.linspace(1 / _RAY_SAMPLES, 1, _RAY_SAMPLES)[None, :, None]
    points = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
    pixels = camera.project(points.reshape(-1, 3)).reshape(rays.shape)
    focal = np.diag(camera.intrinsics)[:2]
    radius = np.linalg.norm((pixels - camera.intrinsics[:2, 2]) / focal, axis=-1)
    inside = (pixels >= -0.5) & (pixels <= np.array([camera.width, camera.height]) - 0.5)
    return bool(inside.all() and (np.diff(radius, axis=1) > 0).all())


def _check_intrinsics(camera: Camera) -> None:
    matrix = camera.intrinsics
    if camera.width <= 0 or camera.height <= 0:
        raise ImageError(
            f"a calibration for images of {camera.width}x{camera.height} pixels says nothing: "
            "give the size of the images"
        )
    if matrix.shape != (3, 3):
        raise ImageError(f"the camera matrix has shape {matrix.shape}, not (3, 3)")
    if not np.isfinite(matrix).all():
        raise ImageError(f"the camera matrix {matrix.tolist()} is not finite: calibrate again")
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ImageError(
            f"the focal lengths {matrix[0, 0]:g}, {matrix[1, 1]:g} are not positive: calibrate "
            "again, or send a matrix of zeros for a camera without calibration"
        )
    pinhole = [[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]]
    if not np.allclose(matrix, pinhole, rtol=0, atol=1e-6 * matrix[0, 0]):
        raise ImageError(
            f"the camera matrix {matrix.tolist()} is not [fx 0 cx; 0 fy cy; 0 0 1]: skew is not "
            "supported"
        )


def _check_distortion(camera: Camera) -> None:
    counts = _COEFFICIENTS.get(camera.distortion_model)
    if counts is None:
        known = ", ".join(repr(model) for model in _COEFFICIENTS)
        raise ImageError(
            f"distortion model {camera.distortion_model!r} is not supported (known: {known}): "
            "rectify the images before, and send them without distortion"
        )
    if len(camera.distortion) not in counts:
        raise ImageError(
            f"distortion model {camera.distortion_model!r} came with {len(camera.distortion)} "
            f"coefficients, not with {' or '.join(map(str, counts))}"
        )
    if not np.isfinite(camera.distortion).all():
        raise ImageError(f"the distortion {camera.distortion} is not finite: calibrate again")
