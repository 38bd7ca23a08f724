"""Packed weights: every tensor of a linear's weight in one bundle, and what follows its product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .packing import PLANES, group_size_of


class PackedWeight(NamedTuple):
    """A 4-bit weight (N, K) in groups of g columns; fields in the order of operator schemas.

    Attributes:
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        bias: (N,) floating, or None.
        zeros: (N, K/g) uint8 in [0, 15], the stored number that stands for zero in each group;
            None for symmetric weights, where it is 8.
    """

    qweight: Tensor
    scales: Tensor
    bias: Tensor | None = None
    zeros: Tensor | None = None

    @property
    def outputs(self) -> int:
        """N."""
        return self.qweight.shape[0]

    @property
    def columns(self) -> int:
        """K."""
        return self.qweight.shape[1] * self.qweight.shape[2] * PLANES

    @property
    def group_size(self) -> int:
        """Columns that share a scale, g.

        Raises:
            PackingError: words and scales are not of the layout or do not fit together.
        """
        return group_size_of(self.qweight, self.scales)

    def contiguous(self) -> PackedWeight:
        """Return the weight with contiguous words, scales and zero points."""
        zeros = None if self.zeros is None else self.zeros.contiguous()
        qweight, scales = self.qweight.contiguous(), self.scales.contiguous()
        return PackedWeight(qweight, scales, self.bias, zeros)


class IntegerWeight(NamedTuple):
    """A weight (N, K) for products of integers; fields in the order of operator schemas.

    Attributes:
        qweight: (K, N) int8 or (K, N/2) uint8, see `qvggt_kernels.integer`.
        scales: (N,) float32.
        bias: (N,) floating, or None.
        activation_bits: 8 or 4, of the tokens that it is multiplied by.
        clip: share of a token's largest magnitude that its range covers; () float32 or a number.
    """

    qweight: Tensor
    scales: Tensor
    bias: Tensor | None = None
    activation_bits: int = 8
    clip: Tensor | float = 1.0

    @property
    def outputs(self) -> int:
        """N."""
        return self.qweight.shape[1] * (1 if self.qweight.dtype == torch.int8 else 2)

    @property
    def columns(self) -> int:
        """K."""
        return self.qweight.shape[0]


class Epilogue(NamedTuple):
    """What follows a product: its GELU, or the addition of gamma times it to `total` in place.

    Attributes:
        gelu: whether the exact GELU is applied.
        gamma: (N,) floating, gain of what is added; None without `total`.
        total: (..., N) contiguous, of the product's dtype, overwritten; or None.
    """

    gelu: bool = False
    gamma: Tensor | None = None
    total: Tensor | None = None

    def apply(self, y: Tensor) -> Tensor:
        """Apply it to a product (..., N), which is overwritten, as a step of its own."""
        if self.total is None or self.gamma is None:
            return torch.ops.aten.gelu_(y) if self.gelu else y
        return self.total.addcmul_(y, self.gamma.to(self.total.dtype))


NO_EPILOGUE = Epilogue()
