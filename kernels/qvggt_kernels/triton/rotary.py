"""Norm and rotation of queries and keys on a GPU: one pass over memory, in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..reference.rotary import HeadNorm, Rotation

_TILE = 1024
"""Numbers of a quarter of the heads that four warps work on: 16 bytes per thread."""


@triton.jit
def load_quarter(ptr, offset, quarter: tl.constexpr, QUARTER: tl.constexpr, inside):
    """Return a quarter of every head as float32, zero outside."""
    return tl.load(ptr + offset + quarter * QUARTER, mask=inside, other=0).to(tl.float32)


@triton.jit
def normalise_quarter(x, mean, scale, weight_ptr, bias_ptr, column, inside, dtype: tl.constexpr):
    """Return a quarter of the layer norm, rounded to `dtype`, as float32."""
    weight = tl.load(weight_ptr + column, mask=inside, other=0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0).to(tl.float32)
    return ((x - mean) * scale * weight + bias).to(dtype).to(tl.float32)


@triton.jit
def sum_of_squares(x, mean, inside):
    """Return the sum over columns of (x - mean)^2, (rows, 1)."""
    centred = tl.where(inside, x - mean, 0.0)
    return tl.sum(centred * centred, 1, keep_dims=True)


@triton.jit
def qk_norm_rope_kernel(
    qkv_ptr,
    qw_ptr,
    qb_ptr,
    kw_ptr,
    kb_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    tokens_per_frame,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise and rotate heads of qkv (tokens, 3, HEADS, DIM); a row is one head of one token.

    A head is held as its four quarters, each BLOCK_ROWS x BLOCK, because the rotation pairs
    the first with the second and the third with the fourth; nothing is shuffled.
    """
    QUARTER: tl.constexpr = DIM // 4
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    token = row // HEADS
    inside_row = column < QUARTER if QUARTER < BLOCK else tl.full((1, BLOCK), 1, tl.int1)
    inside = (row < rows) & inside_row
    if ROTATE:
        angle = token % tokens_per_frame * DIM + column
        cos_ab = load_quarter(cos_ptr, angle, 0, QUARTER, inside)
        sin_ab = load_quarter(sin_ptr, angle, 0, QUARTER, inside)
        cos_cd = load_quarter(cos_ptr, angle, 2, QUARTER, inside)
        sin_cd = load_quarter(sin_ptr, angle, 2, QUARTER, inside)
    for part in tl.static_range(2):
        offset = ((token.to(tl.int64) * 3 + part) * HEADS + row % HEADS) * DIM + column
        a = load_quarter(qkv_ptr, offset, 0, QUARTER, inside)
        b = load_quarter(qkv_ptr, offset, 1, QUARTER, inside)
        c = load_quarter(qkv_ptr, offset, 2, QUARTER, inside)
        d = load_quarter(qkv_ptr, offset, 3, QUARTER, inside)
        if NORM:
            weight_ptr = qw_ptr if part == 0 else kw_ptr
            bias_ptr = qb_ptr if part == 0 else kb_ptr
            mean = tl.sum(a + b + c + d, 1, keep_dims=True) / DIM
            squares = sum_of_squares(a, mean, inside_row) + sum_of_squares(b, mean, inside_row)
            squares += sum_of_squares(c, mean, inside_row) + sum_of_squares(d, mean, inside_row)
            scale = tl.rsqrt(squares / DIM + eps)
            at = column
            a = normalise_quarter(a, mean, scale, weight_ptr, bias_ptr, at, inside_row, dtype)
            at += QUARTER
            b = normalise_quarter(b, mean, scale, weight_ptr, bias_ptr, at, inside_row, dtype)
            at += QUARTER
            c = normalise_quarter(c, mean, scale, weight_ptr, bias_ptr, at, inside_row, dtype)
            at += QUARTER
            d = normalise_quarter(d, mean, scale, weight_ptr, bias_ptr, at, inside_row, dtype)
        if ROTATE:
            a, b = a * cos_ab - b * sin_ab, b * cos_ab + a * sin_ab
            c, d = c * cos_cd - d * sin_cd, d * cos_cd + c * sin_cd
        target = qkv_ptr + offset
        tl.store(target, a.to(dtype), mask=inside)
        tl.store(target + QUARTER, b.to(dtype), mask=inside)
        tl.store(target + 2 * QUARTER, c.to(dtype), mask=inside)
        tl.store(target + 3 * QUARTER, d.to(dtype), mask=inside)


def qk_norm_rope_(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Overwrite queries and keys with normalised and rotated ones; as `qvggt_kernels`' function.

    Raises:
        ValueError: `qkv` is not contiguous or has odd quarters, or tables are of another size.
    """
    tokens, _, heads, dim = qkv.shape[-4:]
    if not qkv.is_contiguous() or dim % 4:
        raise ValueError(
            f"qkv is {tuple(qkv.shape)} with strides {qkv.stride()}: it has to be contiguous, "
            "with heads of a multiple of 4"
        )
    for table in rotation:
        if table is not None and (table.numel() != tokens * dim or not table.is_contiguous()):
            raise ValueError(f"a rotary table is {tuple(table.shape)}, not ({tokens}, 1, {dim})")
    rows = qkv.numel() // (3 * dim)
    if not rows:
        return
    block, block_rows = tile(dim)
    qk_norm_rope_kernel[(triton.cdiv(rows, block_rows),)](
        qkv,
        *norm[:4],
        *rotation,
        rows,
        tokens,
        norm.eps,
        HEADS=heads,
        DIM=dim,
        NORM=norm.query_weight is not None,
        ROTATE=rotation.cos is not None,
        BLOCK_ROWS=block_rows,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )


def tile(dim: int) -> tuple[int, int]:
    """Return columns and rows of a quarter's tile."""
    block = triton.next_power_of_2(dim // 4)
    return block, max(1, _TILE // block)
