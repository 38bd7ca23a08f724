"""Which C++ kernels a machine runs, and what they return with several numbers of threads."""

from __future__ import annotations

from qvggt_kernels import cpu_features

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
