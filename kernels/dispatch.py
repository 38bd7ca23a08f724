"""Which code computes a linear: the one place that looks at device, dtype and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from . import integer, ops, reference
from .requantize import requantize

_DEVICES = frozenset({"cpu", "cuda"})
"""Device types that the operators are registered for."""


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
) -> Tensor:
    """Return x W^T + bias for a packed weight, by the fastest code for x's device and dtype.

    Args:
        x: (..., K), floating; its dtype is the compute dtype.
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        bias: (N,) of x's dtype.
        zeros: (N, K/g) uint8 zero points of an asymmetric weight, or None.

    Returns:
        (..., N) of x's dtype; differentiable in x and bias.
    """
    if _goes_to_operators(x, bias):
        return ops.int4_linear(x, qweight, scales, bias, zeros)
    return reference.int4_linear(x, qweight, scales, bias, zeros)


def int4_linear_int8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
) -> Tensor:
    """Return x W^T + bias, multiplied in 8-bit integers though the weight is stored in 4.

    The weight is requantized to one scale per row (`requantize`), tokens to one scale each
    (`quantize_tokens`).

    Args:
        x: see `int4_linear`.
        qweight: see `int4_linear`.
        scales: see `int4_linear`.
        bias: see `int4_linear`.
        zeros: see `int4_linear`.

    Returns:
        (..., N) of x's dtype; not differentiable.
    """
    if x.device.type in _DEVICES:
        return ops.int4_linear_int8(x, qweight, scales, bias, zeros)
    q8, row_scale = requantize(qweight, scales, zeros)
    return integer.integer_linear(x, q8.t(), row_scale, bias, 8)


def integer_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor | float = 1.0,
) -> Tensor:
    """Return x W^T + bias, multiplied in integers and scaled once at the end.

    Args:
        x: (..., K) floating; quantized per token here.
        qweight: (K, N) int8 or (K, N/2) uint8, see `qvggt_kernels.integer`.
        scales: (N,) float32.
        bias: (N,) floating, or None.
        activation_bits: 8 or 4.
        clip: share of a token's largest magnitude that its range covers.

    Returns:
        (..., N) in the dtype of x; not differentiable.
    """
    if x.device.type in _DEVICES:
        if not isinstance(clip, Tensor):
            clip = torch.tensor(clip, dtype=torch.float32, device=x.device)
        return ops.integer_linear(x, qweight, scales, bias, activation_bits, clip)
    return integer.integer_linear(x, qweight, scales, bias, activation_bits, clip)


def _goes_to_operators(x: Tensor, bias: Tensor | None) -> bool:
    """Say whether an operator may compute this: it records no gradient.

    Autograd would keep a scratch that the next layer overwrites before the backward pass.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return x.device.type in _DEVICES
