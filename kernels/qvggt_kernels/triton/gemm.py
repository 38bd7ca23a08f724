"""Matrix products with packed weights on a GPU: 16-bit by 4-bit, and 8-bit by 8-bit.

y = activation(x W^T + bias), and for 8 bits optionally total + gamma * y.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gemm_configs import Blocks
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight
from .unpack import load_scale_and_zero, plane_weights, round_half_even


@triton.jit
def tile_of(program, tiles_m, tiles_n, SWIZZLE: tl.constexpr):
    """Return the tile of a program: SWIZZLE rows of tiles at a time share columns in the cache."""
    band = program // (SWIZZLE * tiles_n)
    first = band * SWIZZLE
    height = tl.minimum(tiles_m - first, SWIZZLE)
    inner = program % (SWIZZLE * tiles_n)
    return first + inner % height, inner // height


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """Apply the error-function GELU or nothing, in float32."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    return y


@triton.jit
def int4_gemm_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Multiply x (M, K) by packed weights; weights are unpacked to COMPUTE in registers.

    A step of the loop takes BLOCK_W words of a row, that is 4 BLOCK_W columns, as four
    products of BLOCK_W columns, one per plane: nothing is interleaved. With SPLIT_K > 1, `out`
    is a workspace (SPLIT_K, M, N) float32 that `sum_kernel` adds up, always in the same order.
    """
    LANES: tl.constexpr = GROUP // 4
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    split = tl.program_id(1)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Tiles that hang over the edge read rows from its other end and store nothing of them.
    x_row = x_ptr + (row % M).to(tl.int64)[:, None] * K
    words_per_row = K // 4
    w_column = column % N
    w_row = words_ptr + w_column[:, None] * words_per_row
    steps = tl.cdiv(words_per_row, BLOCK_W * SPLIT_K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(split * steps, (split + 1) * steps):
        word = step * BLOCK_W + tl.arange(0, BLOCK_W)
        if BLOCK_W <= LANES:
            group = (w_column * (K // GROUP) + step * BLOCK_W // LANES)[:, None]
            scales_inside = tl.full((1, 1), 0, tl.int32) + step * BLOCK_W < words_per_row
        else:
            group = w_column[:, None] * (K // GROUP) + (word // LANES)[None, :]
            scales_inside = (word < words_per_row)[None, :]
        if EVEN:
            words = tl.load(w_row + word[None, :])
            scale, zero = load_scale_and_zero(scales_ptr, zeros_ptr, group, True)
        else:
            words = tl.load(w_row + word[None, :], mask=(word < words_per_row)[None, :], other=0)
            scale, zero = load_scale_and_zero(scales_ptr, zeros_ptr, group, scales_inside)
        first = word // LANES * GROUP + word % LANES
        for plane in tl.static_range(4):
            x_at = x_row + (first + plane * LANES)[None, :]
            if EVEN:
                x = tl.load(x_at)
            else:
                x = tl.load(x_at, mask=(word < words_per_row)[None, :], other=0)
            weight = plane_weights(words, scale, zero, plane, COMPUTE)
            accumulator = tl.dot(
                x.to(COMPUTE), tl.trans(weight), accumulator, input_precision="ieee"
            )
    inside = (row < M)[:, None] & (column < N)[None, :]
    offset = row.to(tl.int64)[:, None] * N + column[None, :]
    if SPLIT_K == 1:
        if bias_ptr is not None:
            accumulator += tl.load(bias_ptr + column, column < N, other=0).to(tl.float32)[None, :]
        y = activate(accumulator, ACTIVATION)
        tl.store(out_ptr + offset, y.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + split.to(tl.int64) * M * N + offset, accumulator, mask=inside)


@triton.jit
def sum_kernel(
    parts_ptr,
    bias_ptr,
    out_ptr,
    size,
    N,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Add the parts (SPLIT_K, M, N) of a split product, in order, and finish it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT_K):
        total += tl.load(parts_ptr + split * size + at, mask=inside, other=0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % N, mask=inside, other=0).to(tl.float32)
    y = activate(total, ACTIVATION)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def quantize_tokens_kernel(
    x_ptr,
    clip_ptr,
    q_ptr,
    steps_ptr,
    K,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantize each row of x (M, K) to numbers in [-HIGHEST, HIGHEST] with its own step.

    Integers are rounded here, 8-bit floats by the conversion.
    """
    row = tl.program_id(0)
    x_row = x_ptr + row.to(tl.int64) * K
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + k, mask=k < K, other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    magnitude = tl.max(largest, 0)
    if clip_ptr is not None:
        magnitude *= tl.load(clip_ptr)
    step = tl.div_rn(magnitude, HIGHEST * 1.0)
    tl.store(steps_ptr + row, step)
    divisor = tl.where(step == 0, 1.0, step)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + k, mask=k < K, other=0).to(tl.float32)
        exact = tl.div_rn(x, tl.broadcast_to(divisor, (BLOCK,)))
        # Bounded first: the rounding holds for small magnitudes alone.
        exact = tl.minimum(tl.maximum(exact, -HIGHEST), HIGHEST)
        if q_ptr.dtype.element_ty == tl.int8:
            exact = round_half_even(exact)
        q = exact.to(q_ptr.dtype.element_ty)
        tl.store(q_ptr + row.to(tl.int64) * K + k, q, mask=k < K)


@triton.jit
def int8_gemm_kernel(
    x_ptr,
    steps_ptr,
    weight_ptr,
    scales_ptr,
    bias_ptr,
    gamma_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Multiply int8 x (M, K) by int8 weights (N, K), scaled once at the end."""
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_row = x_ptr + (row % M).to(tl.int64)[:, None] * K
    w_row = weight_ptr + (column % N).to(tl.int64)[:, None] * K
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN:
            x = tl.load(x_row + k[None, :])
            weight = tl.load(w_row + k[None, :])
        else:
            x = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0)
            weight = tl.load(w_row + k[None, :], mask=(k < K)[None, :], other=0)
        accumulator = tl.dot(x, tl.trans(weight), accumulator, out_dtype=tl.int32)
    step = tl.load(steps_ptr + row, mask=row < M, other=0)
    scale = tl.load(scales_ptr + column, mask=column < N, other=0)
    y = accumulator.to(tl.float32) * step[:, None] * scale[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=column < N, other=0).to(tl.float32)[None, :]
    y = activate(y, ACTIVATION)
    inside = (row < M)[:, None] & (column < N)[None, :]
    offset = row.to(tl.int64)[:, None] * N + column[None, :]
    if gamma_ptr is not None:
        y *= tl.load(gamma_ptr + column, mask=column < N, other=0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offset, mask=inside, other=0).to(tl.float32)
    tl.store(out_ptr + offset, y.to(out_ptr.dtype.element_ty), mask=inside)


_COMPUTE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
SUM_BLOCK = 512
_TOKEN_BLOCK = 4096


def int4_gemm(x: Tensor, weight: PackedWeight, blocks: Blocks, activation: str = "none") -> Tensor:
    """Return activation(x W^T + bias) without unpacking the weight to memory.

    Args:
        x: (M, K) contiguous, M > 0; products are made in its dtype, sums in float32.
        weight: contiguous.
        blocks: k a multiple of 64.
        activation: "gelu" or "none".

    Returns:
        (M, N) of x's dtype. Equal inputs give equal bits.
    """
    m, k = x.shape
    n = weight.outputs
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    parts = out
    if blocks.split_k > 1:
        parts = torch.empty(blocks.split_k, m, n, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n), blocks.split_k)
    int4_gemm_kernel[grid](
        x,
        weight.qweight,
        weight.scales,
        weight.zeros,
        weight.bias,
        parts,
        m,
        n,
        k,
        GROUP=weight.group_size,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        BLOCK_W=blocks.k // 4,
        SPLIT_K=blocks.split_k,
        EVEN=k % (blocks.k * blocks.split_k) == 0,
        COMPUTE=_COMPUTE[x.dtype],
        ACTIVATION=activation,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        enable_fp_fusion=False,
    )
    if blocks.split_k > 1:
        sum_kernel[(triton.cdiv(m * n, SUM_BLOCK),)](
            parts,
            weight.bias,
            out,
            m * n,
            n,
            SPLIT_K=blocks.split_k,
            BLOCK=SUM_BLOCK,
            ACTIVATION=activation,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def quantize_tokens(
    x: Tensor,
    highest: float,
    clip: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor]:
    """Quantize each token on its own, as `qvggt_kernels.quantize_tokens` or in 8-bit floats.

    Args:
        x: (M, K) floating, contiguous.
        highest: largest number, 127, 7 or 448.
        clip: () float32, or None for 1.
        dtype: int8 or float8_e4m3fn.

    Returns:
        q (M, K) of `dtype` and the steps (M,) float32.
    """
    m, k = x.shape
    q = torch.empty(m, k, dtype=dtype, device=x.device)
    steps = torch.empty(m, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(k), _TOKEN_BLOCK)
    quantize_tokens_kernel[(m,)](
        x,
        clip,
        q,
        steps,
        k,
        HIGHEST=highest,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return q, steps


class Tokens(NamedTuple):
    """Quantized tokens.

    Attributes:
        q: (M, K) int8, contiguous, M > 0.
        steps: (M,) float32.
        dtype: that they had, and that a product with them gets.
    """

    q: Tensor
    steps: Tensor
    dtype: torch.dtype


def int8_gemm(
    tokens: Tokens, weight: IntegerWeight, blocks: Blocks, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    """Return total + gamma * activation(q W^T steps scales + bias).

    Args:
        tokens: of x.
        weight: of 8 bits; `qweight` is the transpose of a contiguous (N, K).
        blocks: split_k is 1.
        epilogue: with a `total` (M, N) of the tokens' dtype, contiguous, overwritten by the result.

    Returns:
        (M, N) of the tokens' dtype: `epilogue.total`, or newly allocated.
    """
    m, k = tokens.q.shape
    n = weight.outputs
    out = epilogue.total
    if out is None:
        out = torch.empty(m, n, dtype=tokens.dtype, device=tokens.q.device)
    # Every program reads the numbers that it overwrites, and no others.
    int8_gemm_kernel[(triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n),)](
        tokens.q,
        tokens.steps,
        weight.qweight.t(),
        weight.scales,
        weight.bias,
        epilogue.gamma,
        epilogue.total,
        out,
        m,
        n,
        k,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        BLOCK_K=blocks.k,
        EVEN=k % blocks.k == 0,
        ACTIVATION="gelu" if epilogue.gelu else "none",
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        enable_fp_fusion=False,
    )
    return out
