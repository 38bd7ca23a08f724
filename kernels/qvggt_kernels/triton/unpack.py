"""Unpacks weights on a GPU: 4-bit words to numbers of a GEMM, here and within a GEMM.

Every kernel takes COMPUTE, the dtype that it multiplies in, because Triton's interpreter has
no bfloat16 arithmetic: its tests multiply in float16 and float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import fp8
from ..packing import PLANES, ZERO
from ..weight import PackedWeight

ZERO_NUMBER: tl.constexpr = tl.constexpr(ZERO)

HIGHEST = {torch.int8: 127.0, fp8.DTYPE: fp8.HIGHEST}
"""What the largest magnitude of a row becomes."""

TILE = 4096
"""Words that a program unpacks: 16 per thread."""


@triton.jit
def load_scale_and_zero(scales_ptr, zeros_ptr, group, inside):
    """Return the scale of groups (bfloat16) and the stored number that stands for zero (int16)."""
    scale = tl.load(scales_ptr + group, mask=inside, other=0)
    if zeros_ptr is None:
        zero = tl.full(group.shape, ZERO_NUMBER, tl.int16)
    else:
        zero = tl.load(zeros_ptr + group, mask=inside, other=0).to(tl.int16)
    return scale, zero


@triton.jit
def load_words(
    words_ptr, scales_ptr, zeros_ptr, row, word, words_per_row, inside, LANES: tl.constexpr
):
    """Return int16 words of rows, their groups, and the groups' scales and zeros."""
    group = row * (words_per_row // LANES) + word // LANES
    words = tl.load(words_ptr + row * words_per_row + word, mask=inside, other=0)
    scale, zero = load_scale_and_zero(scales_ptr, zeros_ptr, group, inside)
    return words, group, scale, zero


@triton.jit
def plane_weights(words, scale, zero, PLANE: tl.constexpr, COMPUTE: tl.constexpr):
    """Return one plane of int16 words as weights of COMPUTE, with the bits of the reference.

    In bfloat16 a number u is made of bits: 0x4300 | u is 128 + u, as neighbours are 1 apart
    there. So the difference is exact and the product rounds once.
    """
    number = (words >> (4 * PLANE)) & 15
    if COMPUTE == tl.bfloat16:
        value = (number | 0x4300).to(tl.bfloat16, bitcast=True)
        offset = (zero | 0x4300).to(tl.bfloat16, bitcast=True)
        weight = (value - offset) * scale
    else:
        weight = ((number - zero).to(tl.float32) * scale.to(tl.float32)).to(COMPUTE)
    return weight


@triton.jit
def dequantize_kernel(
    words_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    size,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write weights (N, K) of the dtype of `out`; a program takes BLOCK words of any rows."""
    LANES: tl.constexpr = GROUP // 4
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = word < size
    group = word // LANES
    words = tl.load(words_ptr + word, mask=inside, other=0)
    scale, zero = load_scale_and_zero(scales_ptr, zeros_ptr, group, inside)
    first = out_ptr + group.to(tl.int64) * GROUP + word % LANES
    for plane in tl.static_range(4):
        weight = plane_weights(words, scale, zero, plane, tl.float32)
        tl.store(first + plane * LANES, weight.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def round_half_even(x):
    """Round float32 of magnitude below 2^22 to whole numbers, halves to even ones."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def requantize_kernel(
    words_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    row_scales_ptr,
    rows,
    words_per_row,
    HIGHEST: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write rows (N, K) of 8-bit integers or floats and their scales (N,).

    Two passes over rows that stay in cache; the largest number of a row becomes HIGHEST.
    """
    LANES: tl.constexpr = GROUP // 4
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    largest = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(0, words_per_row, BLOCK):
        word = (start + tl.arange(0, BLOCK))[None, :]
        inside = (row < rows) & (word < words_per_row)
        words, group, scale, zero = load_words(
            words_ptr, scales_ptr, zeros_ptr, row, word, words_per_row, inside, LANES
        )
        for plane in tl.static_range(4):
            weight = plane_weights(words, scale, zero, plane, tl.float32)
            largest = tl.maximum(largest, tl.abs(weight))
    row_scale = tl.div_rn(tl.max(largest, 1, keep_dims=True), HIGHEST)
    row_scale = tl.where(row_scale == 0, 1.0, row_scale)
    tl.store(row_scales_ptr + row, row_scale, mask=row < rows)
    for start in range(0, words_per_row, BLOCK):
        word = (start + tl.arange(0, BLOCK))[None, :]
        inside = (row < rows) & (word < words_per_row)
        words, group, scale, zero = load_words(
            words_ptr, scales_ptr, zeros_ptr, row, word, words_per_row, inside, LANES
        )
        first = out_ptr + group.to(tl.int64) * GROUP + word % LANES
        for plane in tl.static_range(4):
            weight = plane_weights(words, scale, zero, plane, tl.float32)
            number = tl.div_rn(weight, row_scale.broadcast_to(BLOCK_ROWS, BLOCK))
            if out_ptr.dtype.element_ty == tl.int8:
                number = round_half_even(number)
            tl.store(first + plane * LANES, number.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def columns_kernel(
    packed_ptr,
    out_ptr,
    inputs,
    outputs,
    HALVES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write integers (N, K) int8 of (K, N) int8, or with HALVES of (K, N/2) uint8.

    Integer tensor cores read both operands along K; the storage runs along N.
    """
    k = (tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K))[:, None]
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    columns = outputs // 2 if HALVES else outputs
    inside = (k < inputs) & (n < columns)
    packed = tl.load(packed_ptr + k * columns + n, mask=inside, other=0)
    target = out_ptr + n.to(tl.int64) * inputs + k
    if HALVES:
        tl.store(target, (packed & 15).to(tl.int8) - 8, mask=inside)
        upper = target + columns.to(tl.int64) * inputs
        tl.store(upper, (packed >> 4).to(tl.int8) - 8, mask=inside)
    else:
        tl.store(target, packed, mask=inside)


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Unpack a weight; same bits as the reference.

    The result is newly allocated: PyTorch's caching allocator keeps one such block per device
    and stream, and gives it to the next layer as soon as this one releases it. It also handles
    graphs that are being captured.

    Args:
        weight: contiguous.
        dtype: float32, float16 or bfloat16.

    Returns:
        (N, K) of `dtype`.
    """
    qweight = weight.qweight
    rows, groups, lanes = qweight.shape
    out = torch.empty(rows, groups * lanes * PLANES, dtype=dtype, device=qweight.device)
    size = qweight.numel()
    block = min(TILE, triton.next_power_of_2(max(size, 1)))
    dequantize_kernel[(triton.cdiv(size, block),)](
        *_pointers(weight),
        out,
        size,
        GROUP=lanes * PLANES,
        BLOCK=block,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return out


def requantize(weight: PackedWeight, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Unpack a contiguous weight into rows (N, K) of int8 or float8_e4m3fn with one scale each.

    As `qvggt_kernels.requantize` and `qvggt_kernels.quantize_rows_fp8` do.
    """
    qweight = weight.qweight
    rows, groups, lanes = qweight.shape
    out = torch.empty(rows, groups * lanes * PLANES, dtype=dtype, device=qweight.device)
    row_scales = torch.empty(rows, dtype=torch.float32, device=qweight.device)
    requantize_kernel[(triton.cdiv(rows, 4),)](
        *_pointers(weight),
        out,
        row_scales,
        rows,
        groups * lanes,
        HIGHEST=HIGHEST[dtype],
        GROUP=lanes * PLANES,
        BLOCK_ROWS=4,
        BLOCK=256,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out, row_scales


def _pointers(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    return weight.qweight, weight.scales, weight.zeros


def columns_to_rows(qweight: Tensor) -> Tensor:
    """Return integers (N, K) int8 of `columns-int8/1` (K, N) or `halves-uint8/1` (K, N/2)."""
    inputs, columns = qweight.shape
    halves = qweight.dtype == torch.uint8
    outputs = columns * 2 if halves else columns
    out = torch.empty(outputs, inputs, dtype=torch.int8, device=qweight.device)
    grid = (triton.cdiv(inputs, 64), triton.cdiv(columns, 64))
    columns_kernel[grid](
        qweight, out, inputs, outputs, HALVES=halves, BLOCK_K=64, BLOCK_N=64, num_warps=4
    )
    return out
