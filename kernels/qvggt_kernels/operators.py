"""The functions that a network calls, each an operator of PyTorch with several implementations.

Without gradients a call is an operator (`torch.ops.qvggt.*`), whose schema has every tensor of a
bundle as an argument of its own; `backends.choose` picks the implementation. With gradients, and on
devices that are neither CPU nor CUDA, plain PyTorch computes the same.

The step that follows a linear in a block may be part of it: the GELU of its output, or its addition
to the tokens. A GPU's kernels do that while the sums are in registers; elsewhere it is a second
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native
from .backends import Backend, choose, uses_operator
from .cpu import attention as cpu_attention
from .cpu import integer as cpu_integer
from .cpu import linear as cpu_linear
from .linear_operator import Implementations, LinearOperator
from .native import heads as native_heads
from .reference import attention as reference_attention
from .reference import linear as reference
from .reference import rotary
from .reference.rotary import NO_NORM, NO_ROTATION, HeadNorm, Rotation
from .registry import Lazy, register
from .weight import IntegerWeight, PackedWeight

_ATTENTION_DTYPES = (torch.float32, torch.bfloat16)


_INT4 = LinearOperator(
    "int4_linear",
    PackedWeight,
    {
        Backend.REFERENCE: reference.int4_linear,
        Backend.CPU: cpu_linear.int4_linear,
        Backend.NATIVE: native.int4_linear,
        Backend.TRITON: Lazy("triton.linear:int4_linear"),
    },
    adds=False,
    differentiable=True,
)
_INT4_INT8 = LinearOperator(
    "int4_linear_int8",
    PackedWeight,
    {
        Backend.REFERENCE: reference.int4_linear_int8,
        Backend.CPU: cpu_integer.int4_linear_int8,
        Backend.NATIVE: native.int4_linear_int8,
        Backend.TRITON: Lazy("triton.linear:int4_linear_int8"),
    },
)
_INT4_FP8 = LinearOperator(
    "int4_linear_fp8",
    PackedWeight,
    {
        Backend.REFERENCE: reference.int4_linear_fp8,
        Backend.TRITON: Lazy("triton.linear:int4_linear_fp8"),
    },
    adds=False,
)
_INTEGER = LinearOperator(
    "integer_linear",
    IntegerWeight,
    {
        Backend.REFERENCE: reference.integer_linear,
        Backend.CPU: cpu_integer.integer_linear,
        Backend.NATIVE: native.integer_linear,
        Backend.TRITON: Lazy("triton.linear:integer_linear"),
    },
)


def int4_linear(
    x: Tensor, weight: PackedWeight, gelu: bool = False, backend: Backend | None = None
) -> Tensor:
    """Return x W^T + bias for a packed weight.

    Args:
        x: (..., K), floating; its dtype is the compute dtype.
        weight: see `PackedWeight`.
        gelu: return the exact GELU of it. A kernel that has the sums in registers rounds once.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (..., N) of x's dtype; differentiable in x and bias without `backend`.
    """
    return _INT4(x, weight, gelu, backend)


def int4_linear_int8(
    x: Tensor, weight: PackedWeight, gelu: bool = False, backend: Backend | None = None
) -> Tensor:
    """Return x W^T + bias, multiplied in 8-bit integers though the weight is stored in 4.

    The weight is requantized to one scale per row (`requantize`), tokens to one scale each
    (`quantize_tokens`). Arguments are those of `int4_linear`; not differentiable.
    """
    return _INT4_INT8(x, weight, gelu, backend)


def int4_linear_int8_add_(total: Tensor, x: Tensor, gamma: Tensor, weight: PackedWeight) -> None:
    """Add gamma * `int4_linear_int8` of x to `total` in place: a block's last step.

    Args:
        total: (..., N) contiguous, of the dtype of `x`; overwritten.
        x: (..., K) floating.
        gamma: (N,) floating.
        weight: see `PackedWeight`.
    """
    _INT4_INT8.add_(total, x, gamma, weight)


def int4_linear_fp8(
    x: Tensor, weight: PackedWeight, gelu: bool = False, backend: Backend | None = None
) -> Tensor:
    """Return x W^T + bias, multiplied in 8-bit floats, see `qvggt_kernels.fp8`.

    On a GPU from compute capability 8.9 by its tensor cores; elsewhere the same numbers in
    float32, which is slow. Arguments are those of `int4_linear`; not differentiable.
    """
    return _INT4_FP8(x, weight, gelu, backend)


def integer_linear(
    x: Tensor, weight: IntegerWeight, gelu: bool = False, backend: Backend | None = None
) -> Tensor:
    """Return x W^T + bias, multiplied in integers and scaled once at the end.

    Args:
        x: (..., K) floating; quantized per token here.
        weight: see `IntegerWeight`.
        gelu: return the exact GELU of it.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (..., N) in the dtype of x; not differentiable.
    """
    return _INTEGER(x, _with_clip_tensor(weight, x.device), gelu, backend)


def integer_linear_add_(total: Tensor, x: Tensor, gamma: Tensor, weight: IntegerWeight) -> None:
    """Add gamma * `integer_linear` of x to `total` in place: a block's last step.

    Args:
        total: (..., N) contiguous, of the dtype of `x`; overwritten.
        x: (..., K) floating.
        gamma: (N,) floating.
        weight: see `IntegerWeight`.
    """
    _INTEGER.add_(total, x, gamma, _with_clip_tensor(weight, x.device))


def _with_clip_tensor(weight: IntegerWeight, device: torch.device) -> IntegerWeight:
    if isinstance(weight.clip, Tensor):
        return weight
    clip = torch.tensor(weight.clip, dtype=torch.float32, device=device)
    return IntegerWeight(*weight[:-1], clip)


def _empty_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    reference_attention.check_heads(q, k, v)
    return reference_attention.empty_output(q, k, v)


def _attend(
    name: str,
    implementations: Implementations,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: Backend | None = None,
) -> Tensor:
    reference_attention.check_heads(q, k, v)
    result: Tensor = implementations[backend or choose(name, q, k, v)](q, k, v)
    return result


_ATTENTION: Implementations = {
    Backend.REFERENCE: reference_attention.attention,
    Backend.CPU: cpu_attention.attention,
    Backend.NATIVE: native_heads.attention,
}
_attention = register(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    lambda *heads: _attend("attention", _ATTENTION, *heads),
    fake=_empty_heads,
)


def attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, L, D) floating, any strides.
        k: (B, H, T, D) of the dtype of `q`.
        v: (B, H, T, D) of the dtype of `q`.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (B, H, L, D) of the dtype of `q`; differentiable without `backend`.
    """
    if backend is not None:
        result = _attend("attention", _ATTENTION, q, k, v, backend)
    elif q.is_cpu and q.dtype in _ATTENTION_DTYPES and uses_operator(q, k, v):
        result = _attention(q, k, v)
    else:
        reference_attention.check_heads(q, k, v)
        result = F.scaled_dot_product_attention(q, k, v)
    return result


_INT8_ATTENTION: Implementations = {
    Backend.REFERENCE: reference_attention.int8_attention,
    Backend.NATIVE: native_heads.int8_attention,
    Backend.TRITON: Lazy("triton.attention:int8_attention"),
}
_int8_attention = register(
    "int8_attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    lambda *heads: _attend("int8_attention", _INT8_ATTENTION, *heads),
    fake=_empty_heads,
    reference=reference_attention.int8_attention,
)


def int8_attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, q k^T multiplied in 8-bit integers.

    The arithmetic is that of `reference.attention`. On a GPU, and on CPUs that have our kernels, it
    is one fused kernel; elsewhere plain PyTorch, which is slow.

    Args:
        q: (B, H, L, D) floating, any strides; D at most 128.
        k: (B, H, T, D) of the dtype of `q`.
        v: (B, H, T, D) of the dtype of `q`; probabilities are rounded to it.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (B, H, L, D) of the dtype of `q`, laid out as (B, L, H, D). Not differentiable.
    """
    if backend is None and (q.is_cpu or q.is_cuda):
        result: Tensor = _int8_attention(q, k, v)
        return result
    return _attend("int8_attention", _INT8_ATTENTION, q, k, v, backend or Backend.REFERENCE)


_QK_NORM_ROPE: Implementations = {
    Backend.REFERENCE: rotary.qk_norm_rope_,
    Backend.NATIVE: native_heads.qk_norm_rope_,
    Backend.TRITON: Lazy("triton.rotary:qk_norm_rope_"),
}


def _with_bundles(compute: Callable[..., None]) -> Callable[..., None]:
    def run(qkv: Tensor, *arguments: Any) -> None:
        compute(qkv, HeadNorm(*arguments[:5]), Rotation(*arguments[5:]))

    return run


def _compute_qk_norm_rope(
    qkv: Tensor, norm: HeadNorm, rotation: Rotation, backend: Backend | None = None
) -> None:
    rotary.check_heads(qkv, norm, rotation)
    backend = backend or choose("qk_norm_rope_", qkv, norm, rotation)
    _QK_NORM_ROPE[backend](qkv, norm, rotation)


_qk_norm_rope_ = register(
    "qk_norm_rope_(Tensor(a!) qkv, Tensor? qw, Tensor? qb, Tensor? kw, Tensor? kb, float eps,"
    " Tensor? cos, Tensor? sin) -> ()",
    _with_bundles(_compute_qk_norm_rope),
    fake=_with_bundles(rotary.check_heads),
    reference=_with_bundles(rotary.qk_norm_rope_),
)


def qk_norm_rope_(
    qkv: Tensor,
    norm: HeadNorm = NO_NORM,
    rotation: Rotation = NO_ROTATION,
    backend: Backend | None = None,
) -> None:
    """Overwrite the queries and keys in `qkv` with normalised and rotated ones.

    The layer norm over D is rounded to the dtype of `qkv`, then rotated in float32 and rounded
    again: x cos + r(x) sin, where r maps the quarters (a, b, c, d) of a head to (-b, a, -d, c), so
    that pairs of numbers rotate by one angle: half of a head by a patch's row, the other half by
    its column. Values are left as they are. Not differentiable.

    Args:
        qkv: (B, S, N, 3, H, D) floating, contiguous; D is a multiple of 4.
        norm: of queries and of keys.
        rotation: tables of a frame's tokens.
        backend: implementation; None for the fastest that computes this.
    """
    if backend is None and (qkv.is_cpu or qkv.is_cuda):
        _qk_norm_rope_(qkv, *norm, *rotation)
    else:
        _compute_qk_norm_rope(qkv, norm, rotation, backend or Backend.REFERENCE)
