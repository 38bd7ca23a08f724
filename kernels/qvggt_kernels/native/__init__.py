"""Kernels in C++ for x86 processors with AVX-512, BF16 and VNNI, behind a plain C interface.

They are built when the package is installed where a C++ compiler is at hand, load without PyTorch's
headers, and run on PyTorch's own OpenMP threads. Everything that they compute, other modules of
this package compute without them: callers ask `library` and the `takes_...` of a kernel first.

`QVGGT_NATIVE=0` in the environment leaves them out.
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

from ..packing import PLANES, PackingError, group_size_of

_INTERFACE = 1
"""Number of the functions and arguments below; see `interface.cpp`."""

_HEAD_DIM = 64
"""Width of the heads that these kernels are made for, VGGT's."""

_COLUMNS = 64
"""Columns come in multiples of this: a vector of 8-bit numbers."""

_ROWS = 64
"""Tokens up to which a float32 linear waits for its weights rather than for arithmetic."""

_STRIDES = c_int64 * 9


def library() -> ctypes.CDLL | None:
    """Return the kernels, or None where `status` says why there are none."""
    return _load()[0]


def status() -> str:
    """Say in a few words whether the kernels are there, and if not, why."""
    return _load()[1]


def shortfall() -> str | None:
    """Say why the kernels are missing where this processor could run them; None if all is well."""
    if library() is not None or not _supported() or os.environ.get("QVGGT_NATIVE") == "0":
        return None
    return status()


def _supported() -> bool:
    return torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("QVGGT_NATIVE", "1") == "0":
        return None, "left out by QVGGT_NATIVE=0"
    # First of all: loading runs no code of the kernels, but nothing shall depend on that.
    if not _supported():
        return None, "not for this processor, which lacks AVX-512 with BF16 and VNNI"
    files = [Path(__file__).with_name(f"_library{suffix}") for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None, "not built: no working C++ compiler when qvggt was installed"
    try:
        # After PyTorch, whose OpenMP is then found under the same name: one pool of threads.
        return _declare(ctypes.CDLL(str(file))), "in use"
    except (OSError, AttributeError) as error:
        return None, f"not usable, install qvggt again: {error}"


def _declare(kernels: ctypes.CDLL) -> ctypes.CDLL:
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
    # A library that was built from other sources would take arguments for what they are not.
    if (found := kernels.qvggt_interface()) != _INTERFACE:
        raise OSError(f"it was built for interface {found}, not {_INTERFACE}")
    for name, (result, arguments) in signatures.items():
        function = getattr(kernels, f"qvggt_{name}")
        function.restype = result
        function.argtypes = [*arguments, c_int]
    return kernels


def takes_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `attention` computes this."""
    return (
        q.dtype == k.dtype == v.dtype == torch.bfloat16
        and q.shape[3] == _HEAD_DIM
        and k.shape[2] > 0
        and all(part.stride(3) == 1 for part in (q, k, v))
        and library() is not None
    )


def attention(q: Tensor, k: Tensor, v: Tensor, in_integers: bool = False) -> Tensor:
    """Return softmax(q k^T / 8) v with an online softmax in float32.

    Args:
        q: (B, H, L, 64) bfloat16, any strides but the last, which is 1.
        k: (B, H, T, 64) likewise.
        v: (B, H, T, 64) likewise.
        in_integers: multiply queries and keys as `int8_attention` does.

    Returns:
        (B, H, L, 64) bfloat16, laid out as (B, L, H, 64).
    """
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


def takes_int4_linear(x: Tensor, qweight: Tensor) -> bool:
    """Say whether `int4_linear` computes this, and sooner than by unpacking the whole weight."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.dtype == torch.float32:
        return 0 < rows <= _ROWS and library() is not None
    return x.dtype == torch.bfloat16 and rows > 0 and _divides(qweight) and library() is not None


def int4_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    """Return x W^T + bias (..., N) in the dtype of x (..., K), bfloat16 or a few rows of float32.

    bfloat16 weights are rounded as the reference rounds them; float32 ones are exact. Sums are
    float32 in either.

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, qweight, scales, zeros = _fitting(x, qweight, scales, zeros)
    rows, groups, lanes = qweight.shape
    shift = _shift(bias, rows, x.dtype)
    out = torch.empty(len(tokens), rows, dtype=x.dtype, device="cpu")
    name = "int4_linear" if x.dtype == torch.bfloat16 else "int4_linear_rows"
    _run(name, tokens, qweight, scales, zeros, shift, out, len(tokens), rows, groups, lanes)
    return out.view(*x.shape[:-1], rows)


def takes_integer_linear(x: Tensor, columns: int) -> bool:
    """Say whether the integer linears compute this."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and columns % _COLUMNS == 0
        and library() is not None
    )


def int4_linear_int8(
    x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, zeros: Tensor | None
) -> Tensor:
    """Return what `dispatch.int4_linear_int8` does, bit for bit.

    Raises:
        PackingError: the arguments do not fit together.
    """
    tokens, qweight, scales, zeros = _fitting(x, qweight, scales, zeros)
    rows, groups, lanes = qweight.shape
    q, steps = _quantize(tokens, 127, 1.0)
    out = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device="cpu")
    shift = _shift(bias, rows, torch.float32)
    wide = x.dtype == torch.float32
    sizes = (len(q), rows, groups, lanes)
    _run("int4_linear_int8", q, steps, qweight, scales, zeros, shift, out, wide, *sizes)
    return out


def integer_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    levels: int,
    clip: float,
) -> Tensor:
    """Return what `integer.integer_linear` does for an 8-bit weight (K, N), bit for bit.

    Raises:
        PackingError: the arguments do not fit together.
    """
    columns, rows = weight.shape
    if x.shape[-1] != columns or weight.dtype != torch.int8 or scales.shape != (rows,):
        raise PackingError(
            f"tokens {tuple(x.shape)}, weight {tuple(weight.shape)} {weight.dtype} and scales "
            f"{tuple(scales.shape)} do not fit together: (..., K), (K, N) int8 and (N,) do"
        )
    weight, scales = weight.contiguous(), scales.float().contiguous()
    q, steps = _quantize(x.reshape(-1, columns).contiguous(), levels, clip)
    out = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device="cpu")
    shift = _shift(bias, rows, torch.float32)
    wide = x.dtype == torch.float32
    _run("integer_linear", q, steps, weight, scales, shift, out, wide, len(q), rows, columns)
    return out


def takes_qk_norm_rope(qkv: Tensor, weight: Tensor | None) -> bool:
    """Say whether `qk_norm_rope_` computes this."""
    return (
        qkv.dtype == torch.bfloat16
        and qkv.shape[5] == _HEAD_DIM
        and qkv.numel() > 0
        and (weight is None or weight.dtype == torch.bfloat16)
        and library() is not None
    )


def qk_norm_rope_(
    qkv: Tensor,
    qw: Tensor | None,
    qb: Tensor | None,
    kw: Tensor | None,
    kb: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    """Do what `rotary.qk_norm_rope_` does; the norm may differ in a last bit."""
    tokens, _, heads, dim = qkv.shape[2:]
    if not qkv.is_contiguous():
        raise ValueError(f"queries and keys {tuple(qkv.shape)} must be contiguous")
    _check_parts("gains and biases", (qw, qb, kw, kb), dim, torch.bfloat16)
    _check_parts(f"angles for {tokens} tokens", (cos, sin), tokens * dim, torch.float32)
    frames = qkv.shape[0] * qkv.shape[1]
    _run("qk_norm_rope", qkv, qw, qb, kw, kb, eps, cos, sin, frames, tokens, heads)


def _check_parts(what: str, parts: Sequence[Tensor | None], size: int, dtype: torch.dtype) -> None:
    """Refuse parts that are not all there or all None, or not contiguous and of a size and dtype.

    Raises:
        ValueError: says which they are and what is wanted.
    """
    given = [part for part in parts if part is not None]
    if given and (
        len(given) < len(parts)
        or any(p.numel() != size or p.dtype != dtype or not p.is_contiguous() for p in given)
    ):
        found = ", ".join("none" if p is None else f"{tuple(p.shape)} {p.dtype}" for p in parts)
        raise ValueError(f"{what} are {found}: all must be contiguous, {size} numbers of {dtype}")


def _divides(qweight: Tensor) -> bool:
    return qweight.shape[1] * qweight.shape[2] * PLANES % _COLUMNS == 0


def _fitting(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return tokens (M, K) and the parts of a weight, contiguous, after checking that they fit.

    The kernels trust the sizes that they are given.
    """
    group_size_of(qweight, scales)
    columns = qweight.shape[1] * qweight.shape[2] * PLANES
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
    return tokens, qweight.contiguous(), scales.contiguous(), zeros


def _shift(bias: Tensor | None, outputs: int, dtype: torch.dtype) -> Tensor | None:
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
        MemoryError: there is none left for a thread's scratch.
    """
    function = getattr(library(), f"qvggt_{name}")
    given = (part.data_ptr() if isinstance(part, Tensor) else part for part in arguments)
    if function(*given, torch.get_num_threads()):
        raise MemoryError(f"no memory for the scratch of {name}: use a smaller window or image")
