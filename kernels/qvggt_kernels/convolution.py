"""3x3 convolutions of channels-last maps: an operator of PyTorch where our kernel computes it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .backends import Backend, choose, uses_operator
from .linear_operator import Implementations
from .native.convolution import convolution3x3 as native_convolution3x3
from .registry import register


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, rectified: bool, total: Tensor | None
) -> Tensor:
    y = F.conv2d(F.relu(x) if rectified else x, weight, bias, padding=1)
    return y if total is None else total + y


_IMPLEMENTATIONS: Implementations = {
    Backend.REFERENCE: _reference,
    Backend.NATIVE: native_convolution3x3,
}


def _compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rectified: bool,
    total: Tensor | None,
    backend: Backend | None = None,
) -> Tensor:
    chosen = backend or choose("convolution3x3", x, weight)
    result: Tensor = _IMPLEMENTATIONS[chosen](x, weight, bias, rectified, total)
    return result


_convolution3x3 = register(
    "convolution3x3(Tensor x, Tensor weight, Tensor? bias, bool rectified, Tensor? total)"
    " -> Tensor",
    _compute,
    fake=_reference,
)


def convolution3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rectified: bool = False,
    total: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Return the 3x3 convolution of `x` with zeros around it.

    Args:
        x: (F, C, H, W) floating.
        weight: (O, C, 3, 3) of the dtype of `x`.
        bias: (O,) likewise, or None.
        rectified: convolve max(x, 0).
        total: (F, O, H, W) likewise that is added to the result, or None.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (F, O, H, W) of the dtype of `x`, newly allocated; differentiable without `backend`.
    """
    if backend is not None:
        return _compute(x, weight, bias, rectified, total, backend)
    if x.is_cpu and uses_operator(x, weight, bias, total):
        result: Tensor = _convolution3x3(x, weight, bias, rectified, total)
        return result
    return _reference(x, weight, bias, rectified, total)
