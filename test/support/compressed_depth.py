"""A decoder of image_transport's `compressedDepth`, written from its format alone."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
from PIL import Image as PngImage


def decode(data: bytes) -> np.ndarray:
    """The depth (H, W) of a message's data, computed in float32 as the plugin does.

    Little endian: int32 format (0: inverse depth), float32 a, float32 b, then a PNG of one channel
    of 16 bits. A pixel c that is not 0 means a / (c - b); 0 means NaN.
    """
    kind, a, b = struct.unpack("<iff", data[:12])
    assert kind == 0
    png = PngImage.open(BytesIO(data[12:]))
    assert png.format == "PNG"
    assert png.mode == "I;16"
    codes = np.asarray(png).astype(np.float32)
    with np.errstate(divide="ignore"):
        depth = np.float32(a) / (codes - np.float32(b))
    return np.where(codes == 0, np.float32(np.nan), depth)
