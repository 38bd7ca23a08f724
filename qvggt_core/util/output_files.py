"""Files that a command writes by their names: what is there and not of a former run is left alone.

Commands whose output is a directory of its own have `directories.new_output`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from qvggt_core.errors import OutputError

_MOST_BYTES = 1 << 28

IsFormer = Callable[[Path], bool]
"""Whether a former run of the same command has written a file that is there."""


def check_file(output: Path, is_former: IsFormer, inputs: Sequence[Path] = ()) -> None:
    """Check that a file may be written, before the work that fills it.

    Args:
        output: file to write.
        is_former: a file that is there is replaced if this holds.
        inputs: files and directories that are read; nothing is written into them.

    Raises:
        OutputError: something else is in the way; nothing was changed.
    """
    for source in inputs:
        if output.resolve().is_relative_to(source.resolve()):
            raise OutputError(f"{output} lies in {source}, which is read: choose another output")
    if output.is_dir():
        raise OutputError(f"{output} is a directory: name a file")
    if (output.exists() or output.is_symlink()) and not is_former(output):
        raise OutputError(
            f"{output} exists and is not of a former run of this command: choose another, it is "
            "left alone"
        )


def directory_of(output: Path, names: Sequence[str], is_former: IsFormer) -> Path:
    """Make the directory of files that a command writes, beside whatever else lies there.

    Args:
        output: the directory.
        names: of the files; the first one is always written.
        is_former: of the first file, and with it of all.

    Returns:
        The directory.

    Raises:
        OutputError: it is a file, or a file of these names is in the way; nothing was changed.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: name a directory")
    is_of_former_run = is_former(output / names[0])
    for name in names:
        check_file(output / name, lambda path: is_of_former_run)
    output.mkdir(parents=True, exist_ok=True)
    return output


def json_with(*keys: str) -> IsFormer:
    """Return what recognises a JSON object that has these keys."""

    def has_them(path: Path) -> bool:
        try:
            if path.stat().st_size > _MOST_BYTES:
                return False
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and all(key in found for key in keys)

    return has_them
