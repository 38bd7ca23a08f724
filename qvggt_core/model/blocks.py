"""The transformer block that encoder, aggregator and camera head share.

Tokens keep the shape (B, S, N, C) all the way, B windows of S frames of N tokens; only the
attention itself decides whether a token sees its frame or the whole window. While no
gradient is recorded, a block works in place and in bounded slices, so that the memory of a
window grows with the tokens that are kept and not with the widest intermediate.
"""

from __future__ import annotations

import torch
from qvggt_kernels import (
    DenseLinear,
    HeadNorm,
    LayerNorm,
    PackedLinear,
    Rotation,
    attention,
    int8_attention,
    layer_norm_add_,
    qk_norm_rope_,
)
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.rope import rotate
from qvggt_core.model.settings import ComputeSettings

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

    settings = ComputeSettings()

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = DenseLinear(dim, hidden)
        self.fc2 = DenseLinear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out)."""
        return self.fc2(self._hidden(x))

    def _hidden(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.gelu(self.fc1(x))
        if isinstance(self.fc1, PackedLinear):
            return self.fc1(x, gelu=True)
        return torch.ops.aten.gelu_(self.fc1(x))

    def add_to(self, x: Tensor, y: Tensor, scale: LayerScale) -> Tensor:
        """Return x + scale * MLP(y), all (..., dim); in place on `x` without gradients."""
        if torch.is_grad_enabled():
            return scale.add(x, self(y))
        size = self.settings.mlp_rows
        # Added slice by slice, so that neither hidden nor output exists for all tokens at once.
        for rows, read in zip(_rows(x).split(size), _rows(y).split(size), strict=True):
            if isinstance(self.fc2, PackedLinear):
                self.fc2.add_to(rows, self._hidden(read), scale.gamma)
            else:
                scale.add(rows, self(read))
        return x


class GatedMlp(Mlp):
    """SwiGLU: a linear whose halves are gate and value, silu(gate) * value, a linear.

    Published DINOv2 weights call the linears `w12` and `w3`; they are read as `fc1` and `fc2`.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        """Prepare; the hidden width is cut to two thirds, in steps of 8, for an MLP's size."""
        nn.Module.__init__(self)
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.fc1 = DenseLinear(dim, 2 * hidden)
        self.fc2 = DenseLinear(hidden, dim)

    def _hidden(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return F.silu(gate) * value


class Attention(nn.Module):
    """Multi-head attention over a frame or over a window, with optional q/k norm and RoPE."""

    settings = ComputeSettings()

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = DenseLinear(dim, 3 * dim)
        head_dim = dim // num_heads
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else None
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else None
        self.proj = DenseLinear(dim, dim)

    def forward(self, x: Tensor, rope: RotaryTable | None, *, across_frames: bool) -> Tensor:
        """Attend within each frame of (B, S, N, C), or across all frames of a window."""
        batch, frames, tokens, dim = x.shape
        query, key, value = self.project(x, rope)
        sequence = (batch, frames * tokens) if across_frames else (batch * frames, tokens)
        query, key, value = (
            part.reshape(*sequence, self.num_heads, -1).transpose(1, 2)
            for part in (query, key, value)
        )
        if self.settings.attention == "int8" and not torch.is_grad_enabled():
            out = int8_attention(query, key, value)
        elif self.settings.attention == "plain":
            out = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1) @ value
        else:
            out = attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, frames, tokens, dim))

    def project(self, x: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, S, N, C) to queries, keys and values (B, S, N, H, D).

        Queries and keys come normalised and turned.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(3)
        if torch.is_grad_enabled():
            return (
                _norm_and_rotate(query, self.q_norm, rope),
                _norm_and_rotate(key, self.k_norm, rope),
                value,
            )
        rotation = Rotation() if rope is None else Rotation(*rope)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm, self.k_norm
            norm = HeadNorm(q.weight, q.bias, k.weight, k.bias, q.eps)
            qk_norm_rope_(qkv, norm, rotation)
        elif rope is not None:
            qk_norm_rope_(qkv, rotation=rotation)
        return query, key, value


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


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
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = (GatedMlp if gated else Mlp)(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(
        self, x: Tensor, rope: RotaryTable | None = None, *, across_frames: bool = False
    ) -> Tensor:
        """Map tokens (B, S, N, C) to (B, S, N, C); `x` is overwritten without gradients."""
        branch = self.attn(self.norm1(x), rope, across_frames=across_frames)
        if torch.is_grad_enabled():
            x = self.ls1.add(x, branch)
            return self.mlp.add_to(x, self.norm2(x), self.ls2)
        norm = self.norm2
        y = layer_norm_add_(x, branch, self.ls1.gamma, norm.weight, norm.bias, norm.eps)
        return self.mlp.add_to(x, y, self.ls2)
