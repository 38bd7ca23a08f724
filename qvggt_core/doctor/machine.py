"""Checks of the machine: disk, memory, shared memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qvggt_core.doctor.finding import Finding, ok, problem, warn, warn_if

_GB = 1e9
_LITTLE_DISK, _NO_DISK = 2.0 * _GB, 0.1 * _GB
_LITTLE_SHARED_MEMORY = 0.1 * _GB
_HEADROOM = 1.5
"""Peak memory of a run over the size of its checkpoint, at the least."""


def check_machine(output: Path, checkpoint_bytes: int = 0) -> list[Finding]:
    """Return findings on disk and memory.

    Args:
        output: directory where results would be written; it need not exist.
        checkpoint_bytes: size of the network's file.
    """
    findings = [disk_finding(output), memory_finding(available_memory(), checkpoint_bytes)]
    shared = Path("/dev/shm")  # noqa: S108 - its size is read, nothing is written
    if shared.is_dir():
        findings.append(shared_memory_finding(shutil.disk_usage(shared).total))
    return [finding for finding in findings if finding is not None]


def disk_finding(output: Path) -> Finding:
    """Return whether results can be written, and for how long."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return problem(
            "disk", f"{place} cannot be written", f"choose another output, or `chmod u+w {place}`"
        )
    free = shutil.disk_usage(place).free
    found = f"{free / _GB:.1f} GB free at {place}"
    if free < _NO_DISK:
        return problem("disk", found, "free some space: a result would be cut off")
    if free < _LITTLE_DISK:
        return warn("disk", found, "free some space: long recordings give gigabytes of depth")
    return ok("disk", found)


def available_memory() -> int | None:
    """Return bytes that can be allocated without swapping; None where the kernel shows none."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def memory_finding(available: int | None, checkpoint_bytes: int) -> Finding | None:
    """Return whether a checkpoint fits into the memory that is available, in bytes."""
    if available is None:
        return None
    found = f"{available / _GB:.1f} GB available"
    if checkpoint_bytes and available < _HEADROOM * checkpoint_bytes:
        return problem(
            "memory",
            f"{found}, the checkpoint alone has {checkpoint_bytes / _GB:.1f} GB",
            "quantize it (`qvggt quantize`), or close other programs",
        )
    return ok("memory", found)


def shared_memory_finding(size: int) -> Finding:
    """Return whether images fit into shared memory of some bytes, which Fast DDS uses."""
    return warn_if(
        size < _LITTLE_SHARED_MEMORY,
        "shared memory",
        f"{size / _GB:.2f} GB in /dev/shm",
        "Fast DDS drops images that do not fit",
        "start the container with `--shm-size=1g` or `--ipc=host`",
    )
