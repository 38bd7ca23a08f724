"""Calls the kernels with random arguments, most of which do not fit together.

    cd test && python -m support.random_calls --seed 0 --calls 200

Each call either returns what plain PyTorch computes or raises one of our errors. What a call does
to memory shows in the process: run it in one of its own, best with a library that was built with
AddressSanitizer (`--library DIRECTORY`, see `torture.kernels`). The last line of the output is a
JSON object with what happened.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import qvggt_kernels as kernels
import torch
from qvggt_kernels import native, operators
from qvggt_kernels.native import heads, norms
from qvggt_kernels.reference import normalise
from torch.nn import functional as F

from support.weights import integer_weight, normal, packed_weight

ERRORS = (kernels.PackingError, ValueError, MemoryError)
"""What the kernels raise on purpose."""

LINEARS = ("int4_linear", "int4_linear_int8", "integer_linear")
ATTENTIONS = ("attention", "int8_attention")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ODD_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int64, torch.bool, torch.complex64)
ALONE = {
    "dense_linear": (native.dense_linear, F.linear),
    "layer_norm_add_": (norms.layer_norm_add_, normalise.layer_norm_add_),
}
"""Kernels that are called as such alone, with what they are compared with: their public functions
leave what does not fit together to PyTorch and its errors."""
TOLERANCE = 2e-2
"""Of the norm of a result: queries and probabilities may round to either side."""


class Call(NamedTuple):
    """A call: operator, flat arguments, and how they become those of its function."""

    name: str
    arguments: list[Any]
    bundle: Callable[[list[Any]], tuple[Any, ...]]
    in_place: bool = False


def random_call(draw: random.Random) -> Call:
    """A call whose arguments fit together."""
    alone = tuple(ALONE) if native.load() is not None else ()
    name = draw.choice((*LINEARS, *ATTENTIONS, "qk_norm_rope_", *alone))
    dtype = draw.choice(DTYPES[:2] if draw.random() < 0.8 else DTYPES)
    seed = draw.randrange(1000)
    if name in ALONE:
        return _random_step(draw, name, dtype, seed)
    if name in LINEARS:
        return _random_linear(draw, name, dtype, seed)
    if name in ATTENTIONS:
        batch, heads = draw.randint(0, 2), draw.randint(1, 3)
        queries, keys = (draw.choice((0, 1, 5, 7, 64, 65, 130)) for _ in range(2))
        dim = draw.choice((64, 64, 64, 32, 16))
        lengths = (queries, keys or 1, keys or 1)
        parts = [
            normal(batch, length, heads, dim, dtype=dtype, seed=seed + i).transpose(1, 2)
            for i, length in enumerate(lengths)
        ]
        return Call(name, parts, tuple)
    batch, frames, tokens, heads = (draw.randint(0, 3) or 1 for _ in range(4))
    dim = draw.choice((64, 64, 32, 16))
    qkv = normal(batch, frames, tokens, 3, heads, dim, dtype=dtype, seed=seed)
    norms = [normal(dim, dtype=dtype, seed=i) if draw.random() < 0.8 else None for i in range(4)]
    norms = norms if None not in norms else [None] * 4
    angles = normal(tokens, 1, dim, seed=seed)
    tables = [angles.cos(), angles.sin()] if draw.random() < 0.8 else [None, None]
    flat = [qkv, *norms, 1e-5, *tables]
    return Call(
        name,
        flat,
        lambda a: (a[0], kernels.HeadNorm(*a[1:6]), kernels.Rotation(*a[6:])),
        in_place=True,
    )


def _random_step(draw: random.Random, name: str, dtype: torch.dtype, seed: int) -> Call:
    columns, rows = 64 * draw.randint(1, 4), draw.choice((0, 1, 2, 63, 64, 65, 130))
    if name == "dense_linear":
        bias = normal(rows, dtype=dtype) if draw.random() < 0.5 else None
        x, weight = normal(draw.choice((0, 1, 7, 65)), columns), normal(rows, columns, seed=seed)
        return Call(name, [x.to(dtype), weight.to(dtype), bias], tuple)
    x, branch = (normal(rows, columns, dtype=dtype, seed=seed + i) for i in range(2))
    parts = [normal(columns, dtype=dtype, seed=seed + i) for i in range(3)]
    return Call(name, [x, branch, *parts, 1e-5], tuple)


def _random_linear(draw: random.Random, name: str, dtype: torch.dtype, seed: int) -> Call:
    group = draw.choice(kernels.GROUP_SIZES)
    columns, rows = group * draw.randint(1, 4), draw.choice((0, 1, 2, 63, 64, 65, 130))
    shape = [draw.choice((0, 1, 2, 3, 7, 8, 9, 65)) for _ in range(draw.randint(0, 2))]
    x = normal(*shape, columns, dtype=dtype, seed=seed)
    bias = normal(rows, dtype=dtype, seed=seed) if draw.random() < 0.5 else None
    if name == "integer_linear":
        bits = draw.choice((8, 8, 4))
        rows += rows % 2
        bias = None if bias is None else normal(rows, dtype=dtype, seed=seed)
        weight = integer_weight(rows, columns, bits, bias=bias, activation_bits=draw.choice((8, 4)))
        flat = [x, *weight[:-1], torch.tensor(draw.choice((1.0, 0.5)))]
        return Call(name, flat, lambda a: (a[0], kernels.IntegerWeight(*a[1:])))
    packed = packed_weight(rows, columns, group, zeros=draw.random() < 0.5, bias=bias, seed=seed)
    return Call(name, [x, *packed], lambda a: (a[0], kernels.PackedWeight(*a[1:])))


def mutate(draw: random.Random, call: Call) -> None:
    """Change an argument, so that it may not fit the others."""
    index = draw.randrange(len(call.arguments))
    argument = call.arguments[index]
    if isinstance(argument, torch.Tensor):
        change = draw.choice((_shape, _shape, _dtype, _strides, _device, _values, _alignment))
        # Not every tensor can be changed in every way.
        with contextlib.suppress(RuntimeError, TypeError, IndexError):
            call.arguments[index] = change(draw, argument)
    elif isinstance(argument, int):
        call.arguments[index] = draw.choice((-8, 0, 1, 3, 5, 16, 2**31, 2**40))
    elif isinstance(argument, float):
        call.arguments[index] = draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
    else:
        call.arguments[index] = normal(draw.randint(0, 130))


def _shape(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    shape = list(tensor.shape)
    axis = draw.randrange(len(shape)) if shape else 0
    kind = draw.randrange(4)
    if kind == 0 and shape:
        return tensor.select(axis, 0) if shape[axis] else tensor.flatten()
    if kind == 1:
        return tensor.unsqueeze(axis)
    if kind == 2 and shape:
        return tensor.narrow(axis, 0, draw.randint(0, shape[axis]))
    if shape:
        shape[axis] = draw.choice((0, 1, 2, shape[axis] + 1, 2 * shape[axis]))
    return torch.zeros(shape, dtype=tensor.dtype)


def _dtype(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(draw.choice(DTYPES + ODD_DTYPES))


def _strides(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dim():
        return tensor.expand(draw.randint(0, 70))
    axis = draw.randrange(tensor.dim())
    kind = draw.randrange(3)
    if kind == 0:
        return tensor.transpose(axis, draw.randrange(tensor.dim()))
    if kind == 1:
        return tensor.repeat_interleave(2, axis).unflatten(axis, (-1, 2)).select(axis + 1, 0)
    if tensor.shape[axis]:
        return tensor.narrow(axis, 0, 1).expand(tensor.shape)
    return tensor


def _device(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def _values(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dtype.is_floating_point:
        return torch.randint(0, 256, tensor.shape).to(tensor.dtype)
    value = draw.choice((0.0, float("nan"), float("inf"), -1e30, 1e-40))
    return torch.where(torch.rand(tensor.shape) < 0.1, value, tensor).to(tensor.dtype)


def _alignment(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool or not tensor.numel():
        return tensor
    data = bytearray(b"\0" + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(data, dtype=tensor.dtype, offset=1).view(tensor.shape)


def function_of(draw: random.Random, call: Call) -> Callable[..., Any]:
    """The kernel itself, the public function, or the operator of PyTorch."""
    if call.name in ALONE:
        return ALONE[call.name][0]
    route = draw.randrange(3)
    if route == 0 and native.load() is not None:
        kernel = getattr(native if call.name in LINEARS else heads, call.name)
        return lambda *flat: kernel(*call.bundle(list(flat)))
    if route == 1:
        public = getattr(operators, call.name)
        return lambda *flat: public(*call.bundle(list(flat)))
    operator = getattr(torch.ops.qvggt, call.name)
    return (lambda *flat: operator(*flat, False)) if call.name in LINEARS else operator


def perform(draw: random.Random) -> tuple[str, str]:
    """Make one call; return "explained", "tracebacks" or "lost", and a description."""
    torch.manual_seed(draw.randrange(2**31))
    call = random_call(draw)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        mutate(draw, call)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in call.arguments]
    flat = list(call.arguments)
    if call.in_place and isinstance(flat[0], torch.Tensor):
        # A tensor that lies over itself cannot be written to.
        flat[0] = flat[0].clone(memory_format=torch.preserve_format)
    try:
        with torch.no_grad():
            found = function_of(draw, call)(*flat)
    except ERRORS as error:
        return "explained", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "tracebacks", f"{describe(call)}: {traceback.format_exc(limit=-3)}: {error}"
    found = flat[0] if call.in_place else found
    return _compared(call, before, found)


def _compared(call: Call, before: list[Any], found: Any) -> tuple[str, str]:
    """Compare a result with plain PyTorch's."""
    arguments = call.bundle(before)
    if any(isinstance(a, torch.Tensor) and a.is_meta for a in before):
        return ("explained", "meta") if found.is_meta else ("lost", describe(call))
    try:
        with torch.no_grad():
            expected = _reference(call.name)(*arguments)
    except Exception as error:
        return "lost", f"{describe(call)}: plain PyTorch refuses it: {error!r}"
    expected = before[0] if call.in_place else expected
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return "lost", f"{describe(call)}: {tuple(found.shape)} {found.dtype}"
    exact, given = expected.double(), found.double()
    if not bool(torch.isfinite(exact).all()) or float(exact.abs().sum()) > 1e30:
        return "explained", "not finite"
    # A bias may cancel most of a product, and its rounding stays.
    bias = getattr(arguments[1], "bias", None) if len(arguments) > 1 else None
    size = float(exact.norm()) + (0.0 if bias is None else float(bias.double().norm()))
    if float((exact - given).norm()) > TOLERANCE * size + 1e-30:
        return "lost", f"{describe(call)}: off by {float((exact - given).norm())}"
    return "explained", "equal"


def _reference(name: str) -> Callable[..., Any]:
    if name in ALONE:
        return ALONE[name][1]
    return functools.partial(getattr(operators, name), backend=kernels.Backend.REFERENCE)


def describe(call: Call) -> str:
    """The call in words."""
    return (
        f"{call.name}("
        + ", ".join(
            f"{tuple(a.shape)} {a.dtype} {a.stride()} {a.device}"
            if isinstance(a, torch.Tensor)
            else repr(a)
            for a in call.arguments
        )
        + ")"
    )


def run(seed: int, calls: int) -> dict[str, Any]:
    """Make calls; return what became of them."""
    draw = random.Random(seed)
    figures: dict[str, Any] = {"cases": 0, "explained": 0, "tracebacks": 0, "lost": 0}
    figures |= {"equal": 0, "slowest_s": 0.0, "examples": []}
    for _ in range(calls):
        start = time.monotonic()
        outcome, description = perform(draw)
        figures["slowest_s"] = max(figures["slowest_s"], time.monotonic() - start)
        figures["cases"] += 1
        figures[outcome] += 1
        figures["equal"] += description == "equal"
        if outcome != "explained" and len(figures["examples"]) < 5:
            figures["examples"].append(description)
    return figures


def main() -> None:
    """Make calls and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--library", type=Path, help="directory of the built library to call")
    arguments = parser.parse_args()
    if arguments.library is not None:
        library, status = native.open_library(arguments.library)
        assert library is not None, status
        native.load = lambda: library
    print(json.dumps(run(arguments.seed, arguments.calls)))


if __name__ == "__main__":
    main()
