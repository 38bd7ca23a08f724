"""Memory that is not there: as Python, PyTorch, CUDA and C++ say it."""

from __future__ import annotations

_NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc"),
    *("insufficient memory", "unable to allocate", "failed to map segment"),
)
# oneDNN, when it gets no memory for the code that it writes. What it has no code for ends in
# "... a primitive descriptor" and is something else.
_NO_PRIMITIVE = ("could not create a primitive", "could not execute a primitive")


def is_no_memory(error: BaseException) -> bool:
    """Return whether an exception says that there is not enough memory."""
    text = str(error).lower()
    is_worded_so = any(words in text for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or is_worded_so or text.endswith(_NO_PRIMITIVE)
