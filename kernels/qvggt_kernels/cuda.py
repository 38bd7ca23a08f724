"""The linears on a CUDA device: by Triton kernels where they run, else in plain PyTorch.

Triton kernels need compute capability 8.0. What they leave to PyTorch is the dense product of
many 16-bit rows, in which its library is hard to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import fp8, integer, ops, reference, table
from .table import Choice


@dataclass(frozen=True)
class Finish:
    """What follows a product: its GELU, or adding gamma times it to `total` in place.

    Attributes:
        gelu: whether the exact GELU is applied.
        gamma: (N,) floating, gain of what is added; None without `total`.
        total: (..., N) contiguous, overwritten; or None.
    """

    gelu: bool = False
    gamma: Tensor | None = None
    total: Tensor | None = None

    def apply(self, y: Tensor) -> Tensor:
        """Do it to a product (..., N) as a step of its own."""
        if self.total is None or self.gamma is None:
            return ops.activated(y, self.gelu)
        return self.total.addcmul_(y, self.gamma.to(self.total.dtype))


NOTHING_MORE = Finish()

_FP8_MULTIPLE = 16
"""What rows and columns of a weight come in multiples of for products of 8-bit floats."""

_ROWS_WITH_ZEROS = 64
"""Rows up to which an asymmetric weight is unpacked within the product."""


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    gelu: bool,
) -> Tensor:
    """Return x W^T + bias or its GELU, see `qvggt_kernels.int4_linear`."""
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int4", qweight.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], qweight.shape[0])
    if choice is None:
        return ops.activated(reference.int4_linear(x, qweight, scales, bias, zeros), gelu)
    zeros = None if zeros is None else zeros.contiguous()
    return int4_product(x, qweight.contiguous(), scales.contiguous(), bias, zeros, choice, gelu)


def int4_linear_int8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    gelu: bool,
) -> Tensor:
    """Return x W^T + bias or its GELU, see `qvggt_kernels.int4_linear_int8`."""
    return _int4_linear_int8(x, qweight, scales, bias, zeros, Finish(gelu=gelu))


def int4_linear_int8_add_(
    total: Tensor,
    x: Tensor,
    gamma: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
) -> None:
    """Add gamma * (x W^T + bias), see `qvggt_kernels.int4_linear_int8_add_`."""
    _int4_linear_int8(x, qweight, scales, bias, zeros, Finish(gamma=gamma, total=total))


def _int4_linear_int8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    finish: Finish,
) -> Tensor:
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int8", qweight.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], qweight.shape[0])
    if choice is None:
        return finish.apply(ops.plain_int4_linear_int8(x, qweight, scales, bias, zeros))
    from .triton import unpack

    zeros = None if zeros is None else zeros.contiguous()
    weight, row_scales = unpack.requantize(qweight.contiguous(), scales.contiguous(), zeros)
    return int8_product(x, weight, row_scales, bias, 8, None, choice, finish)


def int4_linear_fp8(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    gelu: bool,
) -> Tensor:
    """Return x W^T + bias or its GELU in 8-bit floats, see `qvggt_kernels.int4_linear_fp8`."""
    columns = x.shape[-1]
    if not x.numel() or not _multiplies_fp8(x, qweight.shape[0], columns):
        return ops.activated(fp8.int4_linear_fp8(x, qweight, scales, bias, zeros), gelu)
    from .triton import gemm, unpack

    zeros = None if zeros is None else zeros.contiguous()
    weight, row_scales = unpack.requantize(
        qweight.contiguous(), scales.contiguous(), zeros, fp8.DTYPE
    )
    tokens = x.reshape(-1, columns).contiguous()
    q, steps = gemm.quantize_tokens(tokens, fp8.HIGHEST, dtype=fp8.DTYPE)
    y = torch._scaled_mm(
        q,
        weight.t(),
        scale_a=steps[:, None],
        scale_b=row_scales[None],
        bias=bias,
        out_dtype=x.dtype,
    )
    return ops.activated(y.view(*x.shape[:-1], -1), gelu)


def _multiplies_fp8(x: Tensor, outputs: int, columns: int) -> bool:
    """Say whether `torch._scaled_mm` takes this with a scale for each row."""
    divides = outputs % _FP8_MULTIPLE == 0 and columns % _FP8_MULTIPLE == 0
    return divides and x.dtype == torch.bfloat16 and _has_fp8(x.device)


def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def integer_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor,
    gelu: bool,
) -> Tensor:
    """Return x W^T + bias or its GELU, see `qvggt_kernels.integer_linear`."""
    finish = Finish(gelu=gelu)
    return _integer_linear(x, qweight, scales, bias, activation_bits, clip, finish)


def integer_linear_add_(
    total: Tensor,
    x: Tensor,
    gamma: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor,
) -> None:
    """Add gamma * (x W^T + bias), see `qvggt_kernels.integer_linear_add_`."""
    finish = Finish(gamma=gamma, total=total)
    _integer_linear(x, qweight, scales, bias, activation_bits, clip, finish)


def _integer_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor,
    finish: Finish,
) -> Tensor:
    rows = x.numel() // x.shape[-1]
    choice = _choice(x, "int8", scales.shape[0], rows)
    if not rows:
        return x.new_empty(*x.shape[:-1], scales.shape[0])
    if choice is None:
        y = integer.integer_linear(x, qweight, scales, bias, activation_bits, clip)
        return finish.apply(y)
    from .triton import unpack

    weight = unpack.columns_to_rows(qweight.contiguous())
    scales = scales.contiguous()
    return int8_product(x, weight, scales, bias, activation_bits, clip, choice, finish)


def int4_product(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    zeros: Tensor | None,
    choice: Choice,
    gelu: bool = False,
) -> Tensor:
    """Return x W^T + bias or its GELU by the kernel that is chosen.

    Args:
        x: (..., K) floating, not empty.
        qweight: (N, K/g, g/4) int16, contiguous.
        scales: (N, K/g) bfloat16, contiguous.
        bias: (N,) of x's dtype, or None.
        zeros: (N, K/g) uint8, contiguous, or None.
        choice: of the operator `int4`. float32 is unpacked to memory whatever it says, so
            that its precision is the one that PyTorch is set to.
        gelu: whether the exact GELU is applied.

    Returns:
        (..., N) of x's dtype.
    """
    from .triton import gemm, unpack

    tokens = x.reshape(-1, x.shape[-1])
    # Before 9.0, compilers do not hold the zero points of large tiles in registers.
    spills = zeros is not None and len(tokens) > _ROWS_WITH_ZEROS
    if choice.blocks is None or x.dtype == torch.float32 or spills:
        y = F.linear(x, unpack.dequantize(qweight, scales, x.dtype, zeros), bias)
        return ops.activated(y, gelu)
    activation = "gelu" if gelu else "none"
    y = gemm.int4_gemm(tokens.contiguous(), qweight, scales, bias, zeros, choice.blocks, activation)
    return y.view(*x.shape[:-1], -1)


def int8_product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor | None,
    choice: Choice,
    finish: Finish = NOTHING_MORE,
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
        finish: what else is done to it.

    Returns:
        (..., N) of x's dtype; the memory of `finish.total` if there is one.
    """
    from .triton import gemm

    assert choice.blocks is not None
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    q, steps = gemm.quantize_tokens(tokens, integer.levels(activation_bits), clip)
    total = finish.total
    out = gemm.int8_gemm(
        q,
        steps,
        weight,
        scales,
        bias,
        x.dtype,
        choice.blocks,
        "gelu" if finish.gelu else "none",
        finish.gamma,
        None if total is None else total.view(len(q), -1),
    )
    return out.view(*x.shape[:-1], -1)


def _choice(x: Tensor, operator: str, n: int, rows: int) -> Choice | None:
    index = x.device.index
    assert index is not None
    return table.for_device(index, operator, n, x.shape[-1], table.bucket_of(rows))
