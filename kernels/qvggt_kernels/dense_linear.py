"""Linears with plain weights, by what multiplies fastest on this CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import cpu_features, native
from .backends import Backend, choose, uses_operator
from .linear_operator import Implementations
from .registry import register

_IMPLEMENTATIONS: Implementations = {
    Backend.REFERENCE: F.linear,
    Backend.CPU: cpu_features.onednn_linear,
    Backend.NATIVE: native.dense_linear,
}


def _compute(
    x: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend | None = None
) -> Tensor:
    chosen = backend or choose("dense_linear", x, weight, bias)
    result: Tensor = _IMPLEMENTATIONS[chosen](x, weight, bias)
    return result


_dense_linear = register(
    "dense_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _compute, fake=F.linear
)


def dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: Backend | None = None
) -> Tensor:
    """Return x W^T + bias.

    Args:
        x: (..., K) floating.
        weight: (N, K) of the dtype of `x`.
        bias: (N,) likewise, or None.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (..., N) of the dtype of `x`; differentiable without `backend`.
    """
    if backend is not None:
        return _compute(x, weight, bias, backend)
    # Autocast, which brings parts of several dtypes to one, knows PyTorch's own.
    if x.is_cpu and x.dtype == weight.dtype and uses_operator(x, weight, bias):
        result: Tensor = _dense_linear(x, weight, bias)
        return result
    return F.linear(x, weight, bias)


class DenseLinear(nn.Linear):
    """`nn.Linear` by `dense_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return dense_linear(x, self.weight, self.bias)
