"""Packed weights: every tensor of a linear's weight in one bundle, and what follows its product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .integer import levels
from .packing import PLANES, PackingError, group_size_of


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

    def check(self, x: Tensor) -> None:
        """Raise PackingError unless the parts fit together, and to tokens x (..., K)."""
        group_size_of(self.qweight, self.scales)
        _check_tokens(x, self.columns, self.qweight.device)
        _check_bias(self.bias, self.outputs, x.device)
        if self.scales.device != x.device:
            raise PackingError(f"scales are on {self.scales.device}, tokens on {x.device}")
        zeros, shape = self.zeros, self.scales.shape
        if zeros is not None and (
            zeros.shape != shape or zeros.dtype != torch.uint8 or zeros.device != x.device
        ):
            raise PackingError(
                f"zero points are {tuple(zeros.shape)} {zeros.dtype} on {zeros.device}, "
                f"not {tuple(shape)} uint8 on {x.device}"
            )

    def with_bias_in(self, dtype: torch.dtype) -> PackedWeight:
        """Return the weight with its bias in a dtype."""
        if self.bias is None or self.bias.dtype == dtype:
            return self
        return PackedWeight(self.qweight, self.scales, self.bias.to(dtype), self.zeros)

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

    def check(self, x: Tensor) -> None:
        """Raise PackingError unless the parts fit together, and to tokens x (..., K)."""
        levels(self.activation_bits)
        words, scales = self.qweight, self.scales
        if words.dim() != 2 or words.dtype not in (torch.int8, torch.uint8):
            raise PackingError(
                f"integers are {tuple(words.shape)} {words.dtype}, "
                "not (K, N) int8 or (K, N/2) uint8"
            )
        _check_tokens(x, self.columns, words.device)
        _check_bias(self.bias, self.outputs, x.device)
        if scales.shape != (self.outputs,) or scales.device != x.device or _is_not_floating(scales):
            raise PackingError(
                f"scales are {tuple(scales.shape)} {scales.dtype} on {scales.device}, "
                f"not ({self.outputs},) floating on {x.device}"
            )
        clip = self.clip
        if isinstance(clip, Tensor) and (
            clip.numel() != 1 or clip.device != x.device or _is_not_floating(clip)
        ):
            raise PackingError(
                f"clip is {tuple(clip.shape)} {clip.dtype} on {clip.device}, "
                f"not one floating number on {x.device}"
            )


def _is_not_floating(tensor: Tensor) -> bool:
    """Return whether a tensor does not hold real floating-point numbers."""
    return not tensor.dtype.is_floating_point


def _check_tokens(x: Tensor, columns: int, device: torch.device) -> None:
    if not columns or not x.dim() or x.shape[-1] != columns:
        raise PackingError(f"tokens {tuple(x.shape)} do not have the weight's {columns} columns")
    if _is_not_floating(x) or x.device != device:
        raise PackingError(f"tokens are {x.dtype} on {x.device}, not floating on {device}")


def _check_bias(bias: Tensor | None, outputs: int, device: torch.device) -> None:
    if bias is not None and (
        bias.shape != (outputs,) or bias.device != device or _is_not_floating(bias)
    ):
        raise PackingError(
            f"a bias is {tuple(bias.shape)} {bias.dtype} on {bias.device}, "
            f"not ({outputs},) floating on {device}"
        )


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

    def check(self, x: Tensor, outputs: int) -> None:
        """Raise ValueError unless it fits a product (..., N) with x."""
        total, gamma = self.total, self.gamma
        if total is None and gamma is None:
            return
        shape = (*x.shape[:-1], outputs)
        if total is None or total.shape != shape or total.dtype != x.dtype:
            found = "missing" if total is None else f"{tuple(total.shape)} {total.dtype}"
            raise ValueError(f"the total is {found}, not {shape} {x.dtype}")
        if gamma is None or gamma.shape != (outputs,) or _is_not_floating(gamma):
            found = "missing" if gamma is None else f"{tuple(gamma.shape)} {gamma.dtype}"
            raise ValueError(f"gamma is {found}, not ({outputs},) floating")
        if not total.is_contiguous() or total.device != x.device or gamma.device != x.device:
            raise ValueError(
                f"the total has strides {total.stride()} on {total.device} and gamma is on "
                f"{gamma.device}: both have to be on {x.device}, the total contiguous"
            )

    def apply(self, y: Tensor) -> Tensor:
        """Apply it to a product (..., N), which is overwritten, as a step of its own."""
        if self.total is None or self.gamma is None:
            return torch.ops.aten.gelu_(y) if self.gelu else y
        return self.total.addcmul_(y, self.gamma.to(self.total.dtype))


NO_EPILOGUE = Epilogue()
