"""Attention on the CPU in tiles of dense products.

PyTorch's flash attention multiplies through MKL, which on some vendors' cores reaches a third
of what oneDNN does, and gains nothing from bfloat16. Here oneDNN multiplies: scores in float32,
a softmax over whole rows, and probabilities in the dtype of the values. A tile of rows of scores
stays in a core's cache, so memory does not grow with the square of the sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cpu_features
from ..reference import attention as reference
from .linear import linear

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB of float32."""

_MIN_ROWS, _MAX_ROWS = 64, 512

MIN_LENGTH = 128
"""Queries below which the calls around the products take longer than the products."""


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


def prefers_tiles() -> bool:
    """Return whether attention in tiles is faster here than PyTorch's own: where oneDNN is."""
    return cpu_features.prefers_onednn()


def prefers_native(dtype: torch.dtype) -> bool:
    """Return whether our own kernel, where there is one for a dtype, is faster than PyTorch's.

    PyTorch's bfloat16 one multiplies by a matrix unit (AMX) where there is one; ours does not.
    """
    return not (dtype == torch.bfloat16 and cpu_features.has_amx())
