"""Images of a recording's two cameras, put together by their stamps."""

from __future__ import annotations

from collections import deque
from typing import Any

from qvggt_ros.io.conversions import stamp_ns

FIRST, SECOND = "first", "second"
"""Names of the cameras in a replay of two."""

_KEPT = 32


class StereoPairs:
    """Waits with an image of the first camera for the second one's, until the next one comes."""

    def __init__(self, slop_s: float) -> None:
        """Start without an image; stamps of a pair differ by so many seconds at most."""
        self._slop_ns = round(1e9 * slop_s)
        self._waiting: Any = None
        self._others: deque[Any] = deque(maxlen=_KEPT)

    def first(self, message: Any) -> list[dict[str, Any]]:
        """Take an image of the first camera; return the sets that are complete, by camera."""
        done, self._waiting = self.rest(), message
        return done + self._matched()

    def other(self, message: Any) -> list[dict[str, Any]]:
        """Take an image of the second camera; return the sets that are complete, by camera."""
        self._others.append(message)
        return self._matched()

    def rest(self) -> list[dict[str, Any]]:
        """Return the image that still waits, alone."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [{FIRST: waiting}]

    def _matched(self) -> list[dict[str, Any]]:
        if self._waiting is None or not self._others:
            return []
        stamp = stamp_ns(self._waiting)
        nearest = min(self._others, key=lambda other: abs(stamp_ns(other) - stamp))
        if abs(stamp_ns(nearest) - stamp) > self._slop_ns:
            return []
        self._others.remove(nearest)
        waiting, self._waiting = self._waiting, None
        return [{FIRST: waiting, SECOND: nearest}]
