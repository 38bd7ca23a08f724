"""Linears with packed weights in plain PyTorch: the reference of all others, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fp8 import quantize_rows_fp8
from ..integer import quantize_tokens, unpack_integer
from ..packing import ZERO, unpack
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight

_EXACT_COLUMNS = 1024
"""Products of 8-bit numbers that float32 adds up without rounding: 1024 * 128 * 127 < 2^24."""


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return a packed weight as floats (N, K), newly allocated.

    The product of number and scale is exact in float32 (4 by 8 bits) and rounded once, to
    `dtype`; every other implementation gives the same bits.

    Raises:
        PackingError: words and scales are not of the layout or do not fit together.
    """
    q = unpack(weight.qweight, weight.group_size)
    grouped = q.view(*weight.scales.shape, weight.group_size).float()
    if weight.zeros is not None:
        grouped.sub_(weight.zeros.unsqueeze(2).float() - ZERO)
    return grouped.mul_(weight.scales.float().unsqueeze(2)).flatten(1).to(dtype)


def requantize(weight: PackedWeight) -> IntegerWeight:
    """Return a 4-bit weight in 8-bit integers, one scale per row, rounded half to even.

    Returns:
        `qweight` (K, N) int8 in [-127, 127], the transpose of a contiguous tensor, `scales` (N,)
        float32 and the bias; the weight is about q * scale.

    Raises:
        PackingError: words and scales do not fit together.
    """
    floats = dequantize(weight, torch.float32)
    scales = floats.abs().amax(dim=1) / 127
    scales = torch.where(scales == 0, 1, scales)
    return IntegerWeight(
        (floats / scales[:, None]).round_().to(torch.int8).t(), scales, weight.bias
    )


def int4_linear(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K); differentiable in x and bias."""
    y = F.linear(x, dequantize(weight, x.dtype), weight.with_bias_in(x.dtype).bias)
    # In place, the GELU would overwrite what the backward pass reads.
    return F.gelu(y) if epilogue.gelu else epilogue.apply(y)


def int4_linear_int8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), multiplied in 8-bit integers."""
    return integer_linear(x, requantize(weight), epilogue)


def int4_linear_int8_by_group(
    x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K); tokens alone become 8-bit integers.

    Weights keep their four bits and a scale per group: a group's integers are summed exactly,
    scaled, and added in float32, one group after the other.
    """
    tokens = x.reshape(-1, x.shape[-1]).float()
    q, step = quantize_tokens(tokens, 8)
    numbers = unpack(weight.qweight, weight.group_size).int().view(*weight.scales.shape, -1)
    if weight.zeros is not None:
        numbers -= (weight.zeros.int() - ZERO).unsqueeze(2)
    y = torch.zeros(len(q), weight.outputs, device=x.device)
    for group, tokens_of_group in enumerate(q.split(weight.group_size, 1)):
        # Float64 holds these sums exactly.
        sums = tokens_of_group.double() @ numbers[:, group].double().t()
        y += sums.float().mul_(step).mul_(weight.scales[:, group].float())
    if weight.bias is not None:
        y += weight.bias.float()
    return epilogue.apply(y.to(x.dtype).view(*x.shape[:-1], y.shape[1]))


def int4_linear_fp8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), multiplied in 8-bit floats."""
    q, step = quantize_rows_fp8(x.float())
    rows, row_scale = quantize_rows_fp8(dequantize(weight, torch.float32))
    y = (q.float() @ rows.float().t()).mul_(step).mul_(row_scale[:, 0])
    if weight.bias is not None:
        y += weight.bias.float()
    return epilogue.apply(y.to(x.dtype))


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the exact product (M, N) int32 of integers (M, K) and (K, N) int8, on any device.

    Float32 products of few enough columns to be exact, added as integers.
    """
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
    for left, right in zip(a.split(_EXACT_COLUMNS, 1), b.split(_EXACT_COLUMNS), strict=True):
        total += (left.float() @ right.float()).to(torch.int32)
    return total


def integer_linear(x: Tensor, weight: IntegerWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), multiplied in integers.

    Tokens are quantized here; sums are scaled once at the end. Not differentiable.
    """
    tokens = x.reshape(-1, x.shape[-1]).float()
    q, step = quantize_tokens(tokens, weight.activation_bits, weight.clip)
    y = integer_product(q, unpack_integer(weight.qweight)).float().mul_(step).mul_(weight.scales)
    if weight.bias is not None:
        y += weight.bias.float()
    return epilogue.apply(y.to(x.dtype).view(*x.shape[:-1], y.shape[1]))
