"""Layer norms of tokens, in `layer_norm.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import is_usable, run
from .arguments import aligned, names, require

_DTYPES = (torch.float32, torch.bfloat16)
_COLUMNS = 64
"""Columns come in multiples of this: four vectors."""


def supports_layer_norm(x: Tensor, *parts: Tensor) -> bool:
    """Return whether `layer_norm`, or `layer_norm_add_`, computes this.

    Args:
        x: (..., C) tokens.
        parts: the branch if there is one, and gain and bias of the norm.
    """
    fits = x.dtype in _DTYPES and x.shape[-1] % _COLUMNS == 0 and x.is_contiguous()
    same = all(part.dtype == x.dtype and part.is_contiguous() for part in parts)
    return fits and same and is_usable("layer_norm")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the layer norm of x (..., C), of the dtype of x.

    Raises:
        ValueError: the arguments do not fit together.
    """
    return _run(x, None, None, weight, bias, eps)


def layer_norm_add_(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Compute what `reference.normalise.layer_norm_add_` does; the norm may differ in a last bit.

    Raises:
        ValueError: the arguments do not fit together.
    """
    return _run(x, branch, gamma.to(x.dtype).contiguous(), weight, bias, eps)


def _run(
    x: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    columns = x.shape[-1] if x.dim() else 0
    wanted = [(branch, x.shape), *((part, (columns,)) for part in (gamma, weight, bias))]
    require(
        all(part is None or part.device == x.device for part, _ in wanted)
        and x.dtype in _DTYPES
        and columns > 0
        and columns % _COLUMNS == 0
        and x.is_contiguous()
        and all(
            part is None or (part.shape == shape and part.dtype == x.dtype and part.is_contiguous())
            for part, shape in wanted
        ),
        f"tokens {tuple(x.shape)} {x.dtype}: this kernel takes {names(_DTYPES)} of multiples of "
        f"{_COLUMNS} columns, contiguous, with branch, gains and bias that fit",
    )
    out = torch.empty_like(x)
    parts = [None if part is None else aligned(part) for part in (branch, gamma, weight, bias)]
    if out.numel():
        sizes = (x.dtype == torch.float32, eps, x.numel() // columns, columns)
        run("layer_norm", x, *parts, out, *sizes)
    return out
