"""Threads that begin, or an error: CPython waits for ever for one whose first lines lack memory."""

from __future__ import annotations

import mmap
import resource
import threading

_USUAL_STACK = 8 << 20
_FIRST_LINES = 1 << 20
"""Bytes that a thread takes before it is known to run, with a good deal to spare."""


def check_room_for_thread() -> None:
    """Check that there is address space for one more thread, just before it is started.

    Raises:
        MemoryError: there is not enough.
    """
    stack = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack == resource.RLIM_INFINITY:
        stack = _USUAL_STACK
    needed = stack + _FIRST_LINES
    try:
        mmap.mmap(-1, needed).close()
    except OSError as error:
        raise MemoryError(f"{needed >> 20} MB of address space for a thread: {error}") from error


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        MemoryError: there is no room for it.
    """
    check_room_for_thread()
    thread.start()
