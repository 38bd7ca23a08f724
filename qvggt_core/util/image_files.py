"""Images and videos as files: read as the eye sees them, in the order in which they were taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from qvggt_core.errors import ImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

_FULL_FRAME_DIAGONAL = 43.27
"""Millimetres; 35 mm equivalent focal lengths are relative to it (CIPA DCG-001)."""
_MAX_PIXELS = 1 << 28
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B")


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names as people number them: img2 before img10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts)


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder, in natural order of their names; hidden files are left out."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted((p for p in found if not p.name.startswith(".")), key=natural_key)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image file as (H, W, 3) uint8 RGB.

    Its EXIF orientation is applied, transparent pixels lie on white, and 16-bit grey is stretched
    from its darkest to its brightest pixel, as thermal cameras need it.

    Raises:
        ImageError: it cannot be read, or is too large.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise ImageError(f"{path} has {opened.width}x{opened.height} pixels: too many")
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in _SIXTEEN_BITS:
                return _stretched(np.asarray(picture))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error


def _stretched(values: NDArray) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    grey = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1.0))
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height after the EXIF orientation, from the header; None if unreadable."""
    try:
        with Image.open(path) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = opened.size
            return (height, width) if turned else (width, height)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return None


def exif_focal_length(path: Path) -> float | None:
    """Return the focal length in pixels by an image's EXIF, None where it has none.

    It is the 35 mm equivalent over the diagonal, so it holds for images that were resized but not
    for ones that were cropped.
    """
    try:
        with Image.open(path) as opened:
            tags = opened.getexif().get_ifd(ExifTags.IFD.Exif)
            equivalent = float(tags.get(ExifTags.Base.FocalLengthIn35mmFilm, 0) or 0)
            diagonal = float(np.hypot(*opened.size))
    except (OSError, UnidentifiedImageError, ValueError, TypeError, Image.DecompressionBombError):
        return None
    return equivalent * diagonal / _FULL_FRAME_DIAGONAL if equivalent > 0 else None


class Video:
    """A video file.

    Attributes:
        rate: frames per second, None where the file does not have it.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ImageError: it cannot be read as a video.
        """
        self._path = path
        capture = self._capture()
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self._counted = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        self.rate = rate if 0.1 <= rate <= 1000.0 else None

    def __len__(self) -> int:
        """Return the number of frames; a stream that was cut off is counted by reading it."""
        if self._counted <= 0:
            capture, count = self._capture(), 0
            while capture.grab():
                count += 1
            capture.release()
            self._counted = count
        return self._counted

    def frames(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yield each frame's time in seconds and its image (H, W, 3) uint8 RGB."""
        capture = self._capture()
        try:
            index, last = 0, -1.0
            while True:
                there, image = capture.read()
                if not there:
                    return
                seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
                if seconds <= last:
                    # Containers without times report zero, or the time of the frame before.
                    seconds = max(index / (self.rate or 30.0), np.nextafter(last, np.inf) + 1e-3)
                yield seconds, np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)
                index, last = index + 1, seconds
        finally:
            capture.release()

    def _capture(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            capture.release()
            raise ImageError(f"{self._path} cannot be read as a video")
        return capture
