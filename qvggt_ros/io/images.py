"""Pictures and depth images of messages, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from qvggt_core.errors import ImageError

MAX_PIXELS = 1 << 26
"""Largest picture that is decoded (67 megapixels), so that a header cannot ask for all memory."""


@dataclass(frozen=True)
class _Encoding:
    channels: int
    itemsize: int
    to_rgb: int | None


_ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(3, 1, None),
    "bgr8": _Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Encoding(3, 2, None),
    "bgr16": _Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": _Encoding(4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": _Encoding(4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": _Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    # OpenCV's type names carry no colour order; cv_bridge takes them as grey and BGR.
    "8uc1": _Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "8uc3": _Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "8uc4": _Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "16uc1": _Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    "16uc3": _Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "yuv422": _Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuy2": _Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
} | {
    f"bayer_{pattern.lower()}{bits}": _Encoding(
        1, bits // 8, getattr(cv2, f"COLOR_Bayer{pattern}2RGB")
    )
    for pattern in ("RGGB", "BGGR", "GBRG", "GRBG")
    for bits in (8, 16)
}

_PLANAR = {
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "nv21": cv2.COLOR_YUV2RGB_NV21,
    "yuv420": cv2.COLOR_YUV2RGB_I420,
    "i420": cv2.COLOR_YUV2RGB_I420,
    "yv12": cv2.COLOR_YUV2RGB_YV12,
}
_THREE_PLANES = ("yuv420", "i420", "yv12")
_SENSOR_BITS = (8, 10, 12, 14, 16)

_DEPTH_ENCODINGS = {"32fc1": ("f4", 1.0), "64fc1": ("f8", 1.0), "16uc1": ("u2", 1e-3)}
"""Kind of number and metres per unit (REP-118)."""


def is_picture(message: Any) -> bool:
    """Return whether an Image or CompressedImage message looks like a picture, not like depth."""
    if hasattr(message, "format"):
        return "compresseddepth" not in message.format.lower() and not _is_depth(
            message.format.split(";")[0]
        )
    return not _is_depth(message.encoding)


def _is_depth(encoding: str) -> bool:
    return encoding.strip().lower() in _DEPTH_ENCODINGS


def picture_size(message: Any) -> tuple[int, int]:
    """Return width and height of the picture of an Image or CompressedImage.

    Raises:
        ImageError: it is compressed, and has no header that can be read.
    """
    if hasattr(message, "format"):
        return _compressed_picture(message).size
    return message.width, message.height


class PictureDecoder:
    """Decodes the images of one camera: what it delivers in 16 bits is seen from its values.

    Cameras of 10, 12 and 14 bits put them into the lower bits; as 16 bits their pictures would be
    nearly black.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Start with no image; `warn` is called with what an operator should know."""
        self._warn = warn
        self._bits = 0

    def decode(self, message: Any) -> NDArray[np.uint8]:
        """Return the picture of a message, see `decode_image`.

        Raises:
            ImageError: as `decode_image`.
        """
        if hasattr(message, "format") or _itemsize(message.encoding) != 2:
            return decode_image(message)
        largest = int(_raw_rows(message).max(initial=0))
        bits = next(bits for bits in _SENSOR_BITS if largest < 1 << bits)
        if bits > self._bits:
            self._bits = bits
            if bits < 16:
                self._warn(
                    f"images of encoding {message.encoding} hold values below {1 << bits}: they "
                    f"are taken for a camera of {bits} bits"
                )
        return decode_image(message, bits=self._bits)


def decode_image(message: Any, bits: int = 16) -> NDArray[np.uint8]:
    """Return the picture of a sensor_msgs/Image or CompressedImage.

    Pictures of 16 bits a channel keep the upper 8 of the bits in use. Alpha is dropped.

    Args:
        message: the message.
        bits: in use in a 16-bit channel; 16, as cv_bridge has it, makes 0 to 65535 the full range.

    Returns:
        (H, W, 3) uint8, RGB, writable.

    Raises:
        ImageError: the picture is empty, too large, broken, or of an unknown encoding.
    """
    if hasattr(message, "format"):
        return _decode_compressed(message)
    name = message.encoding.strip().lower()
    if name in _PLANAR:
        return _decode_planar(message, name)
    encoding = _ENCODINGS.get(name)
    if name == "nv24":
        return _decode_nv24(message)
    if encoding is None:
        why = ": it is depth" if _is_depth(name) else ""
        raise ImageError(
            f"image encoding {message.encoding!r} is not a picture that can be read{why}; known: "
            f"{', '.join([*_ENCODINGS, *_PLANAR, 'nv24'])}"
        )
    rows = _raw_rows(message)
    if encoding.itemsize == 2:
        rows = (rows >> (bits - 8)).astype(np.uint8)
    shape = message.height, message.width, encoding.channels
    return _to_rgb(rows.reshape(shape), encoding, message.encoding)


def _itemsize(name: str) -> int:
    encoding = _ENCODINGS.get(name.strip().lower())
    return 0 if encoding is None else encoding.itemsize


def _raw_rows(message: Any) -> NDArray:
    """Return the numbers of a raw image, (H, W times channels), uint8 or uint16.

    Raises:
        ImageError: the picture is empty or too large, or its data is short.
    """
    width, height, step = message.width, message.height, message.step
    _check_size(width, height)
    encoding = _ENCODINGS[message.encoding.strip().lower()]
    row = width * encoding.channels * encoding.itemsize
    if step < row:
        raise ImageError(
            f"image step of {step} bytes is too small: {width} pixels of {message.encoding} "
            f"need {row}"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size < step * height:
        raise ImageError(
            f"image data is short: {data.size} bytes, but {height} rows of {step} bytes "
            f"make {step * height}"
        )
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
    if encoding.itemsize == 2:
        return rows.view(">u2" if message.is_bigendian else "<u2")
    return rows


def _decode_planar(message: Any, name: str) -> NDArray[np.uint8]:
    """Return a picture whose brightness is followed by its colours, at half the size (4:2:0)."""
    width, height = message.width, message.height
    _check_size(width, height)
    step = message.step or width
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size == width * height * 3 // 2:
        step = width  # some drivers put the bytes of a whole pixel's row there
    if width % 2 or height % 2 or step < width or data.size < step * height * 3 // 2:
        raise ImageError(
            f"image of encoding {message.encoding}, {width}x{height}, with {data.size} bytes in "
            f"rows of {step}: both sides must be even, and {step * height * 3 // 2} bytes there"
        )
    if step != width and name in _THREE_PLANES:
        raise ImageError(f"image of encoding {message.encoding} has rows of {step} bytes: padded")
    rows = data[: step * height * 3 // 2].reshape(height * 3 // 2, step)[:, :width]
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rows), _PLANAR[name]), dtype=np.uint8)


def _decode_nv24(message: Any) -> NDArray[np.uint8]:
    """Return a picture whose brightness is followed by a pair of colours for every pixel."""
    width, height = message.width, message.height
    _check_size(width, height)
    data = np.frombuffer(message.data, dtype=np.uint8)
    step = width if data.size == 3 * width * height else message.step
    if step < width or data.size < 3 * step * height:
        raise ImageError(
            f"image of encoding {message.encoding}, {width}x{height}, with {data.size} bytes in "
            f"rows of {step}: {3 * max(step, width) * height} bytes must be there"
        )
    grey = data[: step * height].reshape(height, step)[:, :width]
    pairs = data[step * height : 3 * step * height].reshape(height, 2 * step)[:, : 2 * width]
    # OpenCV has no such code: the same picture, twice as large, has a pair for each 2x2.
    doubled = np.concatenate([grey.repeat(2, axis=0).repeat(2, axis=1), pairs])
    rgb = cv2.cvtColor(doubled, cv2.COLOR_YUV2RGB_NV12)[::2, ::2]
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def _to_rgb(pixels: NDArray[np.uint8], encoding: _Encoding, name: str) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    if encoding.channels == 2 and width % 2:
        raise ImageError(f"image of encoding {name} has an odd width, {width}: pairs share colour")
    if name.lower().startswith("bayer") and min(height, width) < 2:
        raise ImageError(f"image of encoding {name} is {width}x{height}: a mosaic needs 2x2")
    if encoding.to_rgb is None:
        return pixels.copy()
    return np.asarray(cv2.cvtColor(pixels, encoding.to_rgb), dtype=np.uint8)


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(f"image is empty: {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"image of {width}x{height} pixels is larger than the limit of {MAX_PIXELS} pixels"
        )


def _decode_compressed(message: Any) -> NDArray[np.uint8]:
    if "compresseddepth" in message.format.lower():
        raise ImageError(
            f"compressed image of format {message.format!r} is depth, not a picture: "
            "name the topic of the camera's colour or grey image"
        )
    picture = _compressed_picture(message)
    _check_size(*picture.size)
    try:
        pixels = _pixels_8_bit(picture)
    except Exception as error:  # a decoder may raise anything on bytes from a broken camera
        raise ImageError(
            f"compressed image of {len(message.data)} bytes, format {message.format!r}, is "
            f"broken: {error}"
        ) from error
    if pixels.ndim == 3:
        return pixels
    # image_transport compresses a Bayer mosaic as a grey picture and keeps its name in front.
    name = message.format.split(";")[0].strip().lower()
    encoding = _ENCODINGS.get(name if name.startswith("bayer") else "mono8", _ENCODINGS["mono8"])
    return _to_rgb(pixels[..., None], encoding, name)


def _compressed_picture(message: Any) -> PilImage.Image:
    """Return a JPEG or PNG whose header is read and whose pixels are not decoded yet."""
    data = np.frombuffer(message.data, dtype=np.uint8)
    # Pillow reads the size from the header before it decodes, and unlike OpenCV it refuses a
    # JPEG that was cut off instead of filling the rest with grey.
    try:
        return PilImage.open(BytesIO(data.tobytes()), formats=("JPEG", "PNG"))
    except Exception as error:
        raise ImageError(
            f"compressed image of {data.size} bytes, format {message.format!r}, has no JPEG or "
            f"PNG header that can be read ({type(error).__name__})"
        ) from error


def _pixels_8_bit(picture: PilImage.Image) -> NDArray[np.uint8]:
    """Return (H, W) grey or (H, W, 3) RGB."""
    if picture.mode.startswith("I"):
        return (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
    if picture.mode in ("L", "1", "LA"):
        return np.array(picture.convert("L"))
    return np.array(picture.convert("RGB"))


def is_depth(message: Any) -> bool:
    """Return whether an Image message holds depth."""
    return not hasattr(message, "format") and _is_depth(message.encoding)


def decode_depth(message: Any) -> NDArray[np.float32]:
    """Return the depth of a sensor_msgs/Image in metres, (H, W), NaN where invalid (REP-118).

    Raises:
        ImageError: the encoding is not that of depth, or the data is short or too large.
    """
    name = message.encoding.strip().lower()
    known = _DEPTH_ENCODINGS.get("16uc1" if name == "mono16" else name)
    if known is None:
        raise ImageError(
            f"an image of encoding {message.encoding!r} is no depth: 32FC1 (metres) and 16UC1 "
            "(millimetres) are"
        )
    width, height, step = message.width, message.height, message.step
    kind = np.dtype((">" if message.is_bigendian else "<") + known[0])
    data = np.frombuffer(message.data, dtype=np.uint8)
    if width <= 0 or height <= 0 or width * height > MAX_PIXELS:
        raise ImageError(f"depth of {width}x{height} pixels cannot be used")
    if step < width * kind.itemsize or data.size < step * height:
        raise ImageError(
            f"depth data is short: {data.size} bytes in rows of {step} for {width}x{height} pixels "
            f"of {message.encoding}"
        )
    rows = np.ascontiguousarray(
        data[: step * height].reshape(height, step)[:, : width * kind.itemsize]
    )
    depth = rows.view(kind).astype(np.float32) * np.float32(known[1])
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth) & (depth > 0.0), depth, np.float32(np.nan))
