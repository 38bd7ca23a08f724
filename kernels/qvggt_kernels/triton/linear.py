"""The linears on a CUDA device by Triton kernels, from compute capability 8.0.

The dense product of many 16-bit rows is left to PyTorch, whose library is hard to beat in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fp8, gemm_configs
from ..gemm_configs import Config
from ..integer import levels
from ..weight import NO_EPILOGUE, Epilogue, IntegerWeight, PackedWeight
from . import gemm, unpack

_ROWS_WITH_ZEROS = 64
"""Rows up to which an asymmetric weight is unpacked within the product."""


def int4_linear(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias, see `qvggt_kernels.int4_linear`."""
    config = _config("int4", x, weight.outputs)
    return int4_product(x, weight.contiguous(), config, epilogue)


def int4_linear_int8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias, see `qvggt_kernels.int4_linear_int8`."""
    config = _config("int8", x, weight.outputs)
    rows, scales = unpack.requantize(weight.contiguous())
    return int8_product(x, IntegerWeight(rows.t(), scales, weight.bias), config, epilogue)


def int4_linear_fp8(x: Tensor, weight: PackedWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias in 8-bit floats, see `qvggt_kernels.int4_linear_fp8`."""
    rows, row_scales = unpack.requantize(weight.contiguous(), fp8.DTYPE)
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    q, steps = gemm.quantize_tokens(tokens, fp8.HIGHEST, dtype=fp8.DTYPE)
    y = torch._scaled_mm(
        q,
        rows.t(),
        scale_a=steps[:, None],
        scale_b=row_scales[None],
        bias=weight.bias,
        out_dtype=x.dtype,
    )
    return epilogue.apply(y.view(*x.shape[:-1], -1))


def integer_linear(x: Tensor, weight: IntegerWeight, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Return x W^T + bias, see `qvggt_kernels.integer_linear`."""
    config = _config("int8", x, weight.outputs)
    rows = unpack.columns_to_rows(weight.qweight.contiguous())
    weight = weight._replace(qweight=rows.t(), scales=weight.scales.contiguous())
    return int8_product(x, weight, config, epilogue)


def _config(operator: str, x: Tensor, outputs: int) -> Config:
    config = gemm_configs.for_product(operator, x, outputs)
    assert config is not None, "a device without configurations has no Triton kernels"
    return config


def int4_product(
    x: Tensor, weight: PackedWeight, config: Config, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    """Return x W^T + bias by the kernel of a configuration.

    Args:
        x: (..., K) floating, not empty.
        weight: contiguous, with a bias of x's dtype.
        config: of the operator `int4`. float32 is unpacked to memory in any case, so that
            its precision is the one that PyTorch is set to.
        epilogue: GELU or nothing.

    Returns:
        (..., N) of x's dtype.
    """
    tokens = x.reshape(-1, x.shape[-1])
    # Before 9.0, compilers do not hold the zero points of large tiles in registers.
    spills = weight.zeros is not None and len(tokens) > _ROWS_WITH_ZEROS
    if config.blocks is None or x.dtype == torch.float32 or spills:
        return epilogue.apply(F.linear(x, unpack.dequantize(weight, x.dtype), weight.bias))
    y = gemm.int4_gemm(
        tokens.contiguous(), weight, config.blocks, "gelu" if epilogue.gelu else "none"
    )
    return y.view(*x.shape[:-1], -1)


def int8_product(
    x: Tensor, weight: IntegerWeight, config: Config, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    """Return x W^T + bias for x quantized per token, by the kernel of a configuration.

    Args:
        x: (..., K) floating, not empty.
        weight: of 8 bits; `qweight` is the transpose of a contiguous (N, K), scales contiguous,
            `clip` a tensor or 1.
        config: of the operator `int8`.
        epilogue: what else is done to it.

    Returns:
        (..., N) of x's dtype; the memory of `epilogue.total` if there is one.
    """
    assert config.blocks is not None
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    clip = weight.clip if isinstance(weight.clip, Tensor) else None
    q, steps = gemm.quantize_tokens(tokens, levels(weight.activation_bits), clip)
    if epilogue.total is not None:
        epilogue = epilogue._replace(total=epilogue.total.view(len(q), -1))
    out = gemm.int8_gemm(gemm.Tokens(q, steps, x.dtype), weight, config.blocks, epilogue)
    return out.view(*x.shape[:-1], -1)
