"""Attention on the CPU: our own kernel, tiles of dense products, or PyTorch's, by their speed.

PyTorch's flash attention multiplies through MKL, which on some vendors' cores reaches a third
of what oneDNN does, and gains nothing from bfloat16. Here oneDNN multiplies: scores in float32,
a softmax over whole rows, and probabilities in the dtype of the values. A tile of rows of scores
stays in a core's cache, so memory does not grow with the square of the sequence.

`capability` measures once which of the two is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import capability, native
from .cpu import linear
from .library import register

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB of float32."""

_MIN_ROWS, _MAX_ROWS = 64, 512

_MIN_LENGTH = 128
"""Queries below which the calls around the products take longer than the products."""

_DTYPES = (torch.float32, torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v by the fastest code for the device.

    Args:
        q: (B, H, L, D) floating, any strides.
        k: (B, H, T, D) of the dtype of `q`.
        v: (B, H, T, D) of the dtype of `q`.

    Returns:
        (B, H, L, D) of the dtype of `q`; differentiable.
    """
    records = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not q.is_cpu or records or q.dtype not in _DTYPES:
        return F.scaled_dot_product_attention(q, k, v)
    return _operator(q, k, v)


def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what `attention` does, always in tiles, laid out as (B, L, H, D)."""
    batch, heads, length, dim = q.shape
    out = _fake(q, k, v)
    rows = min(_MAX_ROWS, max(_MIN_ROWS, _TILE_SCORES // k.shape[2]))
    for b in range(batch):
        for h in range(heads):
            queries, keys = q[b, h].float().mul(dim**-0.5), k[b, h].float().contiguous()
            values = v[b, h].t().contiguous()
            for start in range(0, length, rows):
                part = slice(start, start + rows)
                weights = linear(queries[part], keys).softmax(dim=1)
                out[b, h, part] = linear(weights.to(v.dtype), values)
    return out


def _on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if native.takes_attention(q, k, v) and capability.prefers_native_attention():
        return native.attention(q, k, v)
    if q.shape[2] >= _MIN_LENGTH and capability.tiles_attention():
        return tiled(q, k, v)
    return library(q, k, v)


def library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what `attention` does by PyTorch's own kernel, laid out as (B, L, H, D)."""
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, dim).transpose(1, 2)


_operator = register(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    cpu=_on_cpu,
    cuda="cpu_attention:library",
    plain=library,
    fake=_fake,
)
