"""4-bit linears multiplied in 8-bit floats: 4 bits of exponent, 3 of mantissa (OCP E4M3).

Tokens and weight rows get one scale each, which makes the largest magnitude 448, and are rounded
to nearest. Every number is off by up to 6 %, large or small, so errors do not grow with outliers
as they do in integers; without outliers they are three times those of integers. GPUs from compute
capability 8.9 multiply such numbers at twice the rate of 16-bit ones (`cuda`); here is the
yardstick, which any device can compute, and accuracy be measured with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import dequantize

DTYPE = torch.float8_e4m3fn
HIGHEST = 448.0
"""The largest finite number of E4M3."""


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row on its own.

    Args:
        x: (..., K) float32.

    Returns:
        q (..., K) float8_e4m3fn and the steps (..., 1) float32, so that x is about q * step.
    """
    step = x.abs().amax(dim=-1, keepdim=True) / HIGHEST
    step = torch.where(step == 0, 1, step)
    return (x / step).to(DTYPE), step


def int4_linear_fp8(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None = None
) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), multiplied in 8-bit floats."""
    q, step = quantize_rows_fp8(x.float())
    weight, row_scale = quantize_rows_fp8(dequantize(qweight, scales, torch.float32, zeros))
    y = (q.float() @ weight.float().t()).mul_(step).mul_(row_scale[:, 0])
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)
