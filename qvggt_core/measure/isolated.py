"""Measurements in a process of their own, so that memory and caches are those of one thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from qvggt_core.errors import QvggtError

_TIMEOUT_S = 3600


class IsolatedError(QvggtError):
    """The process failed; the message is the last line of its errors."""


def run_isolated(
    module: str, task: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run a module whose main is `serve`, and return its result.

    Args:
        module: name of an importable module.
        task: its arguments, JSON-able.
        environment: variables beside those of this process.

    Raises:
        IsolatedError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(task)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise IsolatedError(lines[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def serve(measure: Callable[..., Mapping[str, Any]]) -> None:
    """Call a function with the task of this process and print its result."""
    sys.stdout.write(json.dumps(measure(**json.loads(sys.argv[1]))) + "\n")
