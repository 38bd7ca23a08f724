"""Where tests run Triton kernels: on a GPU, or in a process of its own under Triton's interpreter.

Triton decides at its import, for the whole process, whether it interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")

DTYPES = (torch.float32, torch.float16)
"""What kernels are tested in: bfloat16 arithmetic is silently wrong in the interpreter."""

runs_kernels = pytest.mark.skipif(
    not INTERPRETED and DEVICE.type != "cuda",
    reason="no GPU in this process, and Triton does not interpret",
)


def assert_passes_interpreted(path: str) -> None:
    """Run the tests of a file with Triton's interpreter and require that they pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", path]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
