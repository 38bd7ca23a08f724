"""The calibration set: windows of images, with ground truth where there is any, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.training.windows import WindowTruth

MIN_IMAGES = 2
_DARK = 8
"""Images whose brightest pixel, or whose contrast, is below this (of 255) show nothing."""


@dataclass(frozen=True)
class CalibrationSet:
    """Windows that a network is calibrated on.

    Attributes:
        images: (B, S, 3, H, W) uint8.
        truth: ground truth, or None.
        source: where the images come from, for people.
        selection: how they were chosen among what the source has.
    """

    images: Tensor
    truth: WindowTruth | None = None
    source: str = "memory"
    selection: str = "all"

    def __post_init__(self) -> None:
        if self.images.dim() != 5 or self.images.dtype != torch.uint8 or not len(self.images):
            raise QuantizationError(
                f"calibration images are {tuple(self.images.shape)} {self.images.dtype}, not "
                "(windows, frames, 3, height, width) uint8"
            )
        if self.image_count < MIN_IMAGES:
            raise QuantizationError(
                f"{self.source} gives one image: a multi-view network is calibrated on windows "
                f"of at least {MIN_IMAGES}; give more images"
            )
        if int(self.images.max()) < _DARK:
            raise QuantizationError(
                f"all {self.image_count} images of {self.source} are black (brightest value "
                f"{int(self.images.max())} of 255): the statistics of nothing calibrate nothing"
            )
        spread = self.images.amax(dim=(-2, -1)) - self.images.amin(dim=(-2, -1))
        if int(spread.max()) < _DARK:
            raise QuantizationError(
                f"each of the {self.image_count} images of {self.source} is of one colour (values "
                f"differ by {int(spread.max())} of 255 at most): they show nothing to calibrate on"
            )

    @property
    def image_count(self) -> int:
        """Number of images, B * S."""
        return self.images.shape[0] * self.images.shape[1]

    def part(self, windows: Sequence[int], selection: str | None = None) -> CalibrationSet:
        """Return some of the windows."""
        chosen = torch.as_tensor(list(windows))
        truth = self.truth and WindowTruth(
            self.truth.depth[chosen],
            self.truth.world_from_camera[chosen],
            self.truth.intrinsics[chosen],
        )
        return replace(
            self,
            images=self.images[chosen],
            truth=truth,
            selection=selection or self.selection,
        )

    def sha256(self) -> str:
        """Return the hash of images and ground truth, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        parts = [self.images]
        if self.truth is not None:
            parts += [self.truth.depth, self.truth.world_from_camera, self.truth.intrinsics]
        for part in parts:
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what was calibrated on, as plain data."""
        windows, frames, _, height, width = self.images.shape
        return {
            "source": self.source,
            "selection": self.selection,
            "images": self.image_count,
            "windows": windows,
            "frames_per_window": frames,
            "size": f"{width}x{height}",
            "ground_truth": self.truth is not None,
            "sha256": self.sha256(),
        }

    def to_metadata(self) -> str:
        """Return the description as a checkpoint's metadata carries it."""
        return json.dumps(self.describe(), sort_keys=True)


def windows_of_frames(
    frames: Sequence[NDArray[np.uint8]], size: int, source: str
) -> CalibrationSet:
    """Cut frames, in their order, into windows.

    Args:
        frames: RGB images (H, W, 3) of one size, as the network sees them.
        size: frames in a window; a last, shorter window is left out unless it is the only one.
        source: where they come from, for errors and reports.

    Raises:
        QuantizationError: no image, one image, images of several sizes, or nothing but black.
    """
    if size < 1:
        raise QuantizationError(f"windows of {size} frames: give at least 1")
    if not frames:
        raise QuantizationError(f"{source} gives no images to calibrate on")
    sizes = sorted({(frame.shape[1], frame.shape[0]) for frame in frames})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
        raise QuantizationError(
            f"{source} has images of {len(sizes)} shapes as the network sees them ({shown}): a "
            "window has one size; calibrate on images of one camera"
        )
    size = min(size, len(frames))
    count = len(frames) // size
    stacked = np.stack(frames[: count * size]).reshape(count, size, *frames[0].shape)
    return CalibrationSet(torch.from_numpy(stacked).movedim(-1, 2).contiguous(), source=source)
