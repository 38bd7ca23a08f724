"""Which implementation computes a call, from its device, dtype, gradients and shapes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor

from . import cpu_features, gemm_configs, native
from .cpu import attention as cpu_attention
from .cpu.linear import DTYPES
from .native import heads as native_heads
from .native import norms as native_norms
from .native.convolution import supports_convolution3x3, supports_dense_output
from .weight import IntegerWeight, PackedWeight

_FP8_MULTIPLE = 16
"""Products of 8-bit floats take rows and columns in multiples of this."""

_GEMM_CONFIGS = {"int4_linear": "int4", "int4_linear_int8": "int8", "integer_linear": "int8"}
"""Key in `gemm_configs.OPERATORS` of each linear that has GPU kernels of ours."""


class Backend(Enum):
    """Implementations of an operator; not every operator has all of them."""

    REFERENCE = "plain PyTorch, any device"
    CPU = "PyTorch in pieces that stay in a core's cache"
    NATIVE = "C++ for this processor's instructions"
    TRITON = "Triton on a CUDA device"


def choose(operator: str, x: Tensor, *arguments: Any) -> Backend:
    """Return the fastest implementation that computes a call.

    Args:
        operator: name without namespace or `_add_`, such as `int4_linear`.
        x: its first input.
        arguments: the others: a weight, keys and values, or norm and rotation.
    """
    if not x.numel():
        return Backend.REFERENCE
    if x.is_cpu:
        select = _ON_CPU.get(operator)
        return Backend.REFERENCE if select is None else select(x, *arguments)
    if x.is_cuda and _has_triton(operator, x, *arguments):
        return Backend.TRITON
    return Backend.REFERENCE


def uses_operator(x: Tensor, *others: Tensor | None) -> bool:
    """Return whether a call may go to an operator of PyTorch: its device has one, no gradient.

    Operators record no gradient: autograd would keep a scratch that the next layer overwrites
    before the backward pass.
    """
    if x.device.type not in ("cpu", "cuda"):
        return False
    return not (
        torch.is_grad_enabled()
        and any(part is not None and part.requires_grad for part in (x, *others))
    )


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype in which a device multiplies matrices fastest at acceptable precision.

    CUDA: bfloat16 from compute capability 8.0, float16 before. CPU: bfloat16 if there are
    instructions for its products. Any other device: float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and cpu_features.multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def fastest_linears(device: torch.device | str) -> Literal["float", "int8"]:
    """Return how a device multiplies wide 4-bit linears fastest: as floats or in 8-bit integers.

    CPU: integers where their products have instructions (VNNI) or kernels of ours, and 16-bit
    floats have no matrix unit (AMX), which multiplies them so fast that nothing is left to
    gain. By instruction set and not by a clock: this choice changes results, which must not depend
    on how busy a machine was. Any other device: floats, until integers have been timed there.
    """
    if torch.device(device).type != "cpu" or cpu_features.has_amx():
        return "float"
    return "int8" if cpu_features.has_vnni() or native.load() is not None else "float"


def _dense_linear_on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Backend:
    same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    wide = x.dtype == torch.float32
    # PyTorch's own float32 is fast on Intel's cores, its bfloat16 where there is a matrix unit.
    slow = cpu_features.prefers_onednn() if wide else not cpu_features.has_amx()
    if same and slow and native.supports_dense_linear(x, weight):
        return Backend.NATIVE
    return Backend.CPU if same and slow and wide else Backend.REFERENCE


def _int4_linear_on_cpu(x: Tensor, weight: PackedWeight) -> Backend:
    # A matrix unit has instructions for dense products that our kernels do not use.
    has_matrix_unit = x.dtype == torch.bfloat16 and cpu_features.has_amx()
    if not has_matrix_unit and native.supports_int4_linear(x, weight):
        return Backend.NATIVE
    return Backend.CPU if x.dtype in DTYPES else Backend.REFERENCE


def _integer_linear_on_cpu(x: Tensor, weight: PackedWeight | IntegerWeight) -> Backend:
    return Backend.NATIVE if native.supports_integer_linear(x, weight.columns) else Backend.CPU


def _attention_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Backend:
    if native_heads.supports_attention(q, k, v) and cpu_attention.prefers_native(q.dtype):
        return Backend.NATIVE
    long_enough = q.shape[2] >= cpu_attention.MIN_LENGTH and q.dtype in DTYPES
    if long_enough and cpu_attention.prefers_tiles():
        return Backend.CPU
    return Backend.REFERENCE


def _int8_attention_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Backend:
    return Backend.NATIVE if native_heads.supports_attention(q, k, v, True) else Backend.REFERENCE


def _convolution_on_cpu(x: Tensor, weight: Tensor) -> Backend:
    return Backend.NATIVE if supports_convolution3x3(x, weight) else Backend.REFERENCE


def _dense_output_on_cpu(x: Tensor, *convolutions: Tensor) -> Backend:
    branches = zip(convolutions[::4], convolutions[2::4], strict=True)
    supported = all(supports_dense_output(x, first, last) for first, last in branches)
    return Backend.NATIVE if supported else Backend.REFERENCE


def _layer_norm_on_cpu(x: Tensor, *parts: Tensor) -> Backend:
    return Backend.NATIVE if native_norms.supports_layer_norm(x, *parts) else Backend.REFERENCE


def _qk_norm_rope_on_cpu(qkv: Tensor, norm: Any, rotation: Any) -> Backend:
    return Backend.NATIVE if native_heads.supports_qk_norm_rope(qkv, norm) else Backend.REFERENCE


_ON_CPU: dict[str, Callable[..., Backend]] = {
    "dense_linear": _dense_linear_on_cpu,
    "int4_linear": _int4_linear_on_cpu,
    "int4_linear_int8": _integer_linear_on_cpu,
    "integer_linear": _integer_linear_on_cpu,
    "attention": _attention_on_cpu,
    "convolution3x3": _convolution_on_cpu,
    "dense_output": _dense_output_on_cpu,
    "int8_attention": _int8_attention_on_cpu,
    "layer_norm": _layer_norm_on_cpu,
    "layer_norm_add_": _layer_norm_on_cpu,
    "qk_norm_rope_": _qk_norm_rope_on_cpu,
}


def _has_triton(operator: str, x: Tensor, *arguments: Any) -> bool:
    if operator == "int4_linear_fp8":
        return multiplies_fp8(x, arguments[0])
    if operator in _GEMM_CONFIGS:
        return (
            gemm_configs.for_product(_GEMM_CONFIGS[operator], x, arguments[0].outputs) is not None
        )
    return operator != "attention"


def multiplies_fp8(x: Tensor, weight: PackedWeight) -> bool:
    """Return whether `torch._scaled_mm` multiplies these with a scale for each row."""
    divides = weight.outputs % _FP8_MULTIPLE == 0 and weight.columns % _FP8_MULTIPLE == 0
    capable = torch.cuda.get_device_capability(x.device) >= (8, 9)
    return divides and x.dtype == torch.bfloat16 and capable
