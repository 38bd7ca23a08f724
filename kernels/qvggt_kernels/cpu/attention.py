"""Attention on the CPU in tiles of dense products.

PyTorch's flash attention multiplies through MKL, which on some vendors' cores reaches a third
of what oneDNN does, and gains nothing from bfloat16. Here oneDNN multiplies: scores in float32,
a softmax over whole rows, and probabilities in the dtype of the values. A tile of rows of scores
stays in a core's cache, so memory does not grow with the square of the sequence.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import cpu_features, native
from ..reference import attention as reference
from .linear import linear

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB of float32."""

_MIN_ROWS, _MAX_ROWS = 64, 512

MIN_LENGTH = 128
"""Queries below which the calls around the products take longer than the products."""

_PROBE_SHAPE = (1, 2, 512, 64)


def attention(q: Tensor, k: Tensor, v: Tensor, tile_scores: int = _TILE_SCORES) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, laid out as (B, L, H, D), in tiles of `tile_scores`."""
    batch, heads, length, dim = q.shape
    out = reference.empty_output(q, k, v)
    rows = min(_MAX_ROWS, max(_MIN_ROWS, tile_scores // k.shape[2]))
    for b in range(batch):
        for h in range(heads):
            queries, keys = q[b, h].float().mul(dim**-0.5), k[b, h].float().contiguous()
            values = v[b, h].t().contiguous()
            for start in range(0, length, rows):
                part = slice(start, start + rows)
                weights = linear(queries[part], keys).softmax(dim=1)
                out[b, h, part] = linear(weights.to(v.dtype), values)
    return out


@functools.cache
def prefers_tiles(dtype: torch.dtype) -> bool:
    """Return whether attention in tiles beats PyTorch's own clearly in a dtype."""
    q = cpu_features.ones(*_PROBE_SHAPE, dtype=dtype)
    gain = cpu_features.speedup(lambda: reference.attention(q, q, q), lambda: attention(q, q, q))
    return gain >= cpu_features.CLEAR_GAIN


@functools.cache
def prefers_native() -> bool:
    """Return whether our own attention kernel, where there is one, beats PyTorch's clearly."""
    q = cpu_features.ones(*_PROBE_SHAPE, dtype=torch.bfloat16)
    if not native.supports_attention(q, q, q):
        return False
    gain = cpu_features.speedup(
        lambda: reference.attention(q, q, q), lambda: native.attention(q, q, q)
    )
    return gain >= cpu_features.CLEAR_GAIN
