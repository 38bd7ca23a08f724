"""Instruction sets that there are kernels for, and which of them a process uses."""

from __future__ import annotations

import functools
import os
import platform
from typing import Literal

from .. import cpu_features

InstructionSet = Literal["avx512", "avx_vnni", "avx2", "i8mm", "dotprod"]

_INTEGER_LINEARS = ("int4_linear_int8", "integer_linear")
_BOTH = ("int4_linear_rows", "quantize_tokens")
_FLOAT = (
    *("convolution3x3", "dense_output", "float_attention", "float_qk_norm_rope"),
    "layer_norm",
)
_SHORT = (*_BOTH, *_FLOAT)
_BFLOAT16 = ("attention", "dense_linear", "int4_linear", "qk_norm_rope")
_AVX512 = dict.fromkeys((*_BOTH, *_INTEGER_LINEARS, *_BFLOAT16), "")
_AVX2 = dict.fromkeys((*_SHORT, *_INTEGER_LINEARS), "_avx2")
_NEON = dict.fromkeys((*_SHORT, "int4_linear_float32"), "_neon")

SUFFIXES: dict[InstructionSet, dict[str, str]] = {
    "avx512": _AVX512 | dict.fromkeys(_FLOAT, "_avx512"),
    "avx_vnni": _AVX2 | dict.fromkeys(_INTEGER_LINEARS, "_avx_vnni"),
    "avx2": _AVX2,
    "i8mm": _NEON | dict.fromkeys(_INTEGER_LINEARS, "_i8mm"),
    "dotprod": _NEON | dict.fromkeys(_INTEGER_LINEARS, "_dotprod"),
}
"""Kernels that there are for an instruction set, with the ends of their symbols' names."""

STATUS: dict[InstructionSet, str] = {
    "avx512": "in use",
    "avx_vnni": "in use, those for AVX-VNNI",
    "avx2": "in use, those for AVX2",
    "i8mm": "in use, those for ARM with i8mm",
    "dotprod": "in use, those for ARM with dot products",
}


@functools.cache
def instruction_set() -> InstructionSet | None:
    """Return the instructions of the kernels that this process runs; None for no kernels.

    The processor's best ones, or those that `QVGGT_NATIVE` names if it has them.
    """
    has: dict[InstructionSet, bool] = {
        "avx512": cpu_features.has_avx512(),
        "avx_vnni": cpu_features.has_avx_vnni(),
        "avx2": cpu_features.has_avx2(),
        "i8mm": cpu_features.has_i8mm(),
        "dotprod": cpu_features.has_dotprod(),
    }
    available = [name for name, is_there in has.items() if is_there]
    wanted = os.environ.get("QVGGT_NATIVE")
    if wanted in SUFFIXES:
        return wanted if wanted in available else None
    return available[0] if available else None


def missing() -> str:
    """Return what a processor of this architecture needs at least."""
    if platform.machine() == "aarch64":
        return "dot products of 8-bit integers (ARMv8.2)"
    return "AVX2"
