"""Layer norm of tokens and their residual branch on a GPU: one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
"""Numbers that four warps work on: a 16-byte load of 16-bit numbers per thread."""


@triton.jit
def layer_norm_add_kernel(
    x_ptr,
    branch_ptr,
    gamma_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add gamma * branch to rows of x (rows, WIDTH) and write their layer norm; BLOCK >= WIDTH."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside_row = column < WIDTH if WIDTH < BLOCK else tl.full((1, BLOCK), 1, tl.int1)
    inside = (row < rows) & inside_row
    offset = row.to(tl.int64) * WIDTH + column
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + offset, mask=inside, other=0).to(tl.float32)
    branch = tl.load(branch_ptr + offset, mask=inside, other=0).to(tl.float32)
    gamma = tl.load(gamma_ptr + column, mask=inside_row, other=0).to(dtype).to(tl.float32)
    total = (x + gamma * branch).to(dtype)
    tl.store(x_ptr + offset, total, mask=inside)
    # What follows reads the rounded sum, as a norm of its own would.
    x = total.to(tl.float32)
    mean = tl.sum(x, 1, keep_dims=True) / WIDTH
    centred = tl.where(inside_row, x - mean, 0.0)
    variance = tl.sum(centred * centred, 1, keep_dims=True) / WIDTH
    weight = tl.load(weight_ptr + column, mask=inside_row, other=0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside_row, other=0).to(tl.float32)
    y = centred * tl.rsqrt(variance + eps) * weight + bias
    tl.store(out_ptr + offset, y.to(dtype), mask=inside)


def layer_norm_add_(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Add gamma * branch to `x` and return the layer norm; as `qvggt_kernels.layer_norm_add_`.

    Raises:
        ValueError: `x` is not contiguous, or shapes do not fit together.
    """
    width = x.shape[-1]
    if not x.is_contiguous():
        raise ValueError(f"x has strides {x.stride()}: it is added to in place, contiguous only")
    if branch.shape != x.shape or not gamma.numel() == weight.numel() == bias.numel() == width:
        raise ValueError(
            f"x is {tuple(x.shape)}, branch {tuple(branch.shape)}, gamma, weight and bias have "
            f"{gamma.numel()}, {weight.numel()} and {bias.numel()} elements"
        )
    out = torch.empty_like(x)
    rows = x.numel() // width
    if rows:
        block, block_rows, warps = tile(width)
        layer_norm_add_kernel[(triton.cdiv(rows, block_rows),)](
            x,
            branch.contiguous(),
            gamma,
            weight,
            bias,
            out,
            rows,
            eps,
            WIDTH=width,
            BLOCK_ROWS=block_rows,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return out


def tile(width: int) -> tuple[int, int, int]:
    """Return columns and rows of a tile, and its warps."""
    block = triton.next_power_of_2(width)
    return block, max(1, _TILE // block), min(16, max(4, block // 256))
