"""The linears as PyTorch operators: schema, the code of each device, and shapes for compilers.

They record no gradient. `dispatch` says which calls come here.

What follows a linear in a block may be asked of it: the GELU of its output, or its addition to
the tokens. A GPU's kernels do that while the sums are in registers; elsewhere it is a second step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cpu, cpu_integer, fp8, integer, reference
from .library import register
from .requantize import requantize

Linear = Callable[..., Tensor]


def activated(y: Tensor, gelu: bool) -> Tensor:
    """Return `y`, turned into its exact GELU in place if asked to."""
    return torch.ops.aten.gelu_(y) if gelu else y


def plain_int4_linear_int8(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    """Return what `dispatch.int4_linear_int8` does, by plain PyTorch."""
    q8, row_scale = requantize(qweight, scales, zeros)
    return integer.integer_linear(x, q8.t(), row_scale, bias, 8)


def _int4_linear(x: Tensor, *weight: Tensor | None) -> Tensor:
    path = cpu if x.dtype in cpu.DTYPES else reference
    return path.int4_linear(x, *weight)


def _with_gelu(linear: Linear) -> Linear:
    def run(*arguments: Any) -> Tensor:
        *inputs, gelu = arguments
        return activated(linear(*inputs), gelu)

    return run


def _added(linear: Linear) -> Callable[..., None]:
    def run(total: Tensor, x: Tensor, gamma: Tensor, *weight: Any) -> None:
        total.addcmul_(linear(x, *weight), gamma.to(total.dtype))

    return run


def _rows_of_words(x: Tensor, qweight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], qweight.shape[0])


def _columns_of_integers(x: Tensor, qweight: Tensor, *_: Any) -> Tensor:
    packed = 1 if qweight.dtype == torch.int8 else 2
    return x.new_empty(*x.shape[:-1], qweight.shape[1] * packed)


def _nothing(*_: Any) -> None:
    pass


_INT4 = "Tensor qweight, Tensor scales, Tensor? bias, Tensor? zeros"
_INTEGER = "Tensor qweight, Tensor scales, Tensor? bias, int activation_bits, Tensor clip"
_ADD = "Tensor(a!) total, Tensor x, Tensor gamma"

int4_linear = register(
    f"int4_linear(Tensor x, {_INT4}, bool gelu) -> Tensor",
    cpu=_with_gelu(_int4_linear),
    cuda="cuda:int4_linear",
    plain=_with_gelu(reference.int4_linear),
    fake=_rows_of_words,
)
int4_linear_int8 = register(
    f"int4_linear_int8(Tensor x, {_INT4}, bool gelu) -> Tensor",
    cpu=_with_gelu(cpu_integer.int4_linear_int8),
    cuda="cuda:int4_linear_int8",
    plain=_with_gelu(plain_int4_linear_int8),
    fake=_rows_of_words,
)
int4_linear_int8_add_ = register(
    f"int4_linear_int8_add_({_ADD}, {_INT4}) -> ()",
    cpu=_added(cpu_integer.int4_linear_int8),
    cuda="cuda:int4_linear_int8_add_",
    plain=_added(plain_int4_linear_int8),
    fake=_nothing,
)
int4_linear_fp8 = register(
    f"int4_linear_fp8(Tensor x, {_INT4}, bool gelu) -> Tensor",
    cpu=_with_gelu(fp8.int4_linear_fp8),
    cuda="cuda:int4_linear_fp8",
    plain=_with_gelu(fp8.int4_linear_fp8),
    fake=_rows_of_words,
)
integer_linear = register(
    f"integer_linear(Tensor x, {_INTEGER}, bool gelu) -> Tensor",
    cpu=_with_gelu(cpu_integer.integer_linear),
    cuda="cuda:integer_linear",
    plain=_with_gelu(integer.integer_linear),
    fake=_columns_of_integers,
)
integer_linear_add_ = register(
    f"integer_linear_add_({_ADD}, {_INTEGER}) -> ()",
    cpu=_added(cpu_integer.integer_linear),
    cuda="cuda:integer_linear_add_",
    plain=_added(integer.integer_linear),
    fake=_nothing,
)
