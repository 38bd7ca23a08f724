"""Which keyframes may show the same place: by what the network's encoder made of their images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_PICTURE = (16, 12)


def place_descriptor(tokens: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a place is recognised by, (D,): mean and spread of the encoder's tokens.

    On synthetic flights both together find more places again than means (also generalised ones),
    maxima, or clusters of tokens do, and as many as means of the image's quarters.

    A network may keep anything of an image; where that is no array (P, C), it is a small picture.

    Args:
        tokens: what the network keeps of the image.
        image: (H, W, 3) uint8, as the network sees it.
    """
    values = _array(tokens)
    if values is not None:
        return np.concatenate([values.mean(axis=0), values.std(axis=0)])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, _PICTURE, interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return (small - small.mean()) / max(float(small.std()), 1.0)


def _array(tokens: Any) -> NDArray[np.float32] | None:
    """Return tokens (P, C) on the host as float32, None if they are something else."""
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().float().cpu().numpy()
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or not tokens.size:
        return None
    return tokens.astype(np.float32)


class PlaceIndex:
    """Descriptors in order of time, and which of them are most like another."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows = np.empty((0, 0), np.float32)
        self._count = 0

    def __len__(self) -> int:
        """Return the number of descriptors."""
        return self._count

    def append(self, descriptor: NDArray[np.float32]) -> None:
        """Add the next one, (D,); all are of one length."""
        if self._count == len(self._rows):
            grown = np.zeros((max(64, 2 * self._count), len(descriptor)), np.float32)
            if self._count:
                grown[: self._count] = self._rows
            self._rows = grown
        self._rows[self._count] = descriptor
        self._count += 1

    def row(self, number: int) -> NDArray[np.float32]:
        """Return one descriptor, (D,)."""
        return self._rows[number]

    def keep(self, index: NDArray[np.int64]) -> None:
        """Leave out all but some."""
        self._rows = self._rows[: self._count][index]
        self._count = len(index)

    def similarity(self, descriptor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosines (N,) of all with another one.

        The mean of all is taken out first: what all images of a place have in common says nothing.
        """
        rows = self._rows[: self._count]
        mean = rows.mean(axis=0) if self._count > 1 else np.zeros_like(descriptor)
        centred, wanted = rows - mean, descriptor - mean
        lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(wanted)
        return centred @ wanted / np.maximum(lengths, 1e-9)

    def nearest(
        self, descriptor: NDArray[np.float32], allowed: NDArray[np.bool_], most: int
    ) -> NDArray[np.int64]:
        """Return the indices of those that are most like another one, the best first.

        Args:
            descriptor: (D,).
            allowed: (N,) which of them may be returned.
            most: how many, at most.
        """
        candidates = np.flatnonzero(allowed)
        order = np.argsort(-self.similarity(descriptor)[candidates], kind="stable")
        return candidates[order[:most]]
