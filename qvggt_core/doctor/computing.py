"""Checks of what will compute: device, kernels, number format and threads, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from qvggt_core.doctor.finding import Finding, ok, problem, warn
from qvggt_core.optional import OPTIONAL_PACKAGES

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def check_computing(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return findings on device, kernels, dtype and threads.

    Args:
        environment: the process's environment variables.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        return [problem("torch", f"cannot be imported: {error}", _install("torch"))]
    from qvggt_kernels import fastest_dtype, fastest_linears

    device = "cuda" if torch.cuda.is_available() else "cpu"
    findings = [_device(torch.__version__, device), _kernels(device)]
    dtype = str(fastest_dtype(device)).removeprefix("torch.")
    findings.append(
        ok(
            "arithmetic",
            f"{dtype}, wide 4-bit linears in {fastest_linears(device)}: fastest on this {device}",
        )
    )
    findings.append(thread_finding(torch.get_num_threads(), usable_cores(), environment))
    return findings


def thread_finding(threads: int, cores: int, environment: Mapping[str, str]) -> Finding:
    """Return whether as many threads run as there are cores.

    Args:
        threads: of PyTorch.
        cores: that this process may use.
        environment: variables, for the one that set the threads.
    """
    found = f"{threads} on {cores} usable cores"
    setting = environment.get("OMP_NUM_THREADS")
    if threads > cores:
        why = f" (OMP_NUM_THREADS={setting})" if setting else ""
        return warn(
            "threads",
            f"{found}{why}: they wait for each other",
            f"`export OMP_NUM_THREADS={cores}`, or the parameter `threads: {cores}`",
        )
    if setting and threads < cores:
        return ok("threads", found, "more with `unset OMP_NUM_THREADS`, if the cores are free")
    return ok("threads", found)


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, bounded by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup of version 2, or no quota ("max")
        return cores or 1


def device_finding(torch_version: str, device: str, driver: bool) -> Finding:
    """Return which device runs the network, and whether a GPU is left unused.

    Args:
        torch_version: such as "2.13.0+cpu".
        device: "cuda" or "cpu", the one that PyTorch can use.
        driver: whether the machine has a loaded NVIDIA driver.
    """
    if device == "cpu" and driver:
        return warn(
            "device",
            f"cpu, though there is an NVIDIA GPU: PyTorch {torch_version} does not see it",
            "install PyTorch for CUDA: `pip install --force-reinstall torch --index-url "
            "https://pypi.org/simple` (on a Jetson, NVIDIA's own: see docs/ros.md)",
        )
    why = "PyTorch sees a GPU" if device == "cuda" else "there is no NVIDIA GPU"
    return ok("device", f"{device}: {why} (PyTorch {torch_version})")


def _device(torch_version: str, device: str) -> Finding:
    return device_finding(torch_version, device, _NVIDIA_DRIVER.exists())


def _kernels(device: str) -> Finding:
    from qvggt_kernels import native

    if device == "cuda":
        if find_spec("triton") is None:
            return warn(
                "kernels", "PyTorch's own: Triton is not installed, slower", _install("triton")
            )
        return ok("kernels", "Triton, each checked against PyTorch at its first use")
    return cpu_kernels_finding(native.status(), native.shortfall())


def cpu_kernels_finding(status: str, shortfall: str | None) -> Finding:
    """Return whether the C++ kernels run on this processor.

    Args:
        status: state of the kernels in words.
        shortfall: why they are missing on a processor that could run them; None if all is well.
    """
    if shortfall is not None:
        return warn(
            "kernels",
            f"PyTorch's own, several times slower: C++ kernels {shortfall}",
            "`sudo apt install g++`, then install qvggt again (`pip install --force-reinstall "
            "--no-deps .`, or `colcon build`)",
        )
    in_use = status.startswith("in use")
    return ok("kernels", f"C++ kernels {status}" if in_use else f"PyTorch: {status}")


def _install(module: str) -> str:
    return f"`{OPTIONAL_PACKAGES[module].install}`"
