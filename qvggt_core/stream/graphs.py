"""Replays a network's steps as CUDA graphs, one per shape: one launch instead of a thousand.

A graph works on memory of its own, so a shape that comes once is not worth one: it is captured
when a shape comes for the second time, and only the shapes that came last are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from qvggt_core.model.lru import LruCache

Step = Callable[..., tuple[Tensor, ...]]
"""A function of a tensor and of hashable constants, with the same shapes for the same of both."""

_log = logging.getLogger(__name__)

_KEPT_GRAPHS = 4
_WARM_UPS = 2
_MAX_DEVIATION = 0.02
"""Mean deviation, relative to the mean magnitude, from which a replay is no rounding any more."""


class GraphCache:
    """A step that is replayed where it can be, and run as it is where it cannot.

    Attributes:
        failure: why capturing failed, after which everything runs as it is; empty if it did not.
    """

    def __init__(
        self,
        step: Step,
        capture: Callable[
            [Step, Tensor, tuple[Hashable, ...]], Callable[[Tensor], tuple[Tensor, ...]]
        ],
        kept: int = _KEPT_GRAPHS,
    ) -> None:
        """Start without any graph.

        Args:
            step: see `Step`.
            capture: makes of the step, a tensor and constants what replays it for such tensors.
            kept: graphs that are kept.
        """
        self.failure = ""
        self._step = step
        self._capture = capture
        self._graphs: LruCache[Callable[[Tensor], tuple[Tensor, ...]]] = LruCache(kept)
        self._seen: LruCache[None] = LruCache(4 * kept)

    def __call__(self, x: Tensor, *constants: Hashable) -> tuple[Tensor, ...]:
        """Return what the step makes of `x`; replayed tensors are valid until the next call."""
        key = (x.shape, x.dtype, x.device, constants)
        if self.failure or key not in self._seen:
            self._seen.get(key, lambda: None)
            return self._step(x, *constants)
        try:
            replay = self._graphs.get(key, lambda: self._capture(self._step, x, constants))
        # Memory that graphs hold beside each other can run out, and libraries may not be
        # capturable: the network goes on without graphs.
        except RuntimeError as error:
            self._graphs.clear()
            self.failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            _log.warning("the network runs without CUDA graphs: %s", self.failure)
            return self._step(x, *constants)
        return replay(x)


def graphed(step: Step, device: torch.device, kept: int = _KEPT_GRAPHS) -> Step:
    """Return a step that is replayed as CUDA graphs on a CUDA device, and as it is elsewhere."""
    if device.type != "cuda":
        return step
    # Graphs share a pool: each copies its results out before another one runs.
    pool = torch.cuda.graph_pool_handle()
    return GraphCache(step, lambda step, x, constants: _CudaGraph(step, x, constants, pool), kept)


class _CudaGraph:
    """One captured run, its input and its outputs."""

    def __init__(self, step: Step, x: Tensor, constants: tuple[Hashable, ...], pool: Any) -> None:
        """Capture the step, after runs that let libraries and caches set themselves up.

        Raises:
            RuntimeError: it cannot be captured, or the replay deviates from the run.
        """
        # Memory that outlives the inference mode that may surround this call.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(x.device):
            self._input = x.clone()
            stream = torch.cuda.Stream(x.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    expected = [out.clone() for out in step(self._input, *constants)]
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self._outputs = step(self._input, *constants)
            for wanted, found in zip(expected, self(x), strict=True):
                check_replay(wanted, found)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self._input.copy_(x)
        self._graph.replay()
        return self._outputs


def check_replay(wanted: Tensor, found: Tensor) -> None:
    """Hold a replay against the run that it stands for; once per graph.

    Raises:
        RuntimeError: it is something else.
    """
    wanted, found = (torch.nan_to_num(values.float()) for values in (wanted, found))
    magnitude = float(wanted.abs().mean())
    deviation = float((wanted - found).abs().mean())
    if deviation > _MAX_DEVIATION * magnitude:
        raise RuntimeError(
            f"a replayed graph deviates by {deviation:.3g} from a run whose values are "
            f"{magnitude:.3g} large"
        )
