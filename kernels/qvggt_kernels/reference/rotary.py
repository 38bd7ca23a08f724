"""Norm and 2D rotary embedding of queries and keys in PyTorch, in slices that stay in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
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


def check_heads(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Raise ValueError unless norm and rotation fit queries and keys in qkv (B, S, N, 3, H, D)."""
    if qkv.dim() != 6 or qkv.shape[3] != 3 or not qkv.is_contiguous():
        raise ValueError(
            f"qkv is {tuple(qkv.shape)} with strides {qkv.stride()}, not (B, S, N, 3, H, D), "
            "contiguous"
        )
    tokens, dim = qkv.shape[2], qkv.shape[5]
    if dim % 4 or not dim or not qkv.dtype.is_floating_point:
        raise ValueError(f"heads of {dim} numbers of {qkv.dtype}: a multiple of 4 floats is wanted")
    gain = norm.query_weight
    # PyTorch normalises 16-bit numbers with 32-bit gains too.
    wide = gain is not None and gain.dtype == torch.float32
    dtype = torch.float32 if wide else qkv.dtype
    check_parts("gains and biases", norm[:4], (dim,), qkv.device, dtype)
    check_parts(
        f"angles for {tokens} tokens", rotation, (tokens, 1, dim), qkv.device, torch.float32
    )


def check_parts(
    name: str,
    parts: Sequence[Tensor | None],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise ValueError unless all are None, or all contiguous and of a shape, device and dtype."""
    given = [part for part in parts if part is not None]
    if not given:
        return
    fit = all(
        part.shape == shape
        and part.device == device
        and part.is_contiguous()
        and part.dtype == dtype
        for part in given
    )
    if len(given) < len(parts) or not fit:
        found = ", ".join("none" if p is None else f"{tuple(p.shape)} {p.dtype}" for p in parts)
        raise ValueError(f"{name} are {found}: all must be contiguous, {shape} {dtype} on {device}")


def qk_norm_rope_(qkv: Tensor, norm: HeadNorm, rotation: Rotation) -> None:
    """Overwrite queries and keys of qkv (B, S, N, 3, H, D) with normalised and rotated ones."""
    if not qkv.numel():
        return
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
