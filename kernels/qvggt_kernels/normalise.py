"""Adds a residual branch to the tokens and normalises them for the next layer, in one go.

The operator `qvggt::layer_norm_add_`: eager PyTorch on the CPU, one pass over memory on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import register


def layer_norm_add_(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Add gamma * branch to `x` in place and return the layer norm of the sum.

    Gains are rounded to the dtype of `x`, and so is the sum before it is normalised; mean and
    variance are float32. Not differentiable.

    Args:
        x: (..., C) floating, contiguous; overwritten.
        branch: shape and dtype of `x`, contiguous.
        gamma: (C,) floating, gain of the branch.
        weight: (C,) of the dtype of `x`, gain of the norm.
        bias: (C,) of the dtype of `x`.
        eps: added to the variance.

    Returns:
        Shape and dtype of `x`, newly allocated.
    """
    if x.is_cpu or x.is_cuda:
        return _operator(x, branch, gamma, weight, bias, eps)
    return _eager(x, branch, gamma, weight, bias, eps)


def _eager(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    gamma = gamma.to(x.dtype)
    x.addcmul_(branch, gamma)
    return F.layer_norm(x, gamma.shape, weight, bias, eps)


def _fake(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    return torch.empty_like(x)


_operator = register(
    "layer_norm_add_(Tensor(a!) x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias,"
    " float eps) -> Tensor",
    cpu=_eager,
    cuda="triton.normalise:layer_norm_add_",
    fake=_fake,
)
