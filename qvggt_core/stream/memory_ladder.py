"""What gives way where memory runs out while a network runs: slices first, then the window."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from qvggt_core.model import VGGT
from qvggt_core.model.dense_head import DenseHead
from qvggt_core.model.memory_plan import narrower
from qvggt_core.util.shortage import is_no_memory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_STEADY_RUNS = 20
_MOST_PATIENCE = 640


class Patience:
    """When to try again with more: after so many runs that went well, twice as many each time."""

    def __init__(self) -> None:
        """Start with nothing lacking."""
        self._wanted = _STEADY_RUNS
        self._ran = 0

    def failed(self) -> None:
        """Begin anew, and wait longer: what was tried was too much."""
        self._wanted = min(2 * self._wanted, _MOST_PATIENCE)
        self._ran = 0

    def went_well(self) -> bool:
        """Count a run; return whether more may be tried with the next."""
        self._ran += 1
        if self._ran < self._wanted:
            return False
        self._ran = 0
        return True


class Slices:
    """Runs a network in ever narrower slices where memory runs out, and in wider ones later."""

    def __init__(self, model: VGGT) -> None:
        """Begin with what the network is configured for when it first runs."""
        self._model = model
        self._step = 0
        self._patience = Patience()

    def run(self, work: Callable[[], Result], pixels: int) -> Result:
        """Return what some work gives, in narrower slices if it needs more memory than there is.

        Args:
            work: runs the network.
            pixels: of an image: the least that a dense head decodes at once.

        Raises:
            Exception: as the work raises it, where even the narrowest slices do not help.
        """
        while True:
            try:
                done = work()
            except Exception as error:
                if not is_no_memory(error) or not self._narrow(pixels):
                    raise
                logger.warning("memory ran out: the network goes on in narrower slices (%s)", error)
                continue
            if self._step and self._patience.went_well():
                self._widen(pixels)
            return done

    def _narrow(self, pixels: int) -> bool:
        """Take the next narrower slices; return whether there are any."""
        release()
        if not self._configure(self._step + 1, pixels):
            return False
        self._patience.failed()
        return True

    def _widen(self, pixels: int) -> None:
        self._configure(self._step - 1, pixels)

    def _configure(self, step: int, pixels: int) -> bool:
        if self._step == 0:
            heads = (each for each in self._model.modules() if isinstance(each, DenseHead))
            self._widest = next(heads).settings
        choices = list(narrower(self._widest, pixels))
        if step >= len(choices):
            return False
        self._model.configure(choices[step])
        self._step = step
        return True


def release() -> None:
    """Give back what nothing uses, on every device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
