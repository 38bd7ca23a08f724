"""What a device computes fastest, measured where it cannot be known.

Instruction sets do not tell: AVX512-BF16 wins on one vendor's cores and loses on another's, a
library may take a slow path on cores that it does not know, and without matrix instructions
bfloat16 can be ten times slower than float32. So candidates are timed, once per process and for
some milliseconds each, when the first layer asks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native

_REQUIRED_GAIN = 1.3
"""bfloat16 gives up 16 bits of mantissa: it has to pay for that clearly. Other choices ask for
as much, so that a disturbed measurement does not turn them."""

_CACHED_NUMBERS = 1 << 17
_SERIAL_NUMBERS = (1 << 15) - 1

_PROBE_ROWS, _PROBE_WIDTH, _PROBE_REPEATS = 512, 1024, 4
_PROBE_HEADS, _PROBE_HEAD_DIM = 2, 64


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype in which a device multiplies matrices fastest at acceptable precision.

    CUDA: bfloat16 from compute capability 8.0, float16 before. CPU: bfloat16 if a matrix
    product is at least 1.3 times as fast as in float32. Any other device: float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and _cpu_gain() >= _REQUIRED_GAIN:
        return torch.bfloat16
    return torch.float32


def fastest_linears(device: torch.device | str) -> Literal["float", "int8"]:
    """Return how a device multiplies wide 4-bit linears fastest: as floats or in 8-bit integers.

    CPU: integers where their products have instructions (VNNI) and 16-bit floats have no matrix
    unit (AMX), which multiplies them so fast that nothing is left to gain. By instruction set and
    not by a clock: this choice changes results, which shall not depend on how busy a machine was.
    Any other device: floats, until integers have been timed there.
    """
    if torch.device(device).type == "cpu" and _has_vnni() and not has_amx():
        return "int8"
    return "float"


def _has_vnni() -> bool:
    return torch.cpu._is_vnni_supported()


def has_amx() -> bool:
    """Say whether the CPU has a unit that multiplies matrices of 16-bit floats and integers."""
    return torch.cpu._is_amx_tile_supported()


def slice_size() -> int:
    """Return how many numbers a chain of elementwise steps on the CPU takes at once.

    On one thread, as many as leave their float32 intermediates in half of a second-level cache.
    On more, just too few for PyTorch to wake other threads, which costs more than a slice does.
    """
    return _CACHED_NUMBERS if torch.get_num_threads() == 1 else _SERIAL_NUMBERS


@functools.cache
def multiplies_integers() -> bool:
    """Say whether PyTorch's integer product is at least as fast here as one through float32.

    Few rows: without a kernel it is a plain loop, a hundred times slower.
    """
    x, weight = _ones(32, 256), _ones(256, 256)
    q, q_weight = x.to(torch.int8), weight.to(torch.int8)
    return _gain(lambda: F.linear(x, weight), lambda: torch._int_mm(q, q_weight.t())) >= 1


@functools.cache
def prefers_onednn() -> bool:
    """Say whether oneDNN multiplies float32 clearly faster than what PyTorch takes by default.

    That is MKL, which on other vendors' cores leaves half of their vector width unused.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = _ones(_PROBE_ROWS, _PROBE_WIDTH), _ones(_PROBE_WIDTH, _PROBE_WIDTH)
    return _gain(lambda: F.linear(x, weight), lambda: onednn_linear(x, weight)) >= _REQUIRED_GAIN


@functools.cache
def tiles_attention() -> bool:
    """Say whether attention in tiles of dense products beats PyTorch's own clearly."""
    from .cpu_attention import library, tiled

    shape = (1, _PROBE_HEADS, _PROBE_ROWS, _PROBE_HEAD_DIM)
    q = _ones(*shape, dtype=fastest_dtype("cpu"))
    return _gain(lambda: library(q, q, q), lambda: tiled(q, q, q)) >= _REQUIRED_GAIN


@functools.cache
def prefers_native_attention() -> bool:
    """Say whether our own attention kernel, where there is one, beats PyTorch's clearly."""
    from .cpu_attention import library

    q = _ones(1, _PROBE_HEADS, _PROBE_ROWS, _PROBE_HEAD_DIM, dtype=torch.bfloat16)
    if not native.takes_attention(q, q, q):
        return False
    return _gain(lambda: library(q, q, q), lambda: native.attention(q, q, q)) >= _REQUIRED_GAIN


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias by oneDNN; not differentiable.

    Both are made contiguous: with other strides oneDNN may fall back to its reference code, a
    hundred times slower.
    """
    x, weight = x.contiguous(), weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def _cpu_gain() -> float:
    """Return how many times faster than float32 this CPU is in bfloat16."""
    x, weight = _ones(_PROBE_ROWS, _PROBE_WIDTH), _ones(_PROBE_WIDTH, _PROBE_WIDTH)
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    return _gain(lambda: F.linear(x, weight), lambda: F.linear(x16, weight16))


def _ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="cpu")


def _gain(yardstick: Callable[[], object], candidate: Callable[[], object]) -> float:
    """Return the ratio of the best times: first ones set kernels up, others may be disturbed."""
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(_PROBE_REPEATS):
            for index, run in enumerate((yardstick, candidate)):
                start = time.perf_counter()
                run()
                best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1]
