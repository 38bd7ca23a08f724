"""Files that appear whole or not at all, and text of bounded size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path in the same directory to write to; it replaces `path` when the block ends.

    After an error in the block, `path` is as it was and what was written is deleted.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write text (as UTF-8) or bytes, whole or not at all."""
    content = data.encode() if isinstance(data, str) else data
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_bounded_text(path: Path, most_bytes: int, encoding: str = "utf-8") -> str:
    """Return the text of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more bytes than that, is not text, or is no regular file (a pipe or a
            device may never end).
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a pipe or a device, not a file")
    if status.st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes} bytes")
    return path.read_text(encoding=encoding)
