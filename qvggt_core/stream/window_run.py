"""Runs of the network on the views in the window, with less of them where memory is short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from qvggt_core.stream.conditioning import Conditioning, KnownCameras
from qvggt_core.stream.frame import WindowPrediction
from qvggt_core.stream.network import Network
from qvggt_core.stream.poses_from_matches import PosesFromMatches
from qvggt_core.stream.prediction_check import cleaned
from qvggt_core.stream.window import Entry, SlidingWindow
from qvggt_core.util.shortage import is_no_memory


class WindowRun:
    """Gives the network a window's views, and the cameras that are known of them."""

    def __init__(
        self,
        network: Network,
        window: SlidingWindow,
        conditioning: Conditioning,
        add_event: Callable[[str], None],
        matches: PosesFromMatches | None = None,
    ) -> None:
        """Connect a network to a window.

        Args:
            network: gives the geometry of windows.
            window: its views; older ones are given up where memory runs out.
            conditioning: knows cameras of views.
            add_event: is given a sentence on what a run had to do without.
            matches: solves the windows that the network predicts; None to leave them as they are.
        """
        self._network = network
        self._window = window
        self._conditioning = conditioning
        self._add_event = add_event
        self._matches = matches
        self._ran_unconditioned = False
        self._encoding_s = 0.0

    def encode(self) -> None:
        """Encode the views that are not yet: what is made of a view stays with it.

        As soon as a view is there, so that a live stream, which waits for the images of a stride,
        has only the last of them left to encode when they are complete.
        """
        start = time.perf_counter()
        for entry in self._window.entries:
            if entry.tokens is None:
                entry.tokens = self._network.encode(entry.view.image)
        self._encoding_s += time.perf_counter() - start

    def predict(self, scale_views: int) -> WindowPrediction:
        """Return the geometry of the encoded views, fewer of the older where memory runs out.

        Args:
            scale_views: most placed views that give a window's scale, 0 for all.
        """
        while True:
            entries = self._window.entries
            height, width = entries[0].view.image.shape[:2]
            cameras = self._known_cameras(entries)
            known = {} if cameras is None else {"cameras": cameras}
            tokens, with_depth = [e.tokens for e in entries], _needing_depth(entries, scale_views)
            try:
                found = cleaned(self._network.predict(tokens, height, width, with_depth, **known))
                if self._matches is None or known:
                    return found
                return self._matches.solved(found, [entry.view for entry in entries])
            except Exception as error:
                size = self._window.shrink() if is_no_memory(error) else 0
                if not size:
                    raise
                self._add_event(
                    f"memory ran out: the window has {size} views instead of {len(entries)} until "
                    "there is room again; memory_budget_mb plans for less"
                )

    def seconds(self, clock: Sequence[float]) -> dict[str, float]:
        """Return the time of each step that led to a window's geometry, as `Reconstruction` has it.

        Args:
            clock: readings before and after the network's run, and after its views were placed.
        """
        encoding, self._encoding_s = self._encoding_s, 0.0
        network, align = (end - start for start, end in pairwise(clock))
        return {"encode": encoding, "network": network, "align": align}

    def _known_cameras(self, entries: list[Entry]) -> KnownCameras | None:
        cameras = self._conditioning.cameras([entry.view for entry in entries])
        shortfall = self._conditioning.shortfall
        if shortfall and not self._ran_unconditioned:
            self._add_event(f"a window ran without its known cameras: {shortfall}")
        self._ran_unconditioned = bool(shortfall)
        return cameras


def _needing_depth(entries: list[Entry], scale_views: int) -> int:
    """Return how many views, the last of the window, need depth: new ones, and for the scale.

    The placed views that give a window's scale had depth in the window before: they are the
    last placed ones there or were new.
    """
    first_new = next(i for i, entry in enumerate(entries) if not entry.is_published)
    for_scale = scale_views or first_new
    return len(entries) - max(0, first_new - for_scale)
