"""Instruction sets and speeds of this CPU, measured where no instruction set decides.

AVX512-BF16 wins on one vendor's cores and loses on another's, a library may take a slow path on
cores that it does not support, and without matrix instructions bfloat16 can be ten times slower
than float32. So candidates are timed, once per process and for some milliseconds each, before
their first use.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

CLEAR_GAIN = 1.3
"""Speed-up from which a measured choice is made: a disturbed measurement must not turn it."""

_CACHED_NUMBERS = 1 << 17
_SERIAL_NUMBERS = (1 << 15) - 1

_PROBE_ROWS, _PROBE_WIDTH, _PROBE_REPEATS = 512, 1024, 4


def has_avx512() -> bool:
    """Return whether the CPU has AVX-512 with dot products of bfloat16 and of 8-bit integers."""
    return torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()


@functools.cache
def has_avx_vnni() -> bool:
    """Return whether the CPU has AVX2 with dot products of 8-bit integers."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return torch.cpu._is_avx2_supported() and re.search(r"\bavx_vnni\b", flags) is not None


def has_vnni() -> bool:
    """Return whether the CPU has dot products of 8-bit integers."""
    return torch.cpu._is_vnni_supported() or has_avx_vnni()


def has_amx() -> bool:
    """Return whether the CPU has a unit that multiplies matrices of 16-bit floats and integers."""
    return torch.cpu._is_amx_tile_supported()


def slice_size() -> int:
    """Return how many numbers a chain of elementwise steps on the CPU takes at once.

    On one thread, as many as leave their float32 intermediates in half of a second-level cache.
    On more, just too few for PyTorch to wake other threads, which takes longer than a slice does.
    """
    return _CACHED_NUMBERS if torch.get_num_threads() == 1 else _SERIAL_NUMBERS


@functools.cache
def multiplies_integers() -> bool:
    """Return whether PyTorch's integer product is at least as fast here as one through float32.

    Few rows: without a kernel it is a plain loop, a hundred times slower.
    """
    x, weight = ones(32, 256), ones(256, 256)
    q, q_weight = x.to(torch.int8), weight.to(torch.int8)
    return speedup(lambda: F.linear(x, weight), lambda: torch._int_mm(q, q_weight.t())) >= 1


@functools.cache
def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies float32 clearly faster than what PyTorch takes by default.

    That is MKL, which on other vendors' cores leaves half of their vector width unused.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = ones(_PROBE_ROWS, _PROBE_WIDTH), ones(_PROBE_WIDTH, _PROBE_WIDTH)
    return speedup(lambda: F.linear(x, weight), lambda: onednn_linear(x, weight)) >= CLEAR_GAIN


@functools.cache
def bfloat16_speedup() -> float:
    """Return how many times faster than in float32 this CPU multiplies in bfloat16."""
    x, weight = ones(_PROBE_ROWS, _PROBE_WIDTH), ones(_PROBE_WIDTH, _PROBE_WIDTH)
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    return speedup(lambda: F.linear(x, weight), lambda: F.linear(x16, weight16))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias by oneDNN; not differentiable.

    Both are made contiguous: with other strides oneDNN may fall back to its reference code, a
    hundred times slower.
    """
    x, weight = x.contiguous(), weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input to time with, on the CPU whatever the default device."""
    return torch.ones(shape, dtype=dtype, device="cpu")


def speedup(baseline: Callable[[], object], candidate: Callable[[], object]) -> float:
    """Return the ratio of the best times: first ones set kernels up, others may be disturbed."""
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(_PROBE_REPEATS):
            for index, run in enumerate((baseline, candidate)):
                start = time.perf_counter()
                run()
                best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1]
