"""OpenCV's working memory, taken early: where it finds none, it ends the process."""

from __future__ import annotations

import mmap
from functools import cache

import cv2
import numpy as np

# Of its linear algebra, of which products of matrices from about a hundred rows make use.
_WORKING_MB = 128
_ROWS = 256


@cache
def take_working_memory() -> None:
    """Let OpenCV take the working memory of its linear algebra, once for the process.

    Raises:
        MemoryError: there is not enough of it.
    """
    needed = _WORKING_MB * 5 // 4
    try:
        mmap.mmap(-1, needed << 20).close()
    except OSError as error:
        raise MemoryError(f"{needed} MB of address space for OpenCV: {error}") from error
    square = np.eye(_ROWS)
    cv2.gemm(square, square, 1.0, square, 0.0)
