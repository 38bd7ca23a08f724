"""The transformer block that encoder, aggregator and camera head share.

Tokens keep the shape (B, S, N, C) all the way, B windows of S frames of N tokens; only the
attention itself decides whether a token sees its frame or the whole window. While no
gradient is recorded, a block works in place and in bounded slices, so that the memory of a
window grows with the tokens that are kept and not with the widest intermediate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.rope import rotate

_SLICE_ROWS = 2048
"""Tokens per slice of an MLP: about two frames of 392x518, wide enough for a dense GEMM."""

RotaryTable = tuple[Tensor, Tensor]


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + gamma * branch; in place on `x` while no gradient is recorded."""
        if torch.is_grad_enabled():
            return x + self.gamma * branch
        return x.addcmul_(branch, self.gamma.to(x.dtype))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out)."""
        if torch.is_grad_enabled():
            return self.fc2(F.gelu(self.fc1(x)))
        rows = x.reshape(-1, x.shape[-1])
        slices = [
            self.fc2(torch.ops.aten.gelu_(self.fc1(part))) for part in rows.split(_SLICE_ROWS)
        ]
        out = slices[0] if len(slices) == 1 else torch.cat(slices)
        return out.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Multi-head attention over a frame or over a window, with optional q/k norm and RoPE."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        head_dim = dim // num_heads
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else None
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: RotaryTable | None, *, across_frames: bool) -> Tensor:
        """Attend within each frame of (B, S, N, C), or across all frames of a window."""
        batch, frames, tokens, dim = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(3)
        query = self._prepare(query, self.q_norm, rope)
        key = self._prepare(key, self.k_norm, rope)
        sequence = (batch, frames * tokens) if across_frames else (batch * frames, tokens)
        query, key, value = (
            part.reshape(*sequence, self.num_heads, -1).transpose(1, 2)
            for part in (query, key, value)
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, frames, tokens, dim))

    @staticmethod
    def _prepare(x: Tensor, norm: nn.LayerNorm | None, rope: RotaryTable | None) -> Tensor:
        if norm is None and rope is None:
            return x
        if torch.is_grad_enabled():
            return _norm_and_rotate(x, norm, rope)
        # Written back frame by frame: the float32 intermediates of a rotation are wider than
        # everything that the window keeps of a frame.
        for frame in x.unbind(1):
            frame.copy_(_norm_and_rotate(frame, norm, rope))
        return x


def _norm_and_rotate(x: Tensor, norm: nn.LayerNorm | None, rope: RotaryTable | None) -> Tensor:
    if norm is not None:
        x = norm(x)
    return x if rope is None else rotate(x, *rope)


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a LayerScale residual branch."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        layer_scale: float,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(
        self, x: Tensor, rope: RotaryTable | None = None, *, across_frames: bool = False
    ) -> Tensor:
        """Map tokens (B, S, N, C) to (B, S, N, C); `x` is overwritten without gradients."""
        x = self.ls1.add(x, self.attn(self.norm1(x), rope, across_frames=across_frames))
        return self.ls2.add(x, self.mlp(self.norm2(x)))
