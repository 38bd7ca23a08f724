"""Layer norms of tokens, and of tokens and a residual branch: operators of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backends import Backend, choose, uses_operator
from .linear_operator import Implementations
from .native import norms as native
from .reference import normalise
from .registry import Lazy, register

_LAYER_NORM_ADD: Implementations = {
    Backend.REFERENCE: normalise.layer_norm_add_,
    Backend.NATIVE: native.layer_norm_add_,
    Backend.TRITON: Lazy("triton.normalise:layer_norm_add_"),
}


def _empty_norm(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    devices = {part.device for part in (x, branch, gamma, weight, bias)}
    if len(devices) > 1:
        raise ValueError(f"the parts of a layer norm are on {sorted(map(str, devices))}")
    return torch.empty_like(x)


def _add_and_norm(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    compute = _LAYER_NORM_ADD[choose("layer_norm_add_", x, branch, weight, bias)]
    result: Tensor = compute(x, branch, gamma, weight, bias, eps)
    return result


_layer_norm_add_ = register(
    "layer_norm_add_(Tensor(a!) x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias,"
    " float eps) -> Tensor",
    _add_and_norm,
    fake=_empty_norm,
    reference=normalise.layer_norm_add_,
)


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
    compute = _layer_norm_add_ if x.is_cpu or x.is_cuda else normalise.layer_norm_add_
    result: Tensor = compute(x, branch, gamma, weight, bias, eps)
    return result


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if choose("layer_norm", x, weight, bias) is Backend.NATIVE:
        return native.layer_norm(x, weight, bias, eps)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


_layer_norm = register(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
    _norm,
    fake=lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis, by our kernel where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to its layer norm."""
        if x.is_cpu and uses_operator(x, self.weight, self.bias):
            result: Tensor = _layer_norm(x, self.weight, self.bias, self.eps)
            return result
        return super().forward(x)
