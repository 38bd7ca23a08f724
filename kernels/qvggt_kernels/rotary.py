"""Normalises queries and keys per head and turns them by 2D rotary embeddings, in place.

The operator `qvggt::qk_norm_rope_`: one pass by our own kernels, else
PyTorch in slices that stay in a cache.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from . import native
from .capability import slice_size
from .library import register


def qk_norm_rope_(
    qkv: Tensor,
    qw: Tensor | None,
    qb: Tensor | None,
    kw: Tensor | None,
    kb: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    """Overwrite the queries and keys in `qkv` with normalised and turned ones.

    The layer norm over D is rounded to the dtype of `qkv`, then turned in float32 and rounded
    again: x cos + turned(x) sin, where `turned` maps the quarters (a, b, c, d) of a head to
    (-b, a, -d, c), so that pairs of numbers turn by one angle: half of a head by a patch's row,
    the other half by its column. Values are left as they are. Not differentiable.

    Args:
        qkv: (B, S, N, 3, H, D) floating, contiguous; D is a multiple of 4.
        qw: (D,) of the dtype of `qkv`, gain of the queries' norm; None for no norm.
        qb: (D,) of the same dtype, None where `qw` is.
        kw: the keys' gain, None where `qw` is.
        kb: the keys' bias, None where `qw` is.
        eps: added to the variance.
        cos: (N, 1, D) float32, contiguous, cosines of a frame's tokens: the first quarter equals
            the second and the third the fourth. None for no rotation.
        sin: (N, 1, D) float32, likewise; None where `cos` is.
    """
    compute = _operator if qkv.is_cpu or qkv.is_cuda else _eager
    compute(qkv, qw, qb, kw, kb, eps, cos, sin)


def _on_cpu(qkv: Tensor, qw: Tensor | None, *rest: Any) -> None:
    compute = native.qk_norm_rope_ if native.takes_qk_norm_rope(qkv, qw) else _eager
    compute(qkv, qw, *rest)


def _eager(
    qkv: Tensor,
    qw: Tensor | None,
    qb: Tensor | None,
    kw: Tensor | None,
    kb: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    tokens, _, heads, dim = qkv.shape[2:]
    frames = qkv.view(-1, tokens, 3, heads, dim)
    rows = max(1, slice_size() // (heads * dim))
    for index, weight, bias in ((0, qw, qb), (1, kw, kb)):
        for frame in frames[:, :, index].split(max(1, rows // tokens)):
            for start in range(0, tokens, rows):
                slice_ = frame[:, start : start + rows]
                y = slice_ if weight is None else F.layer_norm(slice_, (dim,), weight, bias, eps)
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


def _fake(
    qkv: Tensor,
    qw: Tensor | None,
    qb: Tensor | None,
    kw: Tensor | None,
    kb: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    pass


_operator = register(
    "qk_norm_rope_(Tensor(a!) qkv, Tensor? qw, Tensor? qb, Tensor? kw, Tensor? kb, float eps,"
    " Tensor? cos, Tensor? sin) -> ()",
    cpu=_on_cpu,
    cuda="triton.rotary:qk_norm_rope_",
    fake=_fake,
)
