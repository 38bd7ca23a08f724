"""Runs a file of kernel tests under Triton's interpreter, in a process of its own.

Triton reads TRITON_INTERPRET when it is imported, and compiling needs it unset. A file of
kernel tests therefore holds ordinary tests on `DEVICE`: on a machine with a CUDA device they
run there, elsewhere they are skipped, and one test of the file runs the file again through
`run_interpreted`, where they run on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"

on_device = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="no CUDA device; run under the interpreter"
)
"""Mark of tests that call kernels."""


def run_interpreted(file: str) -> None:
    """Run the marked tests of a file under the interpreter; all have to pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", Path(file)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
