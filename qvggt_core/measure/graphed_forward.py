"""A forward pass as one CUDA graph, also of code that waits for the device in between.

The original reads back 96 times a forward pass how long its rotary tables are, and a stream that
waits cannot be captured. What such calls return depends on the shape of the images alone: it is
recorded in a run and returned again during the capture. Where it depends on their content after
all, replays and runs differ on other images, and the network is not measured as a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qvggt_core.errors import BenchmarkError
from qvggt_core.stream.graphs import GraphCache, Step, check_replay

_READS = {"__bool__", "__float__", "__index__", "__int__", "item", "tolist"}
"""Functions of tensors that return numbers to the host."""

_MOVES = {"cuda", "to"}
"""Functions of tensors that may copy them to another device."""


class Crossings:
    """What a run of some code passes between host and device, in order."""

    def __init__(self) -> None:
        """Start without any."""
        self._recorded: list[tuple[Hashable, Any]] = []

    def recording(self) -> TorchFunctionMode:
        """Return the context in which a run is recorded, in place of a former one."""
        self._recorded = []
        return _Recording(self._recorded)

    def replaying(self) -> TorchFunctionMode:
        """Return the context in which the same run is given what was recorded.

        Its calls raise a RuntimeError where they are not those of the recorded run.
        """
        return _Replaying(self._recorded)


class _Recording(TorchFunctionMode):
    def __init__(self, recorded: list[tuple[Hashable, Any]]) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        moved = name in _MOVES and result.device != args[0].device
        if name in _READS or moved:
            self._recorded.append((_call(name, args, kwargs), result))
        return result


class _Replaying(TorchFunctionMode):
    def __init__(self, recorded: list[tuple[Hashable, Any]]) -> None:
        super().__init__()
        self._left = recorded[::-1]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS or name in _MOVES:
            call = _call(name, args, kwargs)
            if self._left and self._left[-1][0] == call:
                return self._left.pop()[1]
            if name in _READS:
                raise RuntimeError(f"{name} is called on a tensor where a former run did not")
        return func(*args, **(kwargs or {}))


def _call(name: str, args: Sequence[Any], kwargs: Any) -> Hashable:
    """Return what distinguishes a call, without the values of its tensors."""

    def described(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        place = value.device if name in _MOVES else ""
        return f"{tuple(value.shape)} {value.dtype} {place}"

    named = sorted((kwargs or {}).items())
    return (name, *map(described, args), *(f"{key}={described(value)}" for key, value in named))


class GraphedForward:
    """A contender's forward pass that is captured when images of a shape come first."""

    def __init__(
        self,
        forward: Callable[[Tensor, Sequence[str]], dict[str, Tensor]],
        cache_of: Callable[[Step], Step],
        is_capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing,
    ) -> None:
        """Take the forward pass.

        Args:
            forward: see `candidates.Contender`.
            cache_of: makes a `GraphCache` of a step.
            is_capturing: whether the calls that are made now are captured instead of run.
        """
        self._forward = forward
        self._cache = cache_of(self._step)
        self._is_capturing = is_capturing
        self._crossings = Crossings()
        self._names: tuple[str, ...] = ()
        self._ready: set[Hashable] = set()

    def __call__(self, images: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
        """Return what the forward pass does; the tensors are valid until the next call.

        Raises:
            BenchmarkError: it cannot be captured, or replays differ from runs.
        """
        key = (images.shape, images.dtype, tuple(heads))
        if key not in self._ready:
            self._prepare(images, heads)
            self._ready.add(key)
        return dict(zip(self._names, self._cache(images, *heads), strict=True))

    def _prepare(self, images: Tensor, heads: Sequence[str]) -> None:
        # A cache captures what comes for the second time.
        for _ in range(2):
            self._cache(images, *heads)
        failure = self._cache.failure if isinstance(self._cache, GraphCache) else "no CUDA device"
        if not failure:
            other = 1.0 - images
            expected = [tensor.clone() for tensor in self._forward(other, heads).values()]
            try:
                for wanted, found in zip(expected, self._cache(other, *heads), strict=True):
                    check_replay(wanted, found)
            except RuntimeError as error:
                failure = str(error)
        if failure:
            raise BenchmarkError(f"it does not run as a CUDA graph: {failure}")

    def _step(self, images: Tensor, *heads: Hashable) -> tuple[Tensor, ...]:
        crossings = self._crossings
        with crossings.replaying() if self._is_capturing() else crossings.recording():
            found = self._forward(images, [str(head) for head in heads])
        self._names = tuple(found)
        return tuple(found.values())
