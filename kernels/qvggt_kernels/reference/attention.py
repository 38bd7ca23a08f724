"""Attention in plain PyTorch, in floats and with 8-bit queries and keys.

8 bits after SageAttention (Zhang et al., ICLR 2025), section 4: keys lose their mean over the
sequence, which softmax does not see but which wastes most of an 8-bit range; queries and keys are
then quantized per token. The softmax is float32, and probabilities are multiplied by values in the
dtype of the values.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..integer import quantize_tokens

_BLOCK_SCORES = 1 << 22
"""Scores that are held at once, 16 MiB of float32."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v by PyTorch's own kernel, laid out as (B, L, H, D)."""
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def int8_attention(q: Tensor, k: Tensor, v: Tensor, block_scores: int = _BLOCK_SCORES) -> Tensor:
    """Return attention with 8-bit queries and keys, laid out as (B, L, H, D)."""
    batch, heads, length, dim = q.shape
    out = empty_output(q, k, v)
    rows = max(1, block_scores // k.shape[2])
    for b in range(batch):
        for h in range(heads):
            keys = k[b, h].float()
            keys, key_steps = quantize_tokens(keys - keys.mean(0), 8)
            # Whole numbers, whose products float32 adds up without rounding: 128 * 127^2 < 2^24.
            keys, values = keys.float().t(), v[b, h].float()
            for start in range(0, length, rows):
                part = slice(start, start + rows)
                queries, query_steps = quantize_tokens(q[b, h, part].float(), 8)
                scores = (queries.float() @ keys).mul_(key_steps.t() * dim**-0.5).mul_(query_steps)
                weights = scores.sub_(scores.amax(1, keepdim=True)).exp_()
                total = weights.sum(1, keepdim=True)
                out[b, h, part] = (weights.to(v.dtype).float() @ values) / total
    return out


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless queries, keys and values fit together and there are keys."""
    parts = (q, k, v)
    shapes = ", ".join(str(tuple(part.shape)) for part in parts)
    if any(part.dim() != 4 for part in parts) or k.shape != v.shape or not k.shape[2]:
        raise ValueError(f"{shapes} are not (B, H, L, D), (B, H, T, D) and (B, H, T, D), T > 0")
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or not q.shape[3]:
        raise ValueError(f"queries, keys and values {shapes} differ in more than their lengths")
    kinds = {(part.dtype, part.device) for part in parts}
    if len(kinds) > 1 or not q.dtype.is_floating_point:
        found = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
        raise ValueError(f"queries, keys and values are {found}, not of one floating dtype")


def empty_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return memory for the result (B, H, L, D), laid out as (B, L, H, D)."""
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, dim).transpose(1, 2)
