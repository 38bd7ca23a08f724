"""Failures of the disk, of memory and of packages in one line, whatever library raised them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator

from qvggt_core.errors import QvggtError
from qvggt_core.optional import missing_package
from qvggt_core.util.shortage import is_no_memory

_NO_ROOM = "I/O error"
# What PyTorch says where a file does not take what it writes.
_CUT_SHORT = "inline_container"
_MEMORY_HELPS = (
    "close other programs, or take a smaller network, window_size or image_width; "
    "memory_budget_mb checks before the work begins"
)


def explanation(failure: BaseException) -> str | None:
    """Return what an operator can do about a failure, or None where it is a fault of ours."""
    if isinstance(failure, QvggtError | OSError):
        return str(failure)
    if isinstance(failure, ImportError):
        missing = missing_package(failure)
        if missing is not None:
            return str(missing)
    for cause in _causes(failure):
        text = str(cause)
        if is_no_memory(cause):
            return f"not enough memory ({text or 'MemoryError'}): {_MEMORY_HELPS}"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return str(cause)
        # safetensors and SQLite have errors of their own for what a disk does.
        if type(cause).__module__.startswith("safetensors") and _NO_ROOM in text:
            return f"a file cannot be written or read: {text}"
        if isinstance(cause, RuntimeError) and _CUT_SHORT in text:
            return f"a file cannot be written, is the disk full? ({text})"
        if isinstance(cause, sqlite3.OperationalError):
            return f"a recording cannot be written or read: {text}"
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """Yield a failure, and what led to it."""
    seen: set[int] = set()
    waiting = [failure]
    while waiting:
        found = waiting.pop()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [each for each in (found.__cause__, found.__context__) if each is not None]
