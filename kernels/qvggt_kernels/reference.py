"""INT4 weights and linears in plain PyTorch: the yardstick, and the path of any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .packing import ZERO, group_size_of, unpack


def dequantize(
    packed: Tensor, scales: Tensor, dtype: torch.dtype, zeros: Tensor | None = None
) -> Tensor:
    """Return the weight that packed words stand for.

    The product of number and scale is exact in float32 (4 by 8 bits) and rounded once, to
    `dtype`; every fast path gives the same bits.

    Args:
        packed: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        dtype: floating dtype of the result.
        zeros: (N, K/g) uint8 in [0, 15], the stored number that stands for zero; None is 8.

    Returns:
        (N, K) of `dtype`, newly allocated.

    Raises:
        PackingError: words and scales are not of the layout or do not fit together.
    """
    q = unpack(packed, group_size_of(packed, scales))
    grouped = q.view(*scales.shape, -1).float()
    if zeros is not None:
        grouped.sub_(zeros.unsqueeze(2).float() - ZERO)
    return grouped.mul_(scales.float().unsqueeze(2)).flatten(1).to(dtype)


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None = None,
) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K); differentiable in x and bias."""
    return F.linear(x, dequantize(qweight, scales, x.dtype, zeros), bias)
