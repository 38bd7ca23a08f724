"""Positions that come one by one: what nothing could have moved to is left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A fast aircraft; a receiver's noise is less than the step.
_FASTEST_M_S = 300.0
_LEAST_STEP_M = 30.0
_LEAST_SECONDS = 0.02
# So many in a row that agree with each other: what they come from was started anew.
_AGREE = 5


class Steps:
    """Says of each position whether its source can have moved there."""

    def __init__(self) -> None:
        """Start before the first position."""
        self._last: tuple[int, NDArray[np.float64]] | None = None
        self._others: list[tuple[int, NDArray[np.float64]]] = []

    def refusal(self, stamp_ns: int, position: NDArray[np.float64]) -> str:
        """Return why a position cannot be, or nothing if it can; it is then the last one.

        Args:
            stamp_ns: when it was.
            position: (3,) metres.
        """
        here = (stamp_ns, np.asarray(position, np.float64))
        if self._last is None or _reaches(self._last, here):
            self._last, self._others = here, []
            return ""
        if self._others and not _reaches(self._others[-1], here):
            self._others = []
        self._others.append(here)
        if len(self._others) >= _AGREE:
            self._last, self._others = here, []
            return ""
        step = float(np.linalg.norm(here[1] - self._last[1]))
        seconds = (stamp_ns - self._last[0]) * 1e-9
        return f"a step of {step:.4g} m in {seconds:.3g} s is none"


def _reaches(one: tuple[int, NDArray[np.float64]], other: tuple[int, NDArray[np.float64]]) -> bool:
    step = float(np.linalg.norm(other[1] - one[1]))
    seconds = max(abs(other[0] - one[0]) * 1e-9, _LEAST_SECONDS)
    return step <= max(_LEAST_STEP_M, _FASTEST_M_S * seconds)
