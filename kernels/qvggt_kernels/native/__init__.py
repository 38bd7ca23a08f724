"""Kernels in C++ for x86 processors with AVX-512, BF16 and VNNI, behind a plain C interface.

They are built when the package is installed where a C++ compiler is available, load without
PyTorch's headers, and run on PyTorch's own OpenMP threads. Everything that they compute, other
modules of this package compute without them: `backends` calls the `supports_...` of a kernel first.

`QVGGT_NATIVE=0` in the environment disables them.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..integer import levels, unpack_integer
from ..packing import PackingError, group_size_of
from ..reference.rotary import HeadNorm, Rotation
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight

_INTERFACE = 1
"""Number of the functions and arguments below; see `interface.cpp`."""

_HEAD_DIM = 64
"""Width of the heads that these kernels are made for, VGGT's."""

_COLUMNS = 64
"""Columns come in multiples of this: a vector of 8-bit numbers."""

_ROWS = 64
"""Tokens up to which a float32 linear waits for its weights rather than for arithmetic."""

_STRIDES = c_int64 * 9


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
    """Return whether this processor has the instructions."""
    return torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()


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
        return None, "not for this processor, which lacks AVX-512 with BF16 and VNNI"
    files = [directory / f"_library{suffix}" for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None, "not built: no working C++ compiler when qvggt was installed"
    try:
        # After PyTorch, whose OpenMP is then found under the same name: one pool of threads.
        return _declare(ctypes.CDLL(str(file)), interface), "in use"
    except (OSError, AttributeError) as error:
        return None, f"not usable, install qvggt again: {error}"


def _declare(kernels: ctypes.CDLL, interface: int) -> ctypes.CDLL:
    signatures: dict[str, tuple[Any, Sequence[Any]]] = {
        "attention": (c_int, [c_void_p] * 5 + [c_int] + [c_int64] * 4),
        "int4_linear": (c_int, [c_void_p] * 6 + [c_int64] * 4),
        "int4_linear_rows": (None, [c_void_p] * 6 + [c_int64] * 4),
        "int4_linear_int8": (c_int, [c_void_p] * 7 + [c_int] + [c_int64] * 4),
        "integer_linear": (c_int, [c_void_p] * 6 + [c_int] + [c_int64] * 3),
        "quantize_tokens": (
            None,
            [c_void_p, c_int, c_void_p, c_void_p, c_int64, c_int64] + [c_float] * 2,
        ),
        "qk_norm_rope": (None, [c_void_p] * 5 + [c_float] + [c_void_p] * 2 + [c_int64] * 3),
    }
    # A library that was built from other sources would misread its arguments.
    if (found := kernels.qvggt_interface()) != interface:
        raise OSError(f"it was built for interface {found}, not {interface}")
    for name, (result, arguments) in signatures.items():
        function = getattr(kernels, f"qvggt_{name}")
        function.restype = result
        function.argtypes = [*arguments, c_int]
    return kernels


def supports_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether `attention` computes this."""
    return (
        q.dtype == k.dtype == v.dtype == torch.bfloat16
        and q.shape[3] == _HEAD_DIM
        and k.shape[2] > 0
        and all(part.stride(3) == 1 for part in (q, k, v))
        and load() is not None
    )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / 8) v with an online softmax in float32.

    Args:
        q: (B, H, L, 64) bfloat16, any strides but the last, which is 1.
        k: (B, H, T, 64) likewise.
        v: (B, H, T, 64) likewise.

    Returns:
        (B, H, L, 64) bfloat16, laid out as (B, L, H, 64).

    Raises:
        ValueError: the arguments do not fit together.
    """
    return _attention(q, k, v, in_integers=False)


def int8_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `attention` with queries and keys in 8-bit integers."""
    return _attention(q, k, v, in_integers=True)


def _attention(q: Tensor, k: Tensor, v: Tensor, in_integers: bool) -> Tensor:
    batch, heads, length, dim = q.shape
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != dim:
        raise ValueError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} differ "
            "in more than the length of queries"
        )
    out = torch.empty(batch, length, heads, dim, dtype=q.dtype, device="cpu")
    strides = _STRIDES(*(part.stride(axis) for part in (q, k, v) for axis in range(3)))
    sizes = (batch, heads, length, k.shape[2])
    _run("attention", q, k, v, out, ctypes.addressof(strides), in_integers, *sizes)
    return out.transpose(1, 2)


def supports_int4_linear(x: Tensor, weight: PackedWeight) -> bool:
    """Return whether `int4_linear` computes this, faster than by unpacking the whole weight."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.dtype == torch.float32:
        return 0 < rows <= _ROWS and load() is not None
    fits = x.dtype == torch.bfloat16 and weight.columns % _COLUMNS == 0
    return fits and rows > 0 and load() is not None


def int4_linear(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), bfloat16 or a few rows of float32.

    bfloat16 weights are rounded as the reference rounds them; float32 ones are exact. Sums are
    float32 in either.

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, qweight, scales, zeros = _fitting(x, weight)
    bias = _bias(weight.bias, weight.outputs, x.dtype)
    out = torch.empty(*x.shape[:-1], weight.outputs, dtype=x.dtype, device="cpu")
    name = "int4_linear" if x.dtype == torch.bfloat16 else "int4_linear_rows"
    _run(name, tokens, qweight, scales, zeros, bias, out, len(tokens), *qweight.shape)
    return epilogue.apply(out)


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

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, qweight, scales, zeros = _fitting(x, weight)
    q, steps = _quantize(tokens, 127, 1.0)
    bias = _bias(weight.bias, weight.outputs, torch.float32)
    out = torch.empty(*x.shape[:-1], weight.outputs, dtype=x.dtype, device="cpu")
    sizes = (x.dtype == torch.float32, len(q), *qweight.shape)
    _run("int4_linear_int8", q, steps, qweight, scales, zeros, bias, out, *sizes)
    return epilogue.apply(out)


def integer_linear(x: Tensor, weight: IntegerWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return what `reference.linear.integer_linear` does, bit for bit.

    Raises:
        PackingError: the arguments do not fit together.
    """
    qweight = unpack_integer(weight.qweight)
    columns, outputs = qweight.shape
    if x.shape[-1] != columns or qweight.dtype != torch.int8 or weight.scales.shape != (outputs,):
        raise PackingError(
            f"tokens {tuple(x.shape)}, weight {tuple(qweight.shape)} {qweight.dtype} and scales "
            f"{tuple(weight.scales.shape)} do not fit together: (..., K), (K, N) int8 and (N,) do"
        )
    qweight, scales = qweight.contiguous(), weight.scales.float().contiguous()
    tokens = x.reshape(-1, columns).contiguous()
    q, steps = _quantize(tokens, levels(weight.activation_bits), float(weight.clip))
    bias = _bias(weight.bias, outputs, torch.float32)
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device="cpu")
    sizes = (x.dtype == torch.float32, len(q), outputs, columns)
    _run("integer_linear", q, steps, qweight, scales, bias, out, *sizes)
    return epilogue.apply(out)


def supports_qk_norm_rope(qkv: Tensor, norm: HeadNorm) -> bool:
    """Return whether `qk_norm_rope_` computes this."""
    return (
        qkv.dtype == torch.bfloat16
        and qkv.shape[5] == _HEAD_DIM
        and qkv.numel() > 0
        and (norm.query_weight is None or norm.query_weight.dtype == torch.bfloat16)
        and load() is not None
    )


def qk_norm_rope_(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Compute what `reference.rotary.qk_norm_rope_` does; the norm may differ in a last bit.

    Raises:
        ValueError: the arguments do not fit together.
    """
    tokens, _, heads, dim = qkv.shape[2:]
    if not qkv.is_contiguous():
        raise ValueError(f"queries and keys {tuple(qkv.shape)} must be contiguous")
    _check_parts("gains and biases", norm[:4], dim, torch.bfloat16)
    _check_parts(f"angles for {tokens} tokens", rotation, tokens * dim, torch.float32)
    frames = qkv.shape[0] * qkv.shape[1]
    _run("qk_norm_rope", qkv, *norm, *rotation, frames, tokens, heads)


def _check_parts(what: str, parts: Sequence[Tensor | None], size: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless all are None, or all contiguous and of a size and dtype."""
    given = [part for part in parts if part is not None]
    if given and (
        len(given) < len(parts)
        or any(p.numel() != size or p.dtype != dtype or not p.is_contiguous() for p in given)
    ):
        found = ", ".join("none" if p is None else f"{tuple(p.shape)} {p.dtype}" for p in parts)
        raise ValueError(f"{what} are {found}: all must be contiguous, {size} numbers of {dtype}")


def _fitting(x: Tensor, weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return tokens (M, K) and the parts of a weight, contiguous, after checking that they fit.

    The kernels trust the sizes that they are given.
    """
    group_size_of(weight.qweight, weight.scales)
    columns, scales, zeros = weight.columns, weight.scales, weight.zeros
    if x.shape[-1] != columns:
        raise PackingError(f"tokens {tuple(x.shape)} do not have the weight's {columns} columns")
    if zeros is not None:
        if zeros.shape != scales.shape or zeros.dtype != torch.uint8:
            raise PackingError(
                f"zero points are {tuple(zeros.shape)} {zeros.dtype}, "
                f"not {tuple(scales.shape)} uint8"
            )
        zeros = zeros.contiguous()
    tokens = x.reshape(-1, columns).contiguous()
    return tokens, weight.qweight.contiguous(), scales.contiguous(), zeros


def _bias(bias: Tensor | None, outputs: int, dtype: torch.dtype) -> Tensor | None:
    if bias is None:
        return None
    if bias.shape != (outputs,):
        raise PackingError(f"a bias is {tuple(bias.shape)}, not ({outputs},)")
    return bias.to(dtype).contiguous()


def _quantize(tokens: Tensor, levels: int, clip: float) -> tuple[Tensor, Tensor]:
    count, columns = tokens.shape
    q = torch.empty(count, columns, dtype=torch.uint8, device="cpu")
    steps = torch.empty(count, dtype=torch.float32, device="cpu")
    wide = tokens.dtype == torch.float32
    _run("quantize_tokens", tokens, wide, q, steps, count, columns, levels, clip)
    return q, steps


def _run(name: str, *arguments: Tensor | float | None) -> None:
    """Call a kernel on PyTorch's threads; it releases the interpreter.

    Raises:
        MemoryError: none is left for a thread's scratch.
    """
    function = getattr(load(), f"qvggt_{name}")
    given = (part.data_ptr() if isinstance(part, Tensor) else part for part in arguments)
    if function(*given, torch.get_num_threads()):
        raise MemoryError(f"no memory for the scratch of {name}: use a smaller window or image")
