"""Matrix products with packed weights on a GPU: 16-bit by 4-bit, and 8-bit by 8-bit.

y = activation(x W^T + bias), and where asked residual + gamma * y, the last two for 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import fp8
from ..packing import PLANES
from .unpack import load_scale_and_zero, plane_weights, round_half_even

if TYPE_CHECKING:
    from ..table import Blocks
    from .offline import Specimen

ACTIVATIONS = ("none", "gelu", "silu")


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
    """Apply the error-function GELU, SiLU or nothing, in float32."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
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
_SUM_BLOCK = 512
_TOKEN_BLOCK = 4096


def int4_gemm(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    blocks: Blocks,
    activation: str = "none",
) -> Tensor:
    """Return activation(x W^T + bias) without unpacking the weight to memory.

    Args:
        x: (M, K) contiguous, M > 0; products are made in its dtype, sums in float32.
        qweight: (N, K/g, g/4) int16, contiguous.
        scales: (N, K/g) bfloat16, contiguous.
        bias: (N,) floating, or None.
        zeros: (N, K/g) uint8, contiguous, or None.
        blocks: k a multiple of 64.
        activation: one of `ACTIVATIONS`.

    Returns:
        (M, N) of x's dtype. Equal inputs give equal bits.
    """
    m, k = x.shape
    n, _, lanes = qweight.shape
    group = lanes * PLANES
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    parts = out
    if blocks.split_k > 1:
        parts = torch.empty(blocks.split_k, m, n, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n), blocks.split_k)
    int4_gemm_kernel[grid](
        x,
        qweight,
        scales,
        zeros,
        bias,
        parts,
        m,
        n,
        k,
        GROUP=group,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        BLOCK_W=blocks.k // PLANES,
        SPLIT_K=blocks.split_k,
        EVEN=k % (blocks.k * blocks.split_k) == 0,
        COMPUTE=_COMPUTE[x.dtype],
        ACTIVATION=activation,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        enable_fp_fusion=False,
    )
    if blocks.split_k > 1:
        sum_kernel[(triton.cdiv(m * n, _SUM_BLOCK),)](
            parts,
            bias,
            out,
            m * n,
            n,
            SPLIT_K=blocks.split_k,
            BLOCK=_SUM_BLOCK,
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


def int8_gemm(
    q: Tensor,
    steps: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    blocks: Blocks,
    activation: str = "none",
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return residual + gamma * activation(q W^T steps scales + bias).

    Args:
        q: (M, K) int8, contiguous, M > 0.
        steps: (M,) float32.
        weight: (N, K) int8, contiguous.
        scales: (N,) float32.
        bias: (N,) floating, or None.
        dtype: of the result.
        blocks: split_k is 1.
        activation: one of `ACTIVATIONS`.
        gamma: (N,) floating, or None for 1.
        residual: (M, N) of `dtype`, contiguous, overwritten by the result; or None for 0.

    Returns:
        (M, N) of `dtype`: `residual`, or newly allocated.
    """
    m, k = q.shape
    n = weight.shape[0]
    # Every program reads the numbers that it overwrites, and no others.
    out = torch.empty(m, n, dtype=dtype, device=q.device) if residual is None else residual
    int8_gemm_kernel[(triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n),)](
        q,
        steps,
        weight,
        scales,
        bias,
        gamma,
        residual,
        out,
        m,
        n,
        k,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        BLOCK_K=blocks.k,
        EVEN=k % blocks.k == 0,
        ACTIVATION=activation,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        enable_fp_fusion=False,
    )
    return out


def specimens() -> list[Specimen]:
    """Return every configuration that a shipped table names or that tuning may choose."""
    from .. import table, tune
    from .offline import ARCHITECTURES, WITH_FP8, Specimen

    shipping: dict[tuple[str, Blocks], set[int]] = {}
    for architecture in table.shipped_architectures():
        choices = [(entry.operator, entry.choice) for entry in table.shipped(architecture)]
        choices += [
            (operator, choice)
            for operator in table.OPERATORS
            for bucket in table.BUCKETS
            for choice in tune.candidates(operator, bucket, architecture)
        ]
        for operator, choice in choices:
            if choice.blocks is not None:
                # The number of parts is a factor in addresses and changes nothing else.
                blocks = choice.blocks._replace(split_k=4 if choice.blocks.split_k > 1 else 1)
                shipping.setdefault((operator, blocks), set()).add(architecture)
    found = []
    for (operator, blocks), architectures in sorted(shipping.items()):
        everywhere = tuple(sorted(architectures))
        # Variants where a generation of tensor cores begins, and on the smallest shared memory.
        varied = tuple(sorted(architectures & {80, 89, 90}))
        if operator == "int8":
            found.append(_int8_specimen(blocks, everywhere))
            found.append(_int8_specimen(blocks, varied, "gelu"))
            found.append(_int8_specimen(blocks, varied, residual=True))
            continue
        found.append(_int4_specimen(blocks, everywhere))
        if blocks.m <= 64:
            found.append(_int4_specimen(blocks, varied, zeros=True))
        if blocks.n == 64:
            found.append(_int4_specimen(blocks, varied, group=32, even=False))
        if blocks.split_k == 1:
            found.append(_int4_specimen(blocks, varied, "gelu"))
    for name, pointer, highest, where in (
        ("quantize tokens", "*i8", 127, ARCHITECTURES),
        ("quantize tokens to fp8", "*fp8e4nv", fp8.HIGHEST, WITH_FP8),
    ):
        found.append(
            Specimen(
                name,
                quantize_tokens_kernel,
                {
                    "x_ptr": "*bf16",
                    "clip_ptr": "*fp32",
                    "q_ptr": pointer,
                    "steps_ptr": "*fp32",
                    "K": "i32:16",
                    "HIGHEST": highest,
                    "BLOCK": 1024,
                },
                warps=4,
                architectures=where,
            )
        )
    found.append(
        Specimen(
            "sum of 4 parts, gelu",
            sum_kernel,
            {
                "parts_ptr": "*fp32",
                "bias_ptr": "*bf16",
                "out_ptr": "*bf16",
                "size": "i32:16",
                "N": "i32:16",
                "SPLIT_K": 4,
                "BLOCK": _SUM_BLOCK,
                "ACTIVATION": "gelu",
            },
            warps=4,
        )
    )
    return found


def _int4_specimen(
    blocks: Blocks,
    architectures: tuple[int, ...],
    activation: str = "none",
    zeros: bool = False,
    group: int = 128,
    even: bool = True,
) -> Specimen:
    from .offline import Specimen

    split = blocks.split_k > 1
    name = f"int4 {_describe(blocks)}" + (" split" if split else "")
    name += f" {activation}" if activation != "none" else ""
    name += " zeros" if zeros else ""
    name += f" group {group} tail" if not even else ""
    return Specimen(
        name,
        int4_gemm_kernel,
        {
            "x_ptr": "*bf16",
            "words_ptr": "*i16",
            "scales_ptr": "*bf16",
            "zeros_ptr": "*u8" if zeros else None,
            "bias_ptr": "*bf16",
            "out_ptr": "*fp32" if split else "*bf16",
            "M": "i32",
            "N": "i32:16",
            "K": "i32:16",
            "GROUP": group,
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "BLOCK_W": blocks.k // PLANES,
            "SPLIT_K": blocks.split_k,
            "EVEN": even,
            "COMPUTE": tl.bfloat16,
            "ACTIVATION": activation,
        },
        blocks.warps,
        blocks.stages,
        architectures,
        tensor_core=True,
    )


def _int8_specimen(
    blocks: Blocks,
    architectures: tuple[int, ...],
    activation: str = "none",
    residual: bool = False,
) -> Specimen:
    from .offline import Specimen

    name = f"int8 {_describe(blocks)}" + (f" {activation}" if activation != "none" else "")
    return Specimen(
        name + (" residual" if residual else ""),
        int8_gemm_kernel,
        {
            "x_ptr": "*i8",
            "steps_ptr": "*fp32",
            "weight_ptr": "*i8",
            "scales_ptr": "*fp32",
            "bias_ptr": "*bf16",
            "gamma_ptr": "*bf16" if residual else None,
            "residual_ptr": "*bf16" if residual else None,
            "out_ptr": "*bf16",
            "M": "i32",
            "N": "i32:16",
            "K": "i32:16",
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "BLOCK_K": blocks.k,
            "EVEN": True,
            "ACTIVATION": activation,
        },
        blocks.warps,
        blocks.stages,
        architectures,
        tensor_core=True,
    )


def _describe(blocks: Blocks) -> str:
    return f"{blocks.m}x{blocks.n}x{blocks.k} warps {blocks.warps} stages {blocks.stages}"
