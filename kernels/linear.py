"""A linear layer whose weight stays packed in four bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .dispatch import int4_linear
from .packing import PLANES, check_group, group_size_of, pack


class Int4Linear(nn.Module):
    """Drop-in for `nn.Linear` at inference: 4-bit weight, 16-bit group scales, any float input.

    It computes in the dtype of its input and keeps no unpacked weight. Casting the module
    (`.to(dtype)`, `.half()`, ...) casts the bias alone: packed words and scales are the
    checkpoint's, whatever the compute dtype.

    Attributes:
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        bias: (N,) or None.
    """

    qweight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        group_size: int = 128,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a layer of zeros, to be filled by `load_state_dict`.

        Raises:
            PackingError: the group size is unknown or does not divide `in_features`.
        """
        super().__init__()
        check_group(in_features, group_size)
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        groups = in_features // group_size
        words = (out_features, groups, group_size // PLANES)
        self.register_buffer("qweight", torch.zeros(words, dtype=torch.int16, device=device))
        scales = torch.zeros((out_features, groups), dtype=torch.bfloat16, device=device)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_quantized(cls, q: Tensor, scales: Tensor, bias: Tensor | None = None) -> Int4Linear:
        """Make a layer of what a quantization recipe returns.

        Args:
            q: (N, K) int8 in [-8, 7].
            scales: (N, K/g) bfloat16.
            bias: (N,) floating, or None.

        Raises:
            PackingError: the arguments do not fit together.
        """
        out_features, in_features = q.shape
        group_size = in_features // scales.shape[-1]
        qweight = pack(q, group_size)
        group_size_of(qweight, scales)
        layer = cls(
            in_features, out_features, group_size=group_size, bias=bias is not None, device="meta"
        )
        layer.qweight, layer.scales, layer.bias = qweight, scales, bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of `x`."""
        bias = self.bias
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        return int4_linear(x, self.qweight, self.scales, bias)

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"group_size={self.group_size}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4Linear:
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self
