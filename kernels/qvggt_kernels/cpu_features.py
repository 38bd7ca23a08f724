"""Instruction sets of this CPU, and which of two ways to compute is faster with them.

Ways round differently, so no clock chooses between them: two processes on one machine give the same
bytes. Each choice is a rule on instruction sets and vendor that follows what was measured, in
`benchmarks/results/` (`cpu_choices_*.json`, `block_steps_*.json`).
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from pathlib import Path

import torch
from torch import Tensor

_CACHED_NUMBERS = 1 << 17
_SERIAL_NUMBERS = (1 << 15) - 1

_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAP_ASIMDDP, _HWCAP2_I8MM = 1 << 20, 1 << 13
"""Of Linux on ARM: <asm/hwcap.h>."""


def has_avx512() -> bool:
    """Return whether the CPU has AVX-512 with dot products of bfloat16 and of 8-bit integers."""
    return torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()


def has_avx2() -> bool:
    """Return whether the CPU has vectors of 256 bits, of floats with FMA and of integers."""
    return torch.cpu._is_avx2_supported()


def has_avx_vnni() -> bool:
    """Return whether the CPU has AVX2 with dot products of 8-bit integers."""
    return has_avx2() and re.search(r"\bavx_vnni\b", _description()) is not None


def has_dotprod() -> bool:
    """Return whether the CPU is an ARM with dot products of 8-bit integers."""
    return bool(_arm_capabilities()[0] & _HWCAP_ASIMDDP)


def has_i8mm() -> bool:
    """Return whether the CPU is an ARM with products of matrices of 8-bit integers."""
    return has_dotprod() and bool(_arm_capabilities()[1] & _HWCAP2_I8MM)


@functools.cache
def _arm_capabilities() -> tuple[int, int]:
    """Return what Linux reports of an ARM processor; zeros for any other."""
    if platform.system() != "Linux" or platform.machine() != "aarch64":
        return 0, 0
    get = ctypes.CDLL(None).getauxval
    get.restype, get.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return get(_AT_HWCAP), get(_AT_HWCAP2)


def is_intel() -> bool:
    """Return whether the CPU is Intel's, for whose cores MKL takes its fastest code."""
    return re.search(r"^vendor_id\s*:\s*GenuineIntel", _description(), re.MULTILINE) is not None


@functools.cache
def _description() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


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


def multiplies_bfloat16() -> bool:
    """Return whether products of bfloat16 have instructions here: a matrix unit or dot products.

    With them they are at least twice as fast as in float32, without up to ten times slower.
    """
    return has_amx() or torch.cpu._is_avx512_bf16_supported()


def multiplies_integers() -> bool:
    """Return whether PyTorch's product of 8-bit integers is faster here than one through float32.

    Both are exact. Without dot products PyTorch's is a plain loop, thirty times slower.
    """
    return has_vnni()


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies float32 faster than what PyTorch takes by default.

    That is MKL, which on other vendors' cores leaves half of the width of AVX-512 unused; with
    AVX2 it is the faster one on any.
    """
    wide = torch.cpu._is_avx512_supported() and not is_intel()
    return wide and torch.backends.mkldnn.is_available()


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias by oneDNN; not differentiable.

    Both are made contiguous: with other strides oneDNN may fall back to its reference code, a
    hundred times slower.
    """
    x, weight = x.contiguous(), weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
