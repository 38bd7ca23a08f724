"""Kernels in C++ for x86 and ARM processors, behind a plain C interface.

Those for AVX-512 with BF16 and VNNI compute in bfloat16 or in 8-bit integers. Those for AVX2, with
AVX-VNNI or without, and those for ARM with dot products of 8-bit integers compute in float32 or in
8-bit integers, and leave to PyTorch what it does as fast. One library holds all of an architecture,
and the processor decides which run.

They are built when the package is installed where a C++ compiler is available, load without
PyTorch's headers, and run on PyTorch's own OpenMP threads. Everything that they compute, other
modules of this package compute without them: `backends` calls the `supports_...` of a kernel first.

`QVGGT_NATIVE=0` in the environment disables them, `QVGGT_NATIVE=avx_vnni`, `avx2` or `dotprod`
takes those for fewer instructions than the processor has.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..integer import levels, unpack_integer
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight
from .arguments import aligned, fitting, names, require
from .instruction_sets import STATUS, SUFFIXES, instruction_set, missing

_INTERFACE = 2
"""Number of the functions and arguments below; see `interface.cpp`."""

_COLUMNS = 64
"""Columns come in multiples of this: a vector of 8-bit numbers."""

_ROWS = 64
"""Tokens up to which a float32 linear waits for its weights rather than for arithmetic."""

_DENSE = (torch.bfloat16, torch.float32)
"""Dtypes of tokens and weights that `dense_linear` takes."""

_MAX_SIZE = 2**31


_SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "attention": (c_int, [c_void_p] * 5 + [c_int] + [c_int64] * 4),
    "convolution3x3": (c_int, [c_void_p] * 5 + [c_int] + [c_int64] * 5),
    "dense_linear": (c_int, [c_void_p] * 4 + [c_int] + [c_int64] * 3),
    "dense_output": (c_int, [c_void_p] * 8 + [c_int] + [c_int64] * 8),
    "float_attention": (c_int, [c_void_p] * 5 + [c_int64] * 4),
    "float_qk_norm_rope": (None, [c_void_p] * 5 + [c_float] + [c_void_p] * 2 + [c_int64] * 3),
    "int4_linear": (c_int, [c_void_p] * 6 + [c_int64] * 4),
    "int4_linear_float32": (c_int, [c_void_p] * 6 + [c_int64] * 4),
    "int4_linear_rows": (None, [c_void_p] * 6 + [c_int64] * 4),
    "int4_linear_int8": (c_int, [c_void_p] * 7 + [c_int] + [c_int64] * 4),
    "integer_linear": (c_int, [c_void_p] * 6 + [c_int] + [c_int64] * 3),
    "quantize_tokens": (
        None,
        [c_void_p, c_int, c_void_p, c_void_p, c_int64, c_int64] + [c_float] * 2,
    ),
    "layer_norm": (c_int, [c_void_p] * 6 + [c_int, c_float] + [c_int64] * 2),
    "qk_norm_rope": (None, [c_void_p] * 5 + [c_float] + [c_void_p] * 2 + [c_int64] * 3),
}
"""Result and arguments of each kernel, which takes the number of threads besides."""


def load() -> ctypes.CDLL | None:
    """Return the kernels, or None with the reason in `status`."""
    return _loaded()[0]


def status() -> str:
    """Return "in use", or in a few words why there are no kernels."""
    return _loaded()[1]


def shortfall() -> str | None:
    """Return why the kernels are missing where this processor could run them; None if they are not.

    Kernels that the environment disables are not missing.
    """
    if load() is not None or not is_supported() or os.environ.get("QVGGT_NATIVE") == "0":
        return None
    return status()


def is_supported() -> bool:
    """Return whether this processor has the instructions of any kernel."""
    return instruction_set() is not None


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    return open_library(Path(__file__).parent)


def open_library(directory: Path, interface: int = _INTERFACE) -> tuple[ctypes.CDLL | None, str]:
    """Return the kernels of a directory, or None, and the `status`.

    Args:
        directory: of the built library.
        interface: that it has to be built for.
    """
    if os.environ.get("QVGGT_NATIVE", "1") == "0":
        return None, "disabled by QVGGT_NATIVE=0"
    # First of all: loading runs no code of the kernels, but nothing may depend on that.
    if not is_supported():
        return None, f"not for this processor, which lacks {missing()}"
    files = [directory / f"_library{suffix}" for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None, "not built: no working C++ compiler when qvggt was installed"
    try:
        # After PyTorch, whose OpenMP is then found under the same name: one pool of threads.
        kernels = _declare(ctypes.CDLL(str(file)), interface)
        return kernels, STATUS[instruction_set() or "avx512"]
    except (OSError, AttributeError) as error:
        # Without the folder: this goes into results, which others read.
        reason = str(error).replace(str(file), file.name)
        return None, f"not usable, install qvggt again: {reason}"


def _declare(kernels: ctypes.CDLL, interface: int) -> ctypes.CDLL:
    # A library that was built from other sources would misread its arguments.
    if (found := kernels.qvggt_interface()) != interface:
        raise OSError(f"it was built for interface {found}, not {interface}")
    for name, (result, arguments) in _SIGNATURES.items():
        if not _has_kernel(name):
            continue
        function = getattr(kernels, _symbol(name))
        function.restype = result
        function.argtypes = [*arguments, c_int]
    return kernels


def _suffixes() -> dict[str, str]:
    chosen = instruction_set()
    return {} if chosen is None else SUFFIXES[chosen]


def _symbol(name: str) -> str:
    return f"qvggt_{name}{_suffixes()[name]}"


def _has_kernel(name: str) -> bool:
    return name in _suffixes()


# Compilers take what there is for constant: they cannot follow questions to the processor.
@torch.compiler.assume_constant_result
def float_lanes() -> int:
    """Return what numbers of channels are multiples of for kernels of float32: 16 with AVX-512."""
    return 16 if instruction_set() == "avx512" else 8


@torch.compiler.assume_constant_result
def is_usable(name: str) -> bool:
    """Return whether there is a kernel of a name here."""
    return load() is not None and _has_kernel(name)


def supports_dense_linear(x: Tensor, weight: Tensor) -> bool:
    """Return whether `dense_linear` computes this, faster than PyTorch: for many tokens."""
    fits = weight.shape[-1] % _COLUMNS == 0 and x.shape[-1] == weight.shape[-1]
    many = x.numel() > _ROWS * weight.shape[-1]
    plain = x.dtype == weight.dtype and x.dtype in _DENSE
    return fits and many and plain and is_usable("dense_linear")


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias (..., N), all bfloat16 or float32, for x (..., K) and weight (N, K).

    Raises:
        ValueError: the arguments do not fit together.
    """
    (outputs, columns), dtype = weight.shape, x.dtype
    kinds = {(part.dtype, part.device) for part in (x, weight, bias) if part is not None}
    require(
        columns % _COLUMNS == 0
        and x.shape[-1:] == (columns,)
        and dtype in _DENSE
        and len(kinds) == 1
        and (bias is None or bias.shape == (outputs,)),
        f"tokens {tuple(x.shape)} {x.dtype} and a weight {tuple(weight.shape)} {weight.dtype}: "
        f"this kernel takes {names(_DENSE)} of multiples of {_COLUMNS} columns that fit together",
    )
    out = torch.empty(*x.shape[:-1], outputs, dtype=dtype, device="cpu")
    tokens, weight = (aligned(part.contiguous()) for part in (x, weight))
    bias = None if bias is None else aligned(bias.contiguous())
    if out.numel():
        sizes = (dtype == torch.float32, out.numel() // outputs, outputs, columns)
        run("dense_linear", tokens, weight, bias, out, *sizes)
    return out


def supports_int4_linear(x: Tensor, weight: PackedWeight) -> bool:
    """Return whether `int4_linear` computes this, faster than by unpacking the whole weight."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.dtype == torch.float32:
        few = 0 < rows <= _ROWS
        return rows > 0 and is_usable("int4_linear_rows" if few else "int4_linear_float32")
    fits = x.dtype == torch.bfloat16 and weight.columns % _COLUMNS == 0
    return fits and rows > 0 and is_usable("int4_linear")


def int4_linear(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), bfloat16 or float32.

    bfloat16 weights are rounded as the reference rounds them; float32 ones are exact. Sums are
    float32 in either.

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, (qweight, scales, bias, zeros), out = fitting(
        x, weight, x.dtype, 1 if x.dtype == torch.float32 else _COLUMNS
    )
    if not out.numel():
        return epilogue.apply(out)
    rows = len(tokens)
    name = "int4_linear" if x.dtype == torch.bfloat16 else _float32_kernel(rows)
    run(name, tokens, qweight, scales, zeros, bias, out, rows, *qweight.shape)
    return epilogue.apply(out)


def _float32_kernel(rows: int) -> str:
    many = rows > _ROWS and _has_kernel("int4_linear_float32")
    return "int4_linear_float32" if many else "int4_linear_rows"


def supports_integer_linear(x: Tensor, columns: int) -> bool:
    """Return whether the integer linears compute this."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and columns % _COLUMNS == 0
        and load() is not None
    )


def int4_linear_int8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return what `reference.linear.int4_linear_int8` does, bit for bit.

    With AVX2 alone, what `reference.linear.int4_linear_int8_by_group` does.

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, (qweight, scales, bias, zeros), out = fitting(x, weight, torch.float32, _COLUMNS)
    if not out.numel():
        return epilogue.apply(out)
    q, steps = _quantize(tokens, 127, 1.0)
    sizes = (x.dtype == torch.float32, len(q), *qweight.shape)
    run("int4_linear_int8", q, steps, qweight, scales, zeros, bias, out, *sizes)
    return epilogue.apply(out)


def integer_linear(x: Tensor, weight: IntegerWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return what `reference.linear.integer_linear` does, bit for bit.

    Raises:
        PackingError: the arguments do not fit together.
    """
    weight.check(x)
    weight = weight._replace(qweight=unpack_integer(weight.qweight), scales=weight.scales.float())
    tokens, (qweight, scales, bias, *_), out = fitting(x, weight, torch.float32, _COLUMNS)
    if not out.numel():
        return epilogue.apply(out)
    columns, outputs = qweight.shape
    q, steps = _quantize(tokens, levels(weight.activation_bits), float(weight.clip))
    sizes = (x.dtype == torch.float32, len(q), outputs, columns)
    run("integer_linear", q, steps, qweight, scales, bias, out, *sizes)
    return epilogue.apply(out)


def _quantize(tokens: Tensor, levels: int, clip: float) -> tuple[Tensor, Tensor]:
    count, columns = tokens.shape
    q = torch.empty(count, columns, dtype=torch.uint8, device="cpu")
    steps = torch.empty(count, dtype=torch.float32, device="cpu")
    wide = tokens.dtype == torch.float32
    run("quantize_tokens", tokens, wide, q, steps, count, columns, levels, clip)
    return q, steps


def run(name: str, *arguments: Any) -> None:
    """Call a kernel on PyTorch's threads; it releases the interpreter.

    Raises:
        ValueError: a tensor is not in the CPU's memory, a size is none that the kernels count, or
            there is no such kernel for the instructions that are used.
        RuntimeError: there are no kernels.
        MemoryError: none is left for a thread's scratch.
    """
    for part in arguments:
        if isinstance(part, Tensor):
            require(
                part.is_cpu and part.layout == torch.strided and not part.is_neg(),
                f"{name} takes plain tensors of the CPU, not one of {part.layout} on {part.device}",
            )
        elif isinstance(part, int):
            require(part < _MAX_SIZE, f"{name} counts to {_MAX_SIZE}, not {part}")
    library = load()
    if library is None:
        raise RuntimeError(f"there is no {name} for this processor: {status()}")
    require(_has_kernel(name), f"there is no {name} for {instruction_set()}: PyTorch computes it")
    if _call(getattr(library, _symbol(name)), *arguments, torch.get_num_threads()):
        raise MemoryError(f"no memory for the scratch of {name}: use a smaller window or image")


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with the addresses of tensors; tests put a processor of their own here."""
    return function(*(part.data_ptr() if isinstance(part, Tensor) else part for part in arguments))
