"""A cache of bounded size: tables per patch grid, CUDA graphs per window shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class LruCache(Generic[_T]):
    """Keeps the values of the most recently used keys."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the value of `key`, made by `make` if it is not there."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()
