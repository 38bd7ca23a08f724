"""The sliding window: which views the network sees together, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvggt_core.stream.align import Anchor
from qvggt_core.stream.frame import View


@dataclass
class Entry:
    """A view in the window, and what was made of it so far.

    Attributes:
        view: the view.
        is_keyframe: whether it stays until it is the oldest.
        tokens: what the network's encoder made of it; None before its first run.
        anchor: its place in the current map; None while it has none.
        is_published: whether its geometry was given out; once is enough.
    """

    view: View
    is_keyframe: bool
    tokens: Any = None
    anchor: Anchor | None = None
    is_published: bool = False


class SlidingWindow:
    """Keyframes, oldest first, and at most one newest view that is none.

    A view that is no keyframe takes the last place and gives it up to whatever comes next. So a
    robot that hovers still gets its newest frame reconstructed, and its window keeps the views
    that were worth keeping.
    """

    def __init__(self, size: int, stride: int) -> None:
        """Start empty.

        Args:
            size: most views in the window.
            stride: frames that arrive between two runs of the network, those that were replaced
                before a run included.
        """
        self.entries: list[Entry] = []
        self._size = size
        # Without this cap a keyframe could leave before a run has seen it.
        self._stride = min(stride, size)
        self._arrived = 0

    @property
    def is_due(self) -> bool:
        """Whether the network shall run now."""
        return self._arrived >= self._stride

    def add(self, view: View, is_keyframe: bool) -> Entry | None:
        """Append a view; return the entry that had to leave for it, if any."""
        self._arrived += 1
        left = None
        if self.entries and not self.entries[-1].is_keyframe:
            left = self.entries.pop()
        elif len(self.entries) == self._size:
            left = self.entries.pop(0)
        self.entries.append(Entry(view, is_keyframe))
        return left

    def ran(self) -> None:
        """Count the stride from here."""
        self._arrived = 0

    def run_again(self) -> bool:
        """Let the network run as soon as one more view is there; return whether that can help.

        It can when the views that are placed in the map outnumber those that the next view may
        push out, so that no view leaves without geometry and one that is placed remains.
        """
        self._arrived = self._stride - 1
        pushed_out = max(0, len(self.entries) + 1 - self._size)
        return sum(entry.anchor is not None for entry in self.entries) > pushed_out

    def clear(self) -> None:
        """Forget all views."""
        self.entries = []
        self._arrived = 0
