"""Large messages of ROS that are filled again once no one holds them.

What a message of megabytes costs is new pages more than the copy (benchmarks/ros_layer.py). A
message that was published is serialised, and can be filled anew as soon as it is let go of. The
whole message is kept, since some releases of ROS copy an array that is assigned to a field.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_MOST_KEPT = 6
_RESIZED = 2.0
"""A message is filled with data that is at most so many times larger or smaller than its former."""

_Kept = list[tuple[Any, Any]]


def _references(kept: _Kept, index: int) -> tuple[int, int]:
    return sys.getrefcount(kept[index][1]), sys.getrefcount(kept[index][1].data)


_UNHELD = _references([(None, SimpleNamespace(data=array("B")))], 0)
"""References to a message and its data that only a list of them holds."""


class MessagePool:
    """Messages with a field `data` that is an array of octets; for one thread."""

    def __init__(self) -> None:
        """Start without any."""
        self._kept: _Kept = []

    def take(self, message_class: Callable[..., Any], count: int, **fields: Any) -> Any:
        """Return a message that no one else holds.

        A message is used again when neither it nor its data nor a view of that is held. The least
        recently used one is let go of where there are too many.

        Args:
            message_class: of the message.
            count: octets of its data, of any values.
            fields: the others; those that are left out have their defaults.
        """
        key = (message_class, frozenset(fields))
        for index in range(len(self._kept)):
            if self._kept[index][0] == key and self._is_free(index, count):
                _, message = self._kept.pop(index)
                _resize(message.data, count)
                break
        else:
            message = message_class()
            message.data.frombytes(bytes(count))
        for name, value in fields.items():
            setattr(message, name, value)
        self._kept = [(key, message), *self._kept[: _MOST_KEPT - 1]]
        return message

    def _is_free(self, index: int, count: int) -> bool:
        size = len(self._kept[index][1].data)
        fits = count <= _RESIZED * size and size <= _RESIZED * count
        return fits and _references(self._kept, index) == _UNHELD


def _resize(data: array[int], count: int) -> None:
    if len(data) > count:
        del data[count:]
    else:
        data.frombytes(bytes(count - len(data)))
