"""The sliding window: which views the network sees together, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvggt_core.stream.align import Anchor
from qvggt_core.stream.frame import View
from qvggt_core.stream.memory_ladder import Patience
from qvggt_core.stream.track_odometry import Observation


@dataclass
class Entry:
    """A view in the window, and what was made of it so far.

    Attributes:
        view: the view.
        is_keyframe: whether it stays until it is the oldest.
        tokens: what the network's encoder made of it; None before its first run.
        anchor: its place in the current map; None while it has none.
        is_published: whether its geometry was given out; once is enough.
        observation: what followed points show of it; None where none are followed.
    """

    view: View
    is_keyframe: bool
    tokens: Any = None
    anchor: Anchor | None = None
    is_published: bool = False
    observation: Observation | None = None


class SlidingWindow:
    """The last keyframes, oldest first, and the newest views.

    A view that is no keyframe stays until it has its geometry, and leaves before the next view
    comes. So every frame is reconstructed, also while a robot hovers, and its window never fills
    with one view: whatever happens, `size - stride` places belong to keyframes.
    """

    def __init__(self, size: int, stride: int) -> None:
        """Start empty.

        Args:
            size: most views in the window.
            stride: views that arrive between two runs of the network.
        """
        self.entries: list[Entry] = []
        self._size = size
        # Without this cap a keyframe could leave before a run has seen it.
        self._stride = min(stride, size)
        self._arrived = 0
        self._most = size
        self._patience = Patience()

    @property
    def is_due(self) -> bool:
        """Whether the network must run now."""
        return self._arrived >= self._stride

    def add(self, view: View, is_keyframe: bool) -> Entry | None:
        """Append a view; return the entry that a full window had to give up for it, if any."""
        self._arrived += 1
        self.entries = [
            entry for entry in self.entries if entry.is_keyframe or not entry.is_published
        ]
        left = self.entries.pop(0) if len(self.entries) == self._size else None
        self.entries.append(Entry(view, is_keyframe))
        return left

    def ran(self) -> None:
        """Count the stride from here; a window that was shrunk may grow again."""
        self._arrived = 0
        if self._size < self._most and self._patience.went_well():
            self._size += 1

    def shrink(self) -> int:
        """Give up the older half of the views that have their geometry: memory ran out.

        Those that wait for theirs stay, and one that is placed in the map.

        Returns:
            The views that are left; 0 if none can be given up.
        """
        waiting = sum(not entry.is_published for entry in self.entries)
        size = max(len(self.entries) // 2, waiting + 1)
        if size >= len(self.entries):
            return 0
        self.entries = self.entries[-size:]
        self._size = max(size, self._stride + 1)
        self._patience.failed()
        return size

    def run_again(self, coming: int = 1) -> bool:
        """Let the network run as soon as more views are there, if that can help.

        It can when the views that are placed in the map outnumber those that the next ones may
        push out, so that no view leaves without geometry and one that is placed remains.

        Args:
            coming: how many views the next frame brings: the number of cameras.

        Returns:
            Whether it can help, and so will be done.
        """
        pushed_out = max(0, len(self.entries) + coming - self._size)
        helps = sum(entry.anchor is not None for entry in self.entries) > pushed_out
        if helps:
            self._arrived = self._stride - 1
        return helps

    def clear(self) -> None:
        """Forget all views."""
        self.entries = []
        self._arrived = 0
