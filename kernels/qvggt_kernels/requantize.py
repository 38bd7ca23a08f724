"""INT4 groups as INT8 rows: what lets 4-bit weights be multiplied in integers."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import dequantize


def requantize(
    qweight: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a packed weight with one scale per row, symmetric, rounded half to even.

    Args:
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        zeros: (N, K/g) uint8, or None.

    Returns:
        q8 (N, K) int8 in [-127, 127] and row_scale (N,) float32; the weight is about
        q8 * row_scale.

    Raises:
        PackingError: words and scales do not fit together.
    """
    weight = dequantize(qweight, scales, torch.float32, zeros)
    row_scale = weight.abs().amax(dim=1) / 127
    row_scale = torch.where(row_scale == 0, 1, row_scale)
    return (weight / row_scale[:, None]).round_().to(torch.int8), row_scale
