"""Every variant of the Triton kernels that ships: kernel, argument types, constants, GPUs.

Nothing here runs with the product: `compiler` compiles the variants for GPUs that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from .. import fp8, gemm_configs, tuning
from ..gemm_configs import Blocks
from ..packing import GROUP_SIZES, PLANES
from ..triton import attention, gemm, normalise, rotary, unpack

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities, times ten, that kernels are compiled for."""

WITH_FP8 = (89, 90, 100, 120)
"""Those that convert to 8-bit floats."""

_FLOATS = (("bf16", torch.bfloat16), ("fp16", torch.float16))


@dataclass(frozen=True)
class KernelVariant:
    """A kernel with the arguments that it is shipped with.

    Attributes:
        name: unique in its module.
        kernel: a function under `triton.jit`.
        arguments: by parameter; a value where the parameter is a constant (None stands for a
            pointer that is not given), else a type in Triton's notation: `*bf16`, `i32`, or
            `i32:16` for a number that 16 divides. Pointers are always divisible by 16.
        warps: num_warps.
        stages: num_stages.
        architectures: compute capabilities, times ten, that ship it.
        tensor_core: whether it has to multiply on tensor cores.
    """

    name: str
    kernel: JITFunction
    arguments: Mapping[str, Any]
    warps: int
    stages: int = 3
    architectures: tuple[int, ...] = ARCHITECTURES
    tensor_core: bool = False


def unpack_variants() -> list[KernelVariant]:
    """Return the kernels as they are launched for weights of 128 columns a scale, and of 32."""
    return [
        variant
        for zeros in (None, "*u8")
        for group in (min(GROUP_SIZES), max(GROUP_SIZES))
        for variant in _unpack_variants(zeros, group)
    ] + [_columns_variant(halves) for halves in (False, True)]


def _unpack_variants(zeros: str | None, group: int) -> list[KernelVariant]:
    pointers = {"words_ptr": "*i16", "scales_ptr": "*bf16", "zeros_ptr": zeros}
    suffix = f", group {group}" + (" zeros" if zeros else "")
    arguments = {"out_ptr": "*bf16", "size": "i32:16", "GROUP": group, "BLOCK": unpack.TILE}
    found = [
        KernelVariant(
            "dequantize to bf16" + suffix, unpack.dequantize_kernel, pointers | arguments, warps=8
        )
    ]
    for name, pointer, highest, architectures in (
        ("requantize", "*i8", unpack.HIGHEST[torch.int8], ARCHITECTURES),
        ("requantize to fp8", "*fp8e4nv", fp8.HIGHEST, WITH_FP8),
    ):
        arguments = {
            "out_ptr": pointer,
            "row_scales_ptr": "*fp32",
            **dict.fromkeys(("rows", "words_per_row"), "i32:16"),
            "HIGHEST": highest,
            "GROUP": group,
            "BLOCK_ROWS": 4,
            "BLOCK": 256,
        }
        kernel = unpack.requantize_kernel
        found.append(
            KernelVariant(
                name + suffix, kernel, pointers | arguments, warps=4, architectures=architectures
            )
        )
    return found


def _columns_variant(halves: bool) -> KernelVariant:
    arguments = {
        "packed_ptr": "*u8" if halves else "*i8",
        "out_ptr": "*i8",
        **dict.fromkeys(("inputs", "outputs"), "i32:16"),
        "HALVES": halves,
        **dict.fromkeys(("BLOCK_K", "BLOCK_N"), 64),
    }
    name = "columns to rows, " + ("4 bits" if halves else "8 bits")
    return KernelVariant(name, unpack.columns_kernel, arguments, warps=4)


def gemm_variants() -> list[KernelVariant]:
    """Return every configuration that ships or that tuning may choose, and their companions."""
    found = []
    for (operator, blocks), architectures in sorted(_shipped_blocks().items()):
        everywhere = tuple(sorted(architectures))
        # Where a generation of tensor cores begins, and on the smallest shared memory.
        varied = tuple(sorted(architectures & {80, 89, 90}))
        if operator == "int8":
            found.append(_int8_variant(blocks, everywhere))
            found.append(_int8_variant(blocks, varied, "gelu"))
            found.append(_int8_variant(blocks, varied, residual=True))
            continue
        found.append(_int4_variant(blocks, everywhere))
        if blocks.m <= 64:
            found.append(_int4_variant(blocks, varied, zeros=True))
        if blocks.n == 64:
            found.append(_int4_variant(blocks, varied, group=32, even=False))
        if blocks.split_k == 1:
            found.append(_int4_variant(blocks, varied, "gelu"))
    return [
        *found,
        _tokens_variant("quantize tokens", "*i8", 127, ARCHITECTURES),
        _tokens_variant("quantize tokens to fp8", "*fp8e4nv", fp8.HIGHEST, WITH_FP8),
        _sum_variant(),
    ]


def _shipped_blocks() -> dict[tuple[str, Blocks], set[int]]:
    """Return the architectures of each operator's blocks."""
    shipping: dict[tuple[str, Blocks], set[int]] = {}
    for architecture in gemm_configs.shipped_architectures():
        configs = [(entry.operator, entry.config) for entry in gemm_configs.shipped(architecture)]
        configs += [
            (operator, config)
            for operator in gemm_configs.OPERATORS
            for bucket in gemm_configs.BUCKETS
            for config in tuning.candidates(operator, bucket, architecture)
        ]
        for operator, config in configs:
            if config.blocks is not None:
                # The number of parts is a factor in addresses and changes nothing else.
                blocks = config.blocks._replace(split_k=4 if config.blocks.split_k > 1 else 1)
                shipping.setdefault((operator, blocks), set()).add(architecture)
    return shipping


def _tokens_variant(
    name: str, pointer: str, highest: float, architectures: tuple[int, ...]
) -> KernelVariant:
    arguments = {
        "x_ptr": "*bf16",
        **dict.fromkeys(("clip_ptr", "steps_ptr"), "*fp32"),
        "q_ptr": pointer,
        "K": "i32:16",
        "HIGHEST": highest,
        "BLOCK": 1024,
    }
    kernel = gemm.quantize_tokens_kernel
    return KernelVariant(name, kernel, arguments, warps=4, architectures=architectures)


def _sum_variant() -> KernelVariant:
    arguments = {
        "parts_ptr": "*fp32",
        **dict.fromkeys(("bias_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("size", "N"), "i32:16"),
        "SPLIT_K": 4,
        "BLOCK": gemm.SUM_BLOCK,
        "ACTIVATION": "gelu",
    }
    return KernelVariant("sum of 4 parts, gelu", gemm.sum_kernel, arguments, warps=4)


def _int4_variant(
    blocks: Blocks,
    architectures: tuple[int, ...],
    activation: str = "none",
    zeros: bool = False,
    group: int = 128,
    even: bool = True,
) -> KernelVariant:
    split = blocks.split_k > 1
    name = f"int4 {_describe(blocks)}" + (" split" if split else "")
    name += f" {activation}" if activation != "none" else ""
    name += " zeros" if zeros else ""
    name += f" group {group} tail" if not even else ""
    arguments = {
        "x_ptr": "*bf16",
        "words_ptr": "*i16",
        "scales_ptr": "*bf16",
        "zeros_ptr": "*u8" if zeros else None,
        "bias_ptr": "*bf16",
        "out_ptr": "*fp32" if split else "*bf16",
        **_sizes(blocks),
        "GROUP": group,
        "BLOCK_W": blocks.k // PLANES,
        "SPLIT_K": blocks.split_k,
        "EVEN": even,
        "COMPUTE": tl.bfloat16,
        "ACTIVATION": activation,
    }
    kernel = gemm.int4_gemm_kernel
    return KernelVariant(
        name, kernel, arguments, blocks.warps, blocks.stages, architectures, tensor_core=True
    )


def _int8_variant(
    blocks: Blocks,
    architectures: tuple[int, ...],
    activation: str = "none",
    residual: bool = False,
) -> KernelVariant:
    name = f"int8 {_describe(blocks)}" + (f" {activation}" if activation != "none" else "")
    name += " residual" if residual else ""
    arguments = {
        **dict.fromkeys(("x_ptr", "weight_ptr"), "*i8"),
        **dict.fromkeys(("steps_ptr", "scales_ptr"), "*fp32"),
        **dict.fromkeys(("bias_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("gamma_ptr", "residual_ptr"), "*bf16" if residual else None),
        **_sizes(blocks),
        "BLOCK_K": blocks.k,
        "EVEN": True,
        "ACTIVATION": activation,
    }
    kernel = gemm.int8_gemm_kernel
    return KernelVariant(
        name, kernel, arguments, blocks.warps, blocks.stages, architectures, tensor_core=True
    )


def _sizes(blocks: Blocks) -> dict[str, Any]:
    sizes = {"M": "i32", "N": "i32:16", "K": "i32:16"}
    return {**sizes, "BLOCK_M": blocks.m, "BLOCK_N": blocks.n}


def _describe(blocks: Blocks) -> str:
    return f"{blocks.m}x{blocks.n}x{blocks.k} warps {blocks.warps} stages {blocks.stages}"


def normalise_variants() -> list[KernelVariant]:
    """Return the kernel for widths of VGGT and of smaller networks."""
    found = []
    for width in (128, 384, 1024, 2048):
        block, block_rows, warps = normalise.tile(width)
        names = ("x_ptr", "branch_ptr", "gamma_ptr", "weight_ptr", "bias_ptr", "out_ptr")
        arguments = {
            **dict.fromkeys(names, "*bf16"),
            "rows": "i32",
            "eps": "fp32",
            "WIDTH": width,
            "BLOCK_ROWS": block_rows,
            "BLOCK": block,
        }
        kernel = normalise.layer_norm_add_kernel
        found.append(KernelVariant(f"layer_norm_add_{width}", kernel, arguments, warps))
    return found


def rotary_variants() -> list[KernelVariant]:
    """Return the kernel for heads of VGGT and of smaller networks, with a norm and without."""
    arguments: dict[str, Any]
    found = []
    for heads, dim, norm in ((16, 64, True), (2, 64, True), (16, 64, False), (8, 128, True)):
        block, block_rows = rotary.tile(dim)
        arguments = dict.fromkeys(
            ("qw_ptr", "qb_ptr", "kw_ptr", "kb_ptr"), "*bf16" if norm else None
        )
        arguments |= {"qkv_ptr": "*bf16", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "eps": "fp32"}
        arguments |= {"rows": "i32", "tokens_per_frame": "i32", "HEADS": heads, "DIM": dim}
        arguments |= {"NORM": norm, "ROTATE": True, "BLOCK_ROWS": block_rows, "BLOCK": block}
        name = f"{'norm_' if norm else ''}rope_{heads}x{dim}"
        found.append(KernelVariant(name, rotary.qk_norm_rope_kernel, arguments, 4))
    return found


def attention_variants() -> list[KernelVariant]:
    """Return the kernels for heads of 32 to 128 numbers in both 16-bit formats."""
    found = []
    for name, dtype in _FLOATS:
        found += [_attention_variant(name, dtype, width) for width in (32, 64, 128)]
        for what, mean in (("queries", None), ("keys", "*fp32")):
            arguments = {
                **dict.fromkeys(("stride_batch", "stride_head", "stride_row"), "i32:16"),
                **dict.fromkeys(("DIM", "BLOCK"), 64),
                "x_ptr": f"*{name}",
                "mean_ptr": mean,
                "q_ptr": "*i8",
                "steps_ptr": "*fp32",
                **dict.fromkeys(("length", "heads"), "i32"),
                "factor": "fp32",
                "BLOCK_ROWS": attention.QUANTIZED_ROWS,
            }
            kernel = attention.quantize_heads_kernel
            found.append(KernelVariant(f"quantize_{what}_64_{name}", kernel, arguments, 4))
    return found


def _attention_variant(name: str, dtype: torch.dtype, width: int) -> KernelVariant:
    blocks = attention.blocks_for(dtype)
    arguments: dict[str, Any] = {
        **dict.fromkeys(("q_ptr", "k_ptr"), "*i8"),
        **dict.fromkeys(("q_steps_ptr", "k_steps_ptr"), "*fp32"),
        **dict.fromkeys(("v_ptr", "out_ptr"), f"*{name}"),
        **dict.fromkeys(("queries", "keys"), "i32"),
        **dict.fromkeys(("v_stride_batch", "v_stride_head", "v_stride_row"), "i32:16"),
        **dict.fromkeys(("DIM", "BLOCK"), width),
        "heads": "i32:16",
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "COMPUTE": attention.COMPUTE_TYPES[dtype],
    }
    return KernelVariant(
        f"int8_attention_{width}_{name}",
        attention.int8_attention_kernel,
        arguments,
        blocks.warps,
        blocks.stages,
        tensor_core=True,
    )


_BY_MODULE = {
    "unpack": unpack_variants,
    "gemm": gemm_variants,
    "normalise": normalise_variants,
    "rotary": rotary_variants,
    "attention": attention_variants,
}
MODULES = tuple(_BY_MODULE)
"""Modules of this package that have variants."""


def variants_of(module: str) -> list[KernelVariant]:
    """Return the variants of one of `MODULES`.

    Raises:
        ValueError: two variants have one name.
    """
    found = _BY_MODULE[module]()
    if len({variant.name for variant in found}) < len(found):
        raise ValueError(f"two variants of {module} have one name")
    return found
