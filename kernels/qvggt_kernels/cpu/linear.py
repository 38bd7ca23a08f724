"""INT4 linear on the CPU: unpacks into a scratch for PyTorch's dense GEMM.

At this network's sizes (hundreds to thousands of rows) a GEMM computes for so long that the
unpacking of its weight hardly shows. Unpacking is made of five passes, all by PyTorch's own
vectorised kernels: shift, mask, set an exponent that makes the number a float of known
offset, subtract the offset, scale. The first three work on whole 32-bit words, that is on
two bfloat16 at once; subtraction is exact and scaling rounds once, as in the reference.

Every thread has one scratch per dtype, as large as the largest weight that it has met. It is
overwritten by the next layer, so nothing may hold on to it: autograd takes the reference.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import cpu_features
from ..packing import PLANES, ZERO
from ..weight import NO_EPILOGUE, Epilogue, PackedWeight


class _Encoding(NamedTuple):
    """How a 4-bit number u = q + 8 becomes a float: bits `exponent | u` have the value zero + q."""

    mask: int
    exponent: int
    zero: int


ENCODINGS = {
    # bfloat16, two per word: 0x4300 is 128, where neighbours are 1 apart.
    torch.bfloat16: _Encoding(0x000F000F, 0x43004300, 128 + 8),
    # float32: 0x4B000000 is 2^23, where neighbours are 1 apart.
    torch.float32: _Encoding(0x0000000F, 0x4B000000, 2**23 + 8),
}

DTYPES = frozenset(ENCODINGS)
"""Compute dtypes of this path; float16 arithmetic is emulated on most CPUs."""

SHIFTS = torch.tensor([[0], [4], [8], [12]], dtype=torch.int32, device="cpu")


class _Views(NamedTuple):
    """One piece of scratch memory, seen three ways."""

    words: Tensor  # int32 (N, K/g, 4, g/8) for bfloat16, (N, K/g, 4, g/4) for float32
    values: Tensor  # (N, K/g, 4, g/4)
    weight: Tensor  # (N, K)


class _Scratch(threading.local):
    """The calling thread's scratch memory by dtype, and its views by dtype and shape."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}
        self.views: dict[tuple[torch.dtype, torch.Size], _Views] = {}


_scratch = _Scratch()


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Unpack a weight into the calling thread's scratch; same bits as the reference.

    Args:
        weight: see `PackedWeight`.
        dtype: one of `DTYPES`.

    Returns:
        (N, K) of `dtype`, valid until this thread's next call with this dtype.
    """
    mask, exponent, zero = ENCODINGS[dtype]
    qweight = weight.qweight.contiguous()
    if qweight.numel() == 0:  # any stride counts as contiguous there, and cannot be viewed
        qweight = qweight.new_empty(qweight.shape)
    views = _scratch.views.get((dtype, qweight.shape)) or _new_views(dtype, qweight.shape)
    packed = qweight.view(torch.int32) if dtype == torch.bfloat16 else qweight
    torch.bitwise_right_shift(packed.unsqueeze(2), SHIFTS, out=views.words)
    views.words.bitwise_and_(mask).bitwise_or_(exponent)
    offset: Tensor | int = zero
    if weight.zeros is not None:
        # A zero point moves the offset by a few whole numbers, which both encodings hold exactly.
        offset = (weight.zeros.to(dtype) + (zero - ZERO))[:, :, None, None]
    views.values.sub_(offset).mul_(weight.scales[:, :, None, None])
    return views.weight


def int4_linear(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K); not differentiable."""
    bias = weight.with_bias_in(x.dtype).bias
    return epilogue.apply(linear(x, dequantize(weight, x.dtype), bias))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias, float32 by the faster of two libraries; not differentiable."""
    if x.dtype == torch.float32 and cpu_features.prefers_onednn():
        return cpu_features.onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _new_views(dtype: torch.dtype, shape: torch.Size) -> _Views:
    rows, groups, lanes = shape
    size = rows * groups * lanes * PLANES
    # A tensor born in inference mode could not be written to outside of it.
    with torch.inference_mode(False):
        memory = _scratch.memory.get(dtype)
        if memory is None or memory.numel() < size:
            for key in [key for key in _scratch.views if key[0] == dtype]:
                del _scratch.views[key]
            memory = _scratch.memory[dtype] = torch.empty(size, dtype=dtype, device="cpu")
        values = memory[:size].view(rows, groups, PLANES, lanes)
        views = _Views(values.view(torch.int32), values, values.view(rows, groups * PLANES * lanes))
    _scratch.views[dtype, shape] = views
    return views
