"""The linears on a CUDA device: by Triton kernels where they run, else in plain PyTorch.

Triton kernels need compute capability 8.0. What they leave to PyTorch is the dense product of
many 16-bit rows, in which its library is hard to beat.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import integer, reference, table
from .requantize import requantize
from .table import Choice

_ROWS_WITH_ZEROS = 64
"""Rows up to which an asymmetric weight is unpacked within the product."""


def int4_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    """Return x W^T + bias, see `qvggt_kernels.int4_linear`."""
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int4", qweight.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], qweight.shape[0])
    if choice is None:
        return reference.int4_linear(x, qweight, scales, bias, zeros)
    zeros = None if zeros is None else zeros.contiguous()
    return int4_product(x, qweight.contiguous(), scales.contiguous(), bias, zeros, choice)


def int4_linear_int8(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    """Return x W^T + bias in 8-bit integers, see `qvggt_kernels.int4_linear_int8`."""
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int8", qweight.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], qweight.shape[0])
    if choice is None:
        q8, row_scale = requantize(qweight, scales, zeros)
        return integer.integer_linear(x, q8.t(), row_scale, bias, 8)
    from .triton import unpack

    zeros = None if zeros is None else zeros.contiguous()
    weight, row_scales = unpack.requantize(qweight.contiguous(), scales.contiguous(), zeros)
    return int8_product(x, weight, row_scales, bias, 8, None, choice)


def integer_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor,
) -> Tensor:
    """Return x W^T + bias in integers, see `qvggt_kernels.integer_linear`."""
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int8", scales.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], scales.shape[0])
    if choice is None:
        return integer.integer_linear(x, qweight, scales, bias, activation_bits, clip)
    from .triton import unpack

    weight = unpack.columns_to_rows(qweight.contiguous())
    return int8_product(x, weight, scales.contiguous(), bias, activation_bits, clip, choice)


def int4_product(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    choice: Choice,
) -> Tensor:
    """Return x W^T + bias by the kernel that is chosen.

    Args:
        x: (..., K) floating, not empty.
        qweight: (N, K/g, g/4) int16, contiguous.
        scales: (N, K/g) bfloat16, contiguous.
        bias: (N,) of x's dtype, or None.
        zeros: (N, K/g) uint8, contiguous, or None.
        choice: of the operator `int4`. float32 is unpacked to memory whatever it says, so
            that its precision is the one that PyTorch is set to.

    Returns:
        (..., N) of x's dtype.
    """
    from .triton import gemm, unpack

    tokens = x.reshape(-1, x.shape[-1])
    # Before 9.0, compilers do not hold the zero points of large tiles in registers.
    spills = zeros is not None and len(tokens) > _ROWS_WITH_ZEROS
    if choice.blocks is None or x.dtype == torch.float32 or spills:
        return F.linear(x, unpack.dequantize(qweight, scales, x.dtype, zeros), bias)
    y = gemm.int4_gemm(tokens.contiguous(), qweight, scales, bias, zeros, choice.blocks)
    return y.view(*x.shape[:-1], -1)


def int8_product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor | None,
    choice: Choice,
) -> Tensor:
    """Return x W^T + bias for x quantized per token, by the kernel that is chosen.

    Args:
        x: (..., K) floating, not empty.
        weight: (N, K) int8, contiguous.
        scales: (N,) float32, contiguous.
        bias: (N,) floating, or None.
        activation_bits: 8 or 4.
        clip: () float32, or None for 1.
        choice: of the operator `int8`.

    Returns:
        (..., N) of x's dtype.
    """
    from .triton import gemm

    assert choice.blocks is not None
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    q, steps = gemm.quantize_tokens(tokens, integer.levels(activation_bits), clip)
    y = gemm.int8_gemm(q, steps, weight, scales, bias, x.dtype, choice.blocks)
    return y.view(*x.shape[:-1], -1)


def _choice(x: Tensor, operator: str, n: int, rows: int) -> Choice | None:
    index = x.device.index
    assert index is not None
    return table.for_device(index, operator, n, x.shape[-1], table.bucket_of(rows))
