"""Norm and 2D rotary embedding of queries and keys in PyTorch, in slices that stay in a cache."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..cpu_features import slice_size


class HeadNorm(NamedTuple):
    """Layer norms over the D numbers of a head; fields in the order of the operator's schema.

    Attributes:
        query_weight: (D,) of the dtype of what is normalised, gain of the queries' norm; None
            for no norm, then all are.
        query_bias: (D,) likewise.
        key_weight: (D,) likewise.
        key_bias: (D,) likewise.
        eps: added to the variance.
    """

    query_weight: Tensor | None = None
    query_bias: Tensor | None = None
    key_weight: Tensor | None = None
    key_bias: Tensor | None = None
    eps: float = 0.0


class Rotation(NamedTuple):
    """Rotary tables of a frame's N tokens; fields in the order of the operator's schema.

    Attributes:
        cos: (N, 1, D) float32, contiguous: the first quarter equals the second and the third the
            fourth; None for no rotation.
        sin: (N, 1, D) float32, likewise; None where `cos` is.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None


NO_NORM = HeadNorm()
NO_ROTATION = Rotation()


def qk_norm_rope_(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Overwrite queries and keys of qkv (B, S, N, 3, H, D) with normalised and rotated ones."""
    tokens, _, heads, dim = qkv.shape[2:]
    frames = qkv.view(-1, tokens, 3, heads, dim)
    rows = max(1, slice_size() // (heads * dim))
    parts = ((norm.query_weight, norm.query_bias), (norm.key_weight, norm.key_bias))
    cos, sin = rotation
    for index, (weight, bias) in enumerate(parts):
        for frame in frames[:, :, index].split(max(1, rows // tokens)):
            for start in range(0, tokens, rows):
                slice_ = frame[:, start : start + rows]
                y = slice_
                if weight is not None:
                    y = F.layer_norm(slice_, (dim,), weight, bias, norm.eps)
                if cos is not None and sin is not None:
                    y = _rotate(y, cos[start : start + rows], sin[start : start + rows])
                slice_.copy_(y)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Converted once, not in every product, and never an operand of mixed dtypes: those are slow.
    x = x.float()
    out = x * cos
    products = (x * sin).unflatten(-1, (2, 2, -1))
    quarters = out.unflatten(-1, (2, 2, -1))
    quarters[..., 0, :].sub_(products[..., 1, :])
    quarters[..., 1, :].add_(products[..., 0, :])
    return out
