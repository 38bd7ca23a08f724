"""Which code computes an INT4 linear: the one place that looks at device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu, reference


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
) -> Tensor:
    """Return x W^T + bias for a packed weight, by the fastest code for x's device and dtype.

    Args:
        x: (..., K), floating; its dtype is the compute dtype.
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        bias: (N,) of x's dtype.
        zeros: (N, K/g) uint8 zero points of an asymmetric weight, or None.

    Returns:
        (..., N) of x's dtype.
    """
    # Autograd would keep the shared scratch for a backward pass that comes after its next use.
    records_gradient = torch.is_grad_enabled() and x.requires_grad
    if x.device.type == "cpu" and x.dtype in cpu.DTYPES and not records_gradient:
        return cpu.int4_linear(x, qweight, scales, bias, zeros)
    return reference.int4_linear(x, qweight, scales, bias, zeros)
