"""Which C++ kernels a machine runs, and what they return with several numbers of threads."""

from __future__ import annotations

import torch
from qvggt_kernels import cpu_features, dequantize, native
from torch.nn import functional as F

PROCESSOR_HAS = {
    "avx512": cpu_features.has_avx512,
    "avx_vnni": cpu_features.has_avx_vnni,
    "avx2": cpu_features.has_avx2,
    "i8mm": cpu_features.has_i8mm,
    "dotprod": cpu_features.has_dotprod,
}
EMULATED = {"i8mm": "max", "dotprod": "cortex-a76"}
"""Processors to emulate where this one is none of ARM."""


def outputs(*arguments, counts=(1, 2, 3), run, threads):
    """What a kernel returns with several numbers of threads."""
    for count in counts:
        threads(count)
        yield run(*arguments)


def assert_float32_is_kept(x, packed, threads):
    """What a linear of float32 tokens returns is the exact product but for sums' rounding."""
    weight, bias = dequantize(packed, torch.float64), packed.bias.double()
    exact = F.linear(x.double(), weight, bias)
    first, *others = outputs(x, packed, run=native.int4_linear, threads=threads)
    terms = F.linear(x.double().abs(), weight.abs(), bias.abs())
    assert ((first.double() - exact).abs() <= 1e-6 * terms).all()
    assert all(torch.equal(first, other) for other in others), "threads change no bit"
