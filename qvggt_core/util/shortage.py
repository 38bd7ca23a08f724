"""Memory that is not there: as Python, PyTorch, CUDA and C++ say it."""

from __future__ import annotations

_NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc"),
    *("insufficient memory", "unable to allocate", "failed to map segment"),
)


def is_no_memory(error: BaseException) -> bool:
    """Return whether an exception says that there is not enough memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
