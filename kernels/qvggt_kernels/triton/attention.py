"""Attention with 8-bit queries and keys on a GPU: quantized in one pass, then fused as a whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .unpack import round_half_even

_LOG2_E = 1.4426950408889634
QUANTIZED_ROWS = 64
_NARROWEST = 32
"""Columns that an 8-bit tensor-core instruction multiplies at once; narrower heads are padded."""


class Blocks(NamedTuple):
    """How attention is cut into programs.

    Attributes:
        queries: rows of a program.
        keys: columns of one step of its loop.
        warps: of 32 threads, per program.
        stages: steps whose loads are in flight.
    """

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def quantize_heads_kernel(
    x_ptr,
    mean_ptr,
    q_ptr,
    steps_ptr,
    length,
    heads,
    stride_batch,
    stride_head,
    stride_row,
    factor,
    DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantize tokens of x (B, H, length, DIM), less a mean (B, H, DIM) if there is one.

    The steps, times `factor`, go to (B, H, length); the numbers to (B, H, length, BLOCK), zero
    beyond DIM.
    """
    blocks = tl.cdiv(length, BLOCK_ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < length) & (column < DIM)
    x_ptr += head // heads * stride_batch + head % heads * stride_head
    x = tl.load(x_ptr + row.to(tl.int64) * stride_row + column, mask=inside, other=0)
    x = x.to(tl.float32)
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + head * DIM + column, mask=column < DIM, other=0)
        x = tl.where(inside, x - mean, 0.0)
    step = tl.div_rn(tl.max(tl.abs(x), 1, keep_dims=True), 127.0)
    exact = tl.div_rn(x, tl.where(step == 0, 1.0, step).broadcast_to(BLOCK_ROWS, BLOCK))
    target = head * length + row
    tl.store(q_ptr + target * BLOCK + column, round_half_even(exact).to(tl.int8), mask=row < length)
    tl.store(steps_ptr + target, step * factor, mask=row < length)


@triton.jit
def int8_attention_kernel(
    q_ptr,
    q_steps_ptr,
    k_ptr,
    k_steps_ptr,
    v_ptr,
    out_ptr,
    queries,
    keys,
    heads,
    v_stride_batch,
    v_stride_head,
    v_stride_row,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Attend from BLOCK_Q queries of one head to all keys, BLOCK_K at a time.

    q (B, H, queries, BLOCK) and k (B, H, keys, BLOCK) int8 with float32 steps, those of q times
    log2(e) / sqrt(DIM); v (B, H, keys, DIM); out (B, queries, H, DIM). Probabilities are
    relative to the largest score so far and meet the values in COMPUTE.
    """
    blocks = tl.cdiv(queries, BLOCK_Q)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    column = tl.arange(0, BLOCK)
    key = tl.arange(0, BLOCK_K)
    inside_head = (column < DIM)[None, :] if DIM < BLOCK else tl.full((1, BLOCK), 1, tl.int1)
    # Rows over the edge attend as the last query does and are not stored.
    source = head * queries + tl.minimum(row, queries - 1)
    q = tl.load(q_ptr + source[:, None] * BLOCK + column[None, :])
    q_steps = tl.load(q_steps_ptr + source)
    k_at = k_ptr + (head * keys + key)[None, :] * BLOCK + column[:, None]
    k_steps_at = k_steps_ptr + head * keys + key
    v_ptr += head // heads * v_stride_batch + head % heads * v_stride_head
    v_at = v_ptr + key.to(tl.int64)[:, None] * v_stride_row + column[None, :]
    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    accumulator = tl.zeros((BLOCK_Q, BLOCK), tl.float32)
    whole = keys // BLOCK_K * BLOCK_K
    for _ in range(0, whole, BLOCK_K):
        # Where no column is padded, the compiler sees that and drops the mask.
        v = tl.load(v_at, mask=inside_head, other=0)
        scores = product(q, tl.load(k_at)) * tl.load(k_steps_at)[None, :]
        highest, total, accumulator = absorb(
            scores, q_steps, v, highest, total, accumulator, COMPUTE
        )
        k_at += BLOCK_K * BLOCK
        k_steps_at += BLOCK_K
        v_at += BLOCK_K * v_stride_row
    if whole < keys:
        inside = key < keys - whole
        v = tl.load(v_at, mask=inside[:, None] & inside_head, other=0)
        k = tl.load(k_at, mask=inside[None, :], other=0)
        scores = product(q, k) * tl.load(k_steps_at, mask=inside, other=0)[None, :]
        scores = tl.where(inside[None, :], scores, float("-inf"))
        highest, total, accumulator = absorb(
            scores, q_steps, v, highest, total, accumulator, COMPUTE
        )
    out = accumulator / total[:, None]
    batch_row = (head // heads * queries + row) * heads + head % heads
    target = out_ptr + batch_row[:, None] * DIM + column[None, :]
    inside = (row < queries)[:, None] & inside_head
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def product(q, k):
    """Multiply int8 q by int8 k of at most 128 columns; exact, as float32.

    Sums begin at the bits of 1.5 * 2^23, where float32 are 1 apart: within 2^22 of it, a sum's
    bits are those of the float, and one subtraction takes the place of a conversion, which
    shares its unit with the exponentials.
    """
    start = tl.full((q.shape[0], k.shape[1]), 0x4B400000, tl.int32)
    return tl.dot(q, k, start, out_dtype=tl.int32).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def absorb(scores, q_steps, v, highest, total, accumulator, COMPUTE: tl.constexpr):
    """Take a block of scores, still to be multiplied by the queries' steps, into the softmax."""
    higher = tl.maximum(highest, tl.max(scores, 1) * q_steps)
    weights = tl.exp2(tl.fma(scores, q_steps[:, None], -higher[:, None]))
    decay = tl.exp2(highest - higher)
    total = total * decay + tl.sum(weights, 1)
    accumulator *= decay[:, None]
    accumulator = tl.dot(weights.to(COMPUTE), v.to(COMPUTE), accumulator, input_precision="ieee")
    return higher, total, accumulator


COMPUTE_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def int8_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Return attention with 8-bit queries and keys; as `qvggt_kernels.int8_attention`.

    Args:
        q: (B, H, L, D).
        k: (B, H, T, D).
        v: (B, H, T, D).
        blocks: None for the shipped ones.

    Raises:
        ValueError: shapes or dtypes do not fit together, or heads are wider than 128.
    """
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    fits = k.shape == v.shape == (batch, heads, keys, dim) and keys and 0 < dim <= 128
    if not fits:
        raise ValueError(
            f"queries are {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)}, not "
            "(B, H, L, D), (B, H, T, D) and (B, H, T, D) with D up to 128 and T > 0"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in COMPUTE_TYPES:
        raise ValueError(
            f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}, not all of "
            "float32, float16 or bfloat16"
        )
    out = q.new_empty(batch, queries, heads, dim)
    if out.numel():
        width = max(_NARROWEST, triton.next_power_of_2(dim))
        blocks = blocks or blocks_for(q.dtype)
        mean = k.mean(2, dtype=torch.float32)
        q8, q_steps = _quantize(q, None, width, _LOG2_E * dim**-0.5)
        k8, k_steps = _quantize(k, mean, width, 1.0)
        if v.stride(3) != 1:
            v = v.contiguous()
        int8_attention_kernel[(triton.cdiv(queries, blocks.queries) * batch * heads,)](
            q8,
            q_steps,
            k8,
            k_steps,
            v,
            out,
            queries,
            keys,
            heads,
            *v.stride()[:3],
            DIM=dim,
            BLOCK_Q=blocks.queries,
            BLOCK_K=blocks.keys,
            BLOCK=width,
            COMPUTE=COMPUTE_TYPES[v.dtype],
            num_warps=blocks.warps,
            num_stages=blocks.stages,
            enable_fp_fusion=False,
        )
    return out.transpose(1, 2)


def blocks_for(dtype: torch.dtype) -> Blocks:
    """Return the shipped blocks: no head width or architecture needs its own."""
    return Blocks(64, 32, 4, 2) if dtype == torch.float32 else Blocks(128, 64, 8, 3)


def _quantize(x: Tensor, mean: Tensor | None, width: int, factor: float) -> tuple[Tensor, Tensor]:
    """Return int8 tokens (B, H, L, width) of x (B, H, L, D), and their steps times `factor`."""
    batch, heads, length, dim = x.shape
    if x.stride(3) != 1:
        x = x.contiguous()
    q = torch.empty(batch, heads, length, width, dtype=torch.int8, device=x.device)
    steps = torch.empty(batch, heads, length, dtype=torch.float32, device=x.device)
    quantize_heads_kernel[(triton.cdiv(length, QUANTIZED_ROWS) * batch * heads,)](
        x,
        mean,
        q,
        steps,
        length,
        heads,
        *x.stride()[:3],
        factor,
        DIM=dim,
        BLOCK_ROWS=QUANTIZED_ROWS,
        BLOCK=width,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return q, steps
