"""Layer norm of the sum of tokens and a residual branch, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def layer_norm_add_(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Add gamma * branch to x (..., C) in place and return the layer norm of the sum."""
    gamma = gamma.to(x.dtype)
    x.addcmul_(branch, gamma)
    return F.layer_norm(x, gamma.shape, weight, bias, eps)
