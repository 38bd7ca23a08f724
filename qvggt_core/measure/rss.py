"""The memory of this process: held now, and at its peak."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

MIB = 1 << 20


def resident_mib() -> float:
    """Return this process's resident set in MiB (Linux)."""
    return status_mib("VmRSS")


def peak_mib(device: torch.device) -> float:
    """Return the most memory since `reset_peak` in MiB: allocated on CUDA, resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return status_mib("VmHWM")


def held_mib(device: torch.device) -> float:
    """Return the memory held now in MiB: allocated on CUDA, resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return resident_mib()


def reset_peak(device: torch.device) -> bool:
    """Release free memory and restart the peak from here; return whether that was possible."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def status_mib(field: str) -> float:
    """Return an entry of this process's memory status in MiB, e.g. "VmRSS" (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024
