"""Corners of an image that are found again from elsewhere, by their descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_CONTRAST = 0.02
_RATIO = 0.8
# OpenCV doubles the image about the corners of its pixels, and halves places about their middles.
_OFF = np.float32(0.25)


@dataclass(frozen=True)
class Features:
    """Corners, and what they look like.

    Attributes:
        pixels: (N, 2) float32, centres at integers.
        descriptors: (N, 128) uint8, square roots of SIFT's histograms, whose length is about 512.
    """

    pixels: NDArray[np.float32]
    descriptors: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return their number."""
        return len(self.pixels)


def features_of(grey: NDArray[np.uint8], most: int) -> Features:
    """Return the strongest features of an image (H, W).

    Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004, with the square
    roots of Arandjelovic and Zisserman, CVPR 2012.
    """
    keypoints, found = cv2.SIFT.create(most, contrastThreshold=_CONTRAST).detectAndCompute(
        grey, None
    )
    if found is None or len(keypoints) == 0:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    pixels = np.array([keypoint.pt for keypoint in keypoints], np.float32) - _OFF
    roots = np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-6))
    return Features(pixels, np.rint(512.0 * roots).clip(0, 255).astype(np.uint8))


def matched(one: Features, other: Features) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices (M,) in both of features that are each other's nearest, by far."""
    if len(one) < 2 or len(other) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, second = (_normalised(each.descriptors) for each in (one, other))
    similarity = first @ second.T
    best = similarity.argmax(axis=1)
    ranked = np.partition(similarity, -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2.0 - 2.0 * ranked, 0.0))
    chosen = distance[:, 1] < _RATIO * distance[:, 0]
    chosen &= similarity.argmax(axis=0)[best] == np.arange(len(best))
    return np.flatnonzero(chosen), best[chosen]


def _normalised(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
