"""Random calls end in the right numbers or in an error of ours, and never the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("seed", [1000, 1001])
def test_random_calls_are_right_or_refused(seed):
    """Longer, and with AddressSanitizer: `python -m torture.kernels --sanitize`."""
    done = subprocess.run(
        [sys.executable, "-m", "support.random_calls", "--seed", str(seed), "--calls", "100"],
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["explained"] == figures["cases"] == 100, figures["examples"]
    assert figures["equal"] >= 15, "too few calls compute anything"
