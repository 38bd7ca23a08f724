"""The file that a quantization writes, checked before hours of work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qvggt_core.errors import QuantizationError


def check_target(target: Path, sources: Iterable[Path]) -> None:
    """Check that a file can be written, and that it is none of those that are read.

    Raises:
        QuantizationError: it is a directory or one of the sources, or its directory cannot be
            made or written to.
    """
    if target.is_dir():
        raise QuantizationError(
            f"{target} is a directory: name the file to write, e.g. {target / 'int4.safetensors'}"
        )
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise QuantizationError(
                f"{target} is the file that is read: its weights would be lost, name another output"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuantizationError(f"cannot make the directory of {target}: {error}") from error
    if not os.access(target.parent, os.W_OK):
        raise QuantizationError(f"{target.parent} is read-only: {target.name} cannot be written")
