"""Attention that multiplies queries and keys as 8-bit integers: an option for long windows.

The operator `qvggt::int8_attention`, after SageAttention (Zhang et al., ICLR 2025), section 4: keys
lose their mean over the sequence, which softmax does not see but which wastes most of an 8-bit
range; queries and keys are then quantized per token. The softmax is float32, and
probabilities meet values in 16 bits. On a GPU, and on CPUs that have our kernels, it is one fused
kernel; elsewhere it is the same arithmetic in plain PyTorch, which is slow.
"""

from __future__ import annotations

from torch import Tensor

from . import native
from .integer import quantize_tokens
from .library import register

_BLOCK_SCORES = 1 << 22
"""Scores that the CPU holds at once, 16 MiB of float32."""


def int8_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, q k^T multiplied in 8-bit integers.

    Args:
        q: (B, H, L, D) floating, any strides; D at most 128.
        k: (B, H, T, D) of the dtype of `q`.
        v: (B, H, T, D) of the dtype of `q`; probabilities are rounded to it.

    Returns:
        (B, H, L, D) of the dtype of `q`, laid out as (B, L, H, D). Not differentiable.
    """
    compute = _operator if q.is_cpu or q.is_cuda else _eager
    return compute(q, k, v)


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, dim = q.shape
    out = _fake(q, k, v)
    rows = max(1, _BLOCK_SCORES // k.shape[2])
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


def _on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if native.takes_attention(q, k, v):
        return native.attention(q, k, v, in_integers=True)
    return _eager(q, k, v)


def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, dim).transpose(1, 2)


_operator = register(
    "int8_attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    cpu=_on_cpu,
    cuda="triton.attention:int8_attention",
    fake=_fake,
)
