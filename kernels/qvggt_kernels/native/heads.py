"""Kernels for heads of 64 numbers: attention, and the norm and rotation of queries and keys."""

from __future__ import annotations

from ctypes import c_int64

import torch
from torch import Tensor

from ..reference.attention import check_heads
from ..reference.rotary import HeadNorm, Rotation, check_parts
from ..reference.rotary import check_heads as check_heads_and_angles
from . import is_usable, run
from .arguments import aligned, names, require

_HEAD_DIM = 64
"""Width of the heads that these kernels are made for, VGGT's."""

_STRIDES = c_int64 * 9

_ATTENTION = {torch.bfloat16: "attention", torch.float32: "float_attention"}
_NORM_AND_ROTATION = {torch.bfloat16: "qk_norm_rope", torch.float32: "float_qk_norm_rope"}
"""Kernels by the dtype that they take."""


def attention_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes of queries, keys and values that there are kernels for here."""
    return tuple(dtype for dtype, name in _ATTENTION.items() if is_usable(name))


def supports_attention(q: Tensor, k: Tensor, v: Tensor, in_integers: bool = False) -> bool:
    """Return whether `attention`, or `int8_attention`, computes this."""
    return (
        q.dtype == k.dtype == v.dtype
        and q.dtype in attention_dtypes()
        and not (in_integers and q.dtype != torch.bfloat16)
        and q.shape[3] == _HEAD_DIM
        and k.shape[2] > 0
        and all(part.stride(3) == 1 for part in (q, k, v))
    )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / 8) v with an online softmax in float32.

    Args:
        q: (B, H, L, 64), any strides but the last, which is 1; float32, or bfloat16 with AVX-512.
        k: (B, H, T, 64) likewise.
        v: (B, H, T, 64) likewise.

    Returns:
        (B, H, L, 64) of the dtype of q, laid out as (B, L, H, 64).

    Raises:
        ValueError: the arguments do not fit together.
    """
    return _attention(q, k, v, in_integers=False)


def int8_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `attention` with queries and keys in 8-bit integers; bfloat16, with AVX-512 only."""
    require(q.dtype == torch.bfloat16, f"int8_attention takes bfloat16, not {q.dtype}")
    return _attention(q, k, v, in_integers=True)


def _attention(q: Tensor, k: Tensor, v: Tensor, in_integers: bool) -> Tensor:
    check_heads(q, k, v)
    batch, heads, length, dim = q.shape
    require(
        dim == _HEAD_DIM and q.dtype in _ATTENTION and all(p.stride(3) == 1 for p in (q, k, v)),
        f"heads of {dim} numbers of {q.dtype} with strides {q.stride()}, {k.stride()} and "
        f"{v.stride()}: these kernels take {_HEAD_DIM} of {names(_ATTENTION)} that lie side by "
        "side",
    )
    q, k, v = aligned(q), aligned(k), aligned(v)
    out = torch.empty(batch, length, heads, dim, dtype=q.dtype, device="cpu")
    strides = _STRIDES(*(part.stride(axis) for part in (q, k, v) for axis in range(3)))
    kinds = (in_integers,) if q.dtype == torch.bfloat16 else ()
    sizes = (batch, heads, length, k.shape[2])
    run(_ATTENTION[q.dtype], q, k, v, out, strides, *kinds, *sizes)
    return out.transpose(1, 2)


def supports_qk_norm_rope(qkv: Tensor, norm: HeadNorm) -> bool:
    """Return whether `qk_norm_rope_` computes this."""
    return (
        qkv.dtype in _NORM_AND_ROTATION
        and qkv.shape[5] == _HEAD_DIM
        and qkv.numel() > 0
        and (norm.query_weight is None or norm.query_weight.dtype == qkv.dtype)
        and is_usable(_NORM_AND_ROTATION[qkv.dtype])
    )


def qk_norm_rope_(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Compute what `reference.rotary.qk_norm_rope_` does; the norm may differ in a last bit.

    Raises:
        ValueError: the arguments do not fit together.
    """
    check_heads_and_angles(qkv, norm, rotation)
    (tokens, _, heads, dim), dtype = qkv.shape[2:], qkv.dtype
    require(
        dim == _HEAD_DIM and dtype in _NORM_AND_ROTATION,
        f"heads of {dim} numbers of {dtype}: these kernels take {_HEAD_DIM} of "
        f"{names(_NORM_AND_ROTATION)}",
    )
    check_parts("gains and biases", norm[:4], (dim,), qkv.device, dtype)
    frames = qkv.shape[0] * qkv.shape[1]
    parts = (None if part is None else aligned(part) for part in (*norm[:4], *rotation))
    qw, qb, kw, kb, cos, sin = parts
    run(_NORM_AND_ROTATION[dtype], qkv, qw, qb, kw, kb, norm.eps, cos, sin, frames, tokens, heads)
