"""Linear layers whose weights stay packed: 4-bit weights alone, or integers on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from . import operators
from .hadamard import check_rotation, hadamard_transform
from .integer import levels, pack_integer
from .packing import PLANES, ZERO, PackingError, check_group, group_size_of, pack
from .weight import IntegerWeight, PackedWeight

_MULTIPLY = {
    "float": operators.int4_linear,
    "int8": operators.int4_linear_int8,
    "fp8": operators.int4_linear_fp8,
}


class PackedLinear(nn.Module):
    """What packed linears share: a prepared input, and storage that a cast leaves alone.

    The input may be rotated and scaled before it meets the weight, where a quantization recipe
    could not fold that into the layer before:

        x' = H x * input_scale

    Attributes:
        in_features: K.
        out_features: N.
        rotation: block of the Hadamard transform H, 0 for none.
        input_scale: (K,) float32, or None.
        bias: (N,) or None.
    """

    _stored: ClassVar[tuple[str, ...]] = ()
    """Buffers that keep their dtype whatever the module is cast to."""

    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, rotation: int) -> None:
        super().__init__()
        check_rotation(in_features, rotation)
        self.in_features = in_features
        self.out_features = out_features
        self.rotation = rotation

    def _register_optional(
        self, *, input_scale: bool, bias: bool, device: torch.device | str | None
    ) -> None:
        ones = torch.ones(self.in_features, device=device) if input_scale else None
        self.register_buffer("input_scale", ones)
        zeros = torch.zeros(self.out_features, device=device) if bias else None
        self.register_buffer("bias", zeros)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the input (..., K) rotated and scaled, in its dtype."""
        if not self.rotation and self.input_scale is None:
            return x
        prepared = x.float()
        if self.rotation:
            prepared = hadamard_transform(prepared, self.rotation)
        if self.input_scale is not None:
            prepared = prepared * self.input_scale
        return prepared.to(x.dtype)

    def add_to(self, total: Tensor, x: Tensor, gamma: Tensor) -> None:
        """Add gamma (N,) times the output for `x` (..., K) to `total` (..., N), in place.

        Not differentiable; `total` is contiguous and of the dtype of `x`.
        """
        total.addcmul_(self(x), gamma.to(total.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        stored = {name: getattr(self, name) for name in self._stored}
        super()._apply(fn, recurse)
        for name, before in stored.items():
            after = getattr(self, name)
            if before is not None and after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self


class Int4Linear(PackedLinear):
    """Drop-in for `nn.Linear` at inference: 4-bit weight, 16-bit group scales, any float input.

    It computes in the dtype of its input and keeps no unpacked weight. Casting the module
    (`.to(dtype)`, `.half()`, ...) casts the bias alone: packed words and scales are the
    checkpoint's, whatever the compute dtype.

    Attributes:
        qweight: (N, K/g, g/4) int16, see `qvggt_kernels.packing`.
        scales: (N, K/g) bfloat16.
        zeros: (N, K/g) uint8, the stored number that stands for zero in each group; None for
            symmetric weights, where it is 8 everywhere.
        arithmetic: how it multiplies while no gradient is recorded. "float" is exact to the
            dtype of the input; "int8" rounds weight rows and tokens to 8-bit integers first,
            "fp8" to 8-bit floats.
    """

    arithmetic: Literal["float", "int8", "fp8"] = "float"

    _stored = ("scales", "input_scale")

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        group_size: int = 128,
        bias: bool = True,
        rotation: int = 0,
        input_scale: bool = False,
        zeros: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a layer of zeros, to be filled by `load_state_dict`.

        Raises:
            PackingError: the group size or the rotation is unknown or does not divide
                `in_features`.
        """
        super().__init__(in_features, out_features, rotation)
        check_group(in_features, group_size)
        self.group_size = group_size
        groups = in_features // group_size
        words = (out_features, groups, group_size // PLANES)
        self.register_buffer("qweight", torch.zeros(words, dtype=torch.int16, device=device))
        scales = torch.zeros((out_features, groups), dtype=torch.bfloat16, device=device)
        self.register_buffer("scales", scales)
        points = torch.full_like(scales, ZERO, dtype=torch.uint8) if zeros else None
        self.register_buffer("zeros", points)
        self._register_optional(input_scale=input_scale, bias=bias, device=device)

    @classmethod
    def from_quantized(
        cls,
        q: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        rotation: int = 0,
        input_scale: Tensor | None = None,
        zeros: Tensor | None = None,
    ) -> Int4Linear:
        """Make a layer of what a quantization recipe returns.

        Args:
            q: (N, K) int8 in [-8, 7].
            scales: (N, K/g) bfloat16.
            bias: (N,) floating, or None.
            rotation: block of the input's Hadamard transform, 0 for none.
            input_scale: (K,) float32 factors on the input, or None.
            zeros: (N, K/g) uint8, q + 8 of what stands for zero in each group, or None for 8.

        Raises:
            PackingError: the arguments do not fit together.
        """
        out_features, in_features = q.shape
        group_size = in_features // scales.shape[-1]
        qweight = pack(q, group_size)
        group_size_of(qweight, scales)
        layer = cls(
            in_features,
            out_features,
            group_size=group_size,
            bias=bias is not None,
            rotation=rotation,
            device="meta",
        )
        layer.qweight, layer.scales, layer.bias = qweight, scales, bias
        layer.input_scale, layer.zeros = input_scale, zeros
        return layer

    def packed(self, dtype: torch.dtype | None = None) -> PackedWeight:
        """Return the weight as it is stored, with its bias in a dtype."""
        weight = PackedWeight(self.qweight, self.scales, self.bias, self.zeros)
        return weight if dtype is None else weight.with_bias_in(dtype)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Map (..., in_features) to (..., out_features) or its GELU, in the dtype of `x`."""
        multiply = _MULTIPLY["float" if torch.is_grad_enabled() else self.arithmetic]
        return multiply(self.prepare(x), self.packed(x.dtype), gelu)

    def add_to(self, total: Tensor, x: Tensor, gamma: Tensor) -> None:
        """Add gamma times the output to `total`, 8-bit products as they come."""
        if torch.is_grad_enabled() or self.arithmetic != "int8":
            super().add_to(total, x, gamma)
        else:
            operators.int4_linear_int8_add_(total, self.prepare(x), gamma, self.packed(x.dtype))

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"group_size={self.group_size}, bias={self.bias is not None}"
        )


class IntegerLinear(PackedLinear):
    """Drop-in for `nn.Linear` at inference that multiplies integers by integers.

    Weights have 8 or 4 bits and a scale per output, activations 8 or 4 bits and a scale per
    token, found when the token arrives; products are summed in 32-bit integers. Not
    differentiable.

    Attributes:
        weight_bits: 8 or 4.
        activation_bits: 8 or 4.
        qweight: (K, N) int8 or (K, N/2) uint8, see `qvggt_kernels.integer`.
        scales: (N,) float32.
        clip: () float32, share of a token's largest magnitude that its range covers.
    """

    _stored = ("scales", "input_scale", "clip")

    qweight: Tensor
    scales: Tensor
    clip: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight_bits: int,
        activation_bits: int,
        bias: bool = True,
        rotation: int = 0,
        input_scale: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a layer of zeros, to be filled by `load_state_dict`.

        Raises:
            PackingError: other bits, an odd number of outputs in 4 bits, or a rotation that
                does not fit.
        """
        super().__init__(in_features, out_features, rotation)
        levels(weight_bits), levels(activation_bits)
        if weight_bits == 4 and out_features % 2:
            raise PackingError(f"{out_features} outputs are odd: 4-bit rows are stored in pairs")
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        shape = (in_features, out_features * weight_bits // 8)
        dtype = torch.int8 if weight_bits == 8 else torch.uint8
        self.register_buffer("qweight", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("scales", torch.zeros(out_features, device=device))
        self.register_buffer("clip", torch.ones((), device=device))
        self._register_optional(input_scale=input_scale, bias=bias, device=device)

    @classmethod
    def from_quantized(
        cls,
        q: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        weight_bits: int,
        activation_bits: int,
        clip: float = 1.0,
        rotation: int = 0,
        input_scale: Tensor | None = None,
    ) -> IntegerLinear:
        """Make a layer of what a quantization recipe returns.

        Args:
            q: (N, K) int8, in [-8, 7] for 4 bits.
            scales: (N,) float32.
            bias: (N,) floating, or None.
            weight_bits: 8 or 4.
            activation_bits: 8 or 4.
            clip: see the class.
            rotation: block of the input's Hadamard transform, 0 for none.
            input_scale: (K,) float32 factors on the input, or None.

        Raises:
            PackingError: the arguments do not fit together.
        """
        out_features, in_features = q.shape
        if scales.shape != (out_features,) or scales.dtype != torch.float32:
            raise PackingError(
                f"scales are {tuple(scales.shape)} {scales.dtype}, not ({out_features},) float32"
            )
        layer = cls(
            in_features,
            out_features,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            bias=bias is not None,
            rotation=rotation,
            device="meta",
        )
        layer.qweight, layer.scales, layer.bias = pack_integer(q, weight_bits), scales, bias
        layer.clip = torch.tensor(clip, dtype=torch.float32, device=q.device)
        layer.input_scale = input_scale
        return layer

    def packed(self) -> IntegerWeight:
        """Return the weight as it is stored."""
        return IntegerWeight(self.qweight, self.scales, self.bias, self.activation_bits, self.clip)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Map (..., in_features) to (..., out_features) or its GELU, in the dtype of `x`."""
        if self._has_plain_inputs():
            return operators.integer_linear(x, self.packed(), gelu)
        return operators.integer_linear(self.prepare(x.float()), self.packed(), gelu).to(x.dtype)

    def add_to(self, total: Tensor, x: Tensor, gamma: Tensor) -> None:
        """Add gamma times the output to `total`, products as they come."""
        if self._has_plain_inputs():
            operators.integer_linear_add_(total, x, gamma, self.packed())
        else:
            super().add_to(total, x, gamma)

    def _has_plain_inputs(self) -> bool:
        return not self.rotation and self.input_scale is None

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"weight_bits={self.weight_bits}, activation_bits={self.activation_bits}, "
            f"bias={self.bias is not None}"
        )
