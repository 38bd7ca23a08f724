"""Installs the PyTorch that qvggt was tested with, in the build that fits this machine.

From PyPI, pip takes the CUDA build on every x86-64 Linux: gigabytes that a machine without an
NVIDIA GPU cannot use. Here such a machine gets the CPU build: from the indexes and folders that
pip is configured for, if they have it, else from PyTorch's own index. Where neither can be had,
it is the configured ones' build after all.

    python tools/install_torch.py            # with the Python that will run qvggt
    python tools/install_torch.py --dry-run  # only show the command
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PINS = Path(__file__).resolve().parents[1] / "requirements.txt"
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_JETSON = Path("/etc/nv_tegra_release")
# An index that cannot be reached must not hold up an installation behind a proxy or offline.
_PATIENCE = ("--retries", "1", "--timeout", "15")


def main(arguments: Sequence[str] | None = None) -> int:
    """Install PyTorch unless a fitting one is there; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    options = parser.parse_args(arguments)
    if (version := installed_version()) is not None:
        print(f"PyTorch {version} is installed")
        return 0
    if _JETSON.exists():
        print(
            "On a Jetson, PyTorch comes from NVIDIA, for JetPack 6: `pip install torch "
            "--index-url https://pypi.jetson-ai-lab.io/jp6/cu126`",
            file=sys.stderr,
        )
        return 1
    requirement = pinned_requirement(_PINS.read_text(encoding="utf-8"))
    choices = installations(requirement, _NVIDIA_DRIVER.exists(), CPU_INDEX)
    if options.dry_run:
        print("pip install", *choices[0])
        return 0
    for choice in choices:
        print("pip install", *choice, flush=True)
        status = _pip("install", *choice).returncode
        if status == 0:
            return 0
    return status


def pinned_requirement(pins: str) -> str:
    """Return the line of a requirements file that pins PyTorch, e.g. "torch==2.13.0"."""
    (line,) = re.findall(r"^torch==[\w.]+", pins, re.MULTILINE)
    return str(line)


def installed_version() -> str | None:
    """Return the version of the PyTorch that this Python imports, or None."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def installations(requirement: str, gpu: bool, cpu_index: str) -> list[list[str]]:
    """Return arguments for `pip install` in the order in which they are tried.

    Args:
        requirement: such as "torch==2.13.0".
        gpu: whether the machine has an NVIDIA GPU.
        cpu_index: address of the index that has CPU builds.
    """
    configured = [requirement]
    if gpu or not draws_cuda(requirement):
        return [configured]
    cpu = [f"{requirement}+cpu", "--extra-index-url", cpu_index, *_PATIENCE]
    return [cpu, configured]


def draws_cuda(requirement: str) -> bool:
    """Return whether pip, as it is configured, would install CUDA's libraries too."""
    done = _pip(
        *("install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"),
        requirement,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return True  # nothing fits there, so the other index is the first choice
    names = (entry["metadata"]["name"] for entry in json.loads(done.stdout)["install"])
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def _pip(*arguments: str, **options: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], **options)  # type: ignore[call-overload]


if __name__ == "__main__":
    raise SystemExit(main())
