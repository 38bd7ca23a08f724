"""Sources of the kernels and their compiler's options, by architecture; `setup.py` runs this file.

Each source is compiled for its own instructions, and the processor decides which run: one library
for all processors of an architecture.
"""

from __future__ import annotations

OPTIONS = (
    *("-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden"),
    # Products and sums are rounded one by one, as PyTorch's are.
    "-ffp-contract=off",
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),
)
"""Of all sources."""

_AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mavx512vnni"),
    "-mfma",
)
_AVX2 = ("-mavx2", "-mfma")
# Scheduled before registers are given out, loads move up until sums have none left.
_NEON = ("-fno-schedule-insns",)

SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "attention.cpp": _AVX512,
        "dense_output_avx512.cpp": _AVX512,
        "float_attention_avx512.cpp": _AVX512,
        "float_rotary_avx512.cpp": _AVX512,
        "layer_norm_avx512.cpp": _AVX512,
        "gemm.cpp": _AVX512,
        "gemv.cpp": _AVX512,
        "tokens.cpp": _AVX512,
        "winograd_avx512.cpp": _AVX512,
        "avx_vnni.cpp": (*_AVX2, "-mavxvnni"),
        "avx2.cpp": _AVX2,
        "dense_output.cpp": _AVX2,
        "float_attention.cpp": _AVX2,
        "float_gemv.cpp": _AVX2,
        "float_rotary.cpp": _AVX2,
        "layer_norm.cpp": _AVX2,
        "quantize.cpp": _AVX2,
        "winograd.cpp": _AVX2,
        "interface.cpp": (),
        "memory.cpp": (),
    },
    # NEON is part of the architecture.
    "aarch64": {
        "i8mm.cpp": (
            *_NEON,
            "-march=armv8.2-a+dotprod+i8mm",
        ),
        "dotprod.cpp": (
            *_NEON,
            "-march=armv8.2-a+dotprod",
        ),
        "dense_output.cpp": _NEON,
        "float_attention.cpp": _NEON,
        "float_gemv.cpp": _NEON,
        "float_linear.cpp": _NEON,
        "float_rotary.cpp": _NEON,
        "layer_norm.cpp": _NEON,
        "quantize.cpp": _NEON,
        "winograd.cpp": _NEON,
        "interface.cpp": (),
        "memory.cpp": (),
    },
}
"""Options of each source besides, for its instructions."""
