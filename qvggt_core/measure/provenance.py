"""The origin of raw results: commit, checkpoints and machine, written beside the figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvggt_core.measure.machine import describe_machine
from qvggt_core.model import read_checkpoint
from qvggt_core.util.files import write_atomically


def provenance(*checkpoints: Path) -> dict[str, Any]:
    """Return what figures depend on beside their settings, as plain data.

    Args:
        checkpoints: files of weights that were measured; none where weights were random.

    Returns:
        "commit": hexadecimal, with "+" behind it where files differed from it; None outside a
        clone of the repository. "checkpoints": SHA-256 by file name. "machine": see
        `describe_machine`.
    """
    return {
        "commit": _commit(),
        "checkpoints": {path.name: read_checkpoint(path).sha256() for path in checkpoints},
        "machine": describe_machine(),
    }


def write_results(
    path: Path, results: Mapping[str, Any], *checkpoints: Path, digits: int | None = None
) -> None:
    """Write raw results as JSON with their provenance, whole or not at all.

    Args:
        path: of the file.
        results: plain data.
        checkpoints: see `provenance`.
        digits: significant digits of every number, for a compact file; None keeps all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if digits is None:
        text = json.dumps({**provenance(*checkpoints), **results}, indent=1)
    else:
        content = {**provenance(*checkpoints), **_rounded(results, digits)}
        text = json.dumps(content, separators=(",", ":"))
    write_atomically(path, text + "\n")


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each, digits) for each in value]
    return value


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
