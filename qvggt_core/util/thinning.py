"""Few of many, spread evenly: over a known number, or over a stream that may end at any time."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def spread_indices(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices below `count`, evenly spread, both ends among them."""
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


class ThinnedStream(Generic[T]):
    """Every n-th item of a stream of unknown length; n doubles whenever there are too many.

    Attributes:
        kept: the items, in order, at most as many as was allowed.
    """

    def __init__(self, most: int) -> None:
        """Start with nothing."""
        self.kept: list[T] = []
        self._most = most
        self._stride = 1
        self._seen = 0

    def add(self, item: T) -> None:
        """Take the next item."""
        if self._seen % self._stride == 0:
            self.kept.append(item)
        self._seen += 1
        if len(self.kept) > self._most:
            del self.kept[1::2]
            self._stride *= 2
