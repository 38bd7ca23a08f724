"""Which code computes a linear: the one place that looks at device, dtype and gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import fp8, integer, ops, reference

_DEVICES = frozenset({"cpu", "cuda"})
"""Device types that the operators are registered for."""


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Return x W^T + bias for a packed weight, by the fastest code for x's device and dtype.

    Args:
        x: (..., K), floating; its dtype is the compute dtype.
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        bias: (N,) of x's dtype.
        zeros: (N, K/g) uint8 zero points of an asymmetric weight, or None.
        gelu: return the exact GELU of it. A kernel that has the sums in registers rounds once.

    Returns:
        (..., N) of x's dtype; differentiable in x and bias.
    """
    if _goes_to_operators(x, bias):
        return ops.int4_linear(x, qweight, scales, bias, zeros, gelu)
    y = reference.int4_linear(x, qweight, scales, bias, zeros)
    return F.gelu(y) if gelu else y


def int4_linear_int8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
    gelu: bool = False,
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
        gelu: see `int4_linear`.

    Returns:
        (..., N) of x's dtype; not differentiable.
    """
    if x.device.type in _DEVICES:
        return ops.int4_linear_int8(x, qweight, scales, bias, zeros, gelu)
    return ops.activated(ops.plain_int4_linear_int8(x, qweight, scales, bias, zeros), gelu)


def int4_linear_int8_add_(
    total: Tensor,
    x: Tensor,
    gamma: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
) -> None:
    """Add gamma * `int4_linear_int8` of x to `total` in place: a block's last step.

    Args:
        total: (..., N) contiguous, of the dtype of `x`; overwritten.
        x: (..., K).
        gamma: (N,) floating.
        qweight: see `int4_linear`.
        scales: see `int4_linear`.
        bias: see `int4_linear`.
        zeros: see `int4_linear`.
    """
    if x.device.type in _DEVICES:
        ops.int4_linear_int8_add_(total, x, gamma, qweight, scales, bias, zeros)
    else:
        y = ops.plain_int4_linear_int8(x, qweight, scales, bias, zeros)
        total.addcmul_(y, gamma.to(total.dtype))


def int4_linear_fp8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Return x W^T + bias, multiplied in 8-bit floats, see `qvggt_kernels.fp8`.

    On a GPU from compute capability 8.9 by its tensor cores; elsewhere the same numbers in
    float32, which is slow.

    Args:
        x: see `int4_linear`.
        qweight: see `int4_linear`.
        scales: see `int4_linear`.
        bias: see `int4_linear`.
        zeros: see `int4_linear`.
        gelu: see `int4_linear`.

    Returns:
        (..., N) of x's dtype; not differentiable.
    """
    if x.device.type in _DEVICES:
        return ops.int4_linear_fp8(x, qweight, scales, bias, zeros, gelu)
    return ops.activated(fp8.int4_linear_fp8(x, qweight, scales, bias, zeros), gelu)


def integer_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor | float = 1.0,
    gelu: bool = False,
) -> Tensor:
    """Return x W^T + bias, multiplied in integers and scaled once at the end.

    Args:
        x: (..., K) floating; quantized per token here.
        qweight: (K, N) int8 or (K, N/2) uint8, see `qvggt_kernels.integer`.
        scales: (N,) float32.
        bias: (N,) floating, or None.
        activation_bits: 8 or 4.
        clip: share of a token's largest magnitude that its range covers.
        gelu: see `int4_linear`.

    Returns:
        (..., N) in the dtype of x; not differentiable.
    """
    if x.device.type in _DEVICES:
        clip = _as_tensor(clip, x.device)
        return ops.integer_linear(x, qweight, scales, bias, activation_bits, clip, gelu)
    y = integer.integer_linear(x, qweight, scales, bias, activation_bits, clip)
    return ops.activated(y, gelu)


def integer_linear_add_(
    total: Tensor,
    x: Tensor,
    gamma: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor | float = 1.0,
) -> None:
    """Add gamma * `integer_linear` of x to `total` in place: a block's last step.

    Args:
        total: (..., N) contiguous, of the dtype of `x`; overwritten.
        x: (..., K).
        gamma: (N,) floating.
        qweight: see `integer_linear`.
        scales: see `integer_linear`.
        bias: see `integer_linear`.
        activation_bits: see `integer_linear`.
        clip: see `integer_linear`.
    """
    if x.device.type in _DEVICES:
        clip = _as_tensor(clip, x.device)
        ops.integer_linear_add_(total, x, gamma, qweight, scales, bias, activation_bits, clip)
    else:
        y = integer.integer_linear(x, qweight, scales, bias, activation_bits, clip)
        total.addcmul_(y, gamma.to(total.dtype))


def _as_tensor(clip: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(clip, Tensor):
        return clip
    return torch.tensor(clip, dtype=torch.float32, device=device)


def _goes_to_operators(x: Tensor, bias: Tensor | None) -> bool:
    """Say whether an operator may compute this: it records no gradient.

    Autograd would keep a scratch that the next layer overwrites before the backward pass.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return x.device.type in _DEVICES
