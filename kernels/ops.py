"""The linears as PyTorch operators: schema, the code of each device, and shapes for compilers.

They record no gradient. `dispatch` says which calls come here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu, cpu_integer, integer, reference
from .library import register
from .requantize import requantize


def _int4_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    path = cpu if x.dtype in cpu.DTYPES else reference
    return path.int4_linear(x, qweight, scales, bias, zeros)


def _plain_int4_linear_int8(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    q8, row_scale = requantize(qweight, scales, zeros)
    return integer.integer_linear(x, q8.t(), row_scale, bias, 8)


def _rows_of_words(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], qweight.shape[0])


def _columns_of_integers(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    clip: Tensor,
) -> Tensor:
    packed = 1 if qweight.dtype == torch.int8 else 2
    return x.new_empty(*x.shape[:-1], qweight.shape[1] * packed)


int4_linear = register(
    "int4_linear(Tensor x, Tensor qweight, Tensor scales, Tensor? bias, Tensor? zeros) -> Tensor",
    cpu=_int4_linear,
    cuda="cuda:int4_linear",
    plain=reference.int4_linear,
    fake=_rows_of_words,
)
int4_linear_int8 = register(
    "int4_linear_int8(Tensor x, Tensor qweight, Tensor scales, Tensor? bias, Tensor? zeros)"
    " -> Tensor",
    cpu=cpu_integer.int4_linear_int8,
    cuda="cuda:int4_linear_int8",
    plain=_plain_int4_linear_int8,
    fake=_rows_of_words,
)
integer_linear = register(
    "integer_linear(Tensor x, Tensor qweight, Tensor scales, Tensor? bias, int activation_bits,"
    " Tensor clip) -> Tensor",
    cpu=cpu_integer.integer_linear,
    cuda="cuda:integer_linear",
    plain=integer.integer_linear,
    fake=_columns_of_integers,
)
