"""Integer linears on the CPU: oneDNN's product between passes that stay in a cache.

The product of 8-bit integers, summed in 32 bits, is exact; on cores with VNNI it takes less than
half the time of a bfloat16 product, and on any it is faster than a float32 one. What is left is
to make integers of floats and floats of integers. PyTorch does that in passes over memory, so
they run over slices that fit into a core's second-level cache: unpacking and requantizing a 4-bit
weight, quantizing tokens, scaling the sums. Every step is the reference's, in its order, so that
every bit is too (`reference.linear`, `integer.quantize_tokens`).

Every thread keeps one scratch per use, as large as the largest so far; nothing that is returned
lies in it.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor

from .. import cpu_features
from ..integer import levels, unpack_integer
from ..packing import PLANES, ZERO
from ..reference.linear import integer_product
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight
from .linear import ENCODINGS, SHIFTS

_PRODUCT_ROWS = 1024
"""Tokens of one product: wide enough for a dense GEMM, and its sums are still in a cache when
they are scaled."""


def int4_linear_int8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), the weight requantized each time.

    Four bits stay four bits in memory: requantizing takes about a tenth of the time of the product
    with two frames' tokens.
    """
    return epilogue.apply(_multiply(x, requantize(weight)))


def integer_linear(x: Tensor, weight: IntegerWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return what `reference.linear.integer_linear` does, bit for bit."""
    if weight.qweight.dtype != torch.int8:
        columns, half = weight.qweight.shape
        whole = _scratch.take("weight", torch.int8, columns, 2 * half)
        weight = weight._replace(qweight=unpack_integer(weight.qweight, whole))
    return epilogue.apply(_multiply(x, weight))


def requantize(weight: PackedWeight) -> IntegerWeight:
    """Return what the reference does, bit for bit; its words lie in the thread's scratch."""
    rows, columns = weight.outputs, weight.columns
    _, groups, lanes = weight.qweight.shape
    mask, exponent, zero = ENCODINGS[torch.float32]
    scales = weight.scales.float()[:, :, None, None]
    offset = None
    if weight.zeros is not None:
        offset = (weight.zeros.float() + (zero - ZERO))[:, :, None, None]
    size = max(1, min(rows, cpu_features.slice_size() // columns))
    words = _scratch.take("words", torch.int32, size, groups, PLANES, lanes)
    q8 = _scratch.take("weight", torch.int8, rows, columns)
    row_scale = torch.empty(rows, dtype=torch.float32, device="cpu")
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        word = words[: part.stop - start]
        torch.bitwise_right_shift(weight.qweight[part].unsqueeze(2), SHIFTS, out=word)
        word.bitwise_and_(mask).bitwise_or_(exponent)
        values = word.view(torch.float32)
        values.sub_(zero if offset is None else offset[part]).mul_(scales[part])
        flat = values.view(-1, columns)
        step = _largest(flat).div_(127)
        step = torch.where(step == 0, 1, step)
        row_scale[part] = step[:, 0]
        q8[part] = flat.div_(step).round_()
    return IntegerWeight(q8.t(), row_scale, weight.bias)


def _multiply(x: Tensor, weight: IntegerWeight) -> Tensor:
    """Multiply tokens (..., K) by a weight (K, N) int8, in products of bounded size."""
    columns, outputs = weight.qweight.shape
    tokens = x.reshape(-1, columns)
    y = torch.empty(len(tokens), outputs, dtype=x.dtype, device="cpu")
    if not len(tokens):
        return y.view(*x.shape[:-1], outputs)
    bias = None if weight.bias is None else weight.bias.float()
    for rows, result in zip(tokens.split(_PRODUCT_ROWS), y.split(_PRODUCT_ROWS), strict=True):
        q, step = _quantize(rows, weight.activation_bits, weight.clip)
        _scale(_product(q, weight.qweight), step, weight.scales, bias, result)
    return y.view(*x.shape[:-1], outputs)


def _quantize(x: Tensor, bits: int, clip: Tensor | float) -> tuple[Tensor, Tensor]:
    highest = levels(bits)
    rows, columns = x.shape
    q = _scratch.take("tokens", torch.int8, rows, columns)
    steps = torch.empty(rows, 1, dtype=torch.float32, device="cpu")
    size = max(1, cpu_features.slice_size() // columns)
    parts = zip(x.split(size), q.split(size), steps.split(size), strict=True)
    for source, target, kept in parts:
        values = _scratch.take("floats", torch.float32, *source.shape).copy_(source)
        step = torch.div(_largest(values).mul_(clip), highest, out=kept)
        values.div_(torch.where(step == 0, 1, step)).round_().clamp_(-highest, highest)
        target.copy_(values)
    return q, steps


def _product(q: Tensor, weight: Tensor) -> Tensor:
    if not cpu_features.multiplies_integers():
        return integer_product(q, weight)
    out = _scratch.take("product", torch.int32, q.shape[0], weight.shape[1])
    return torch._int_mm(q, weight, out=out)


def _scale(product: Tensor, step: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor) -> None:
    size = max(1, cpu_features.slice_size() // max(1, product.shape[1]))
    parts = zip(product.split(size), step.split(size), out.split(size), strict=True)
    for sums, steps, target in parts:
        values = _scratch.take("floats", torch.float32, *sums.shape).copy_(sums)
        values.mul_(steps).mul_(scales)
        if bias is not None:
            values.add_(bias)
        target.copy_(values)


def _largest(values: Tensor) -> Tensor:
    """Return the largest magnitude (R, 1) of each row; two reductions beat a pass of `abs`."""
    highest, lowest = values.amax(dim=1, keepdim=True), values.amin(dim=1, keepdim=True)
    return torch.maximum(highest, lowest.neg_())


class _Scratch(threading.local):
    """The calling thread's memory by use."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, use: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return memory of a shape, whatever it holds; the next call with this use has the same."""
        size = prod(shape)
        memory = self._memory.get(use)
        if memory is None or memory.numel() < size:
            # A tensor born in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                memory = self._memory[use] = torch.empty(size, dtype=dtype, device="cpu")
        return memory[:size].view(shape)


_scratch = _Scratch()
