"""The first call of a GPU kernel with some shapes is a trial: plain PyTorch gets the same input.

Kernels are compiled on the machine where they run, by a compiler and for a GPU that their tests may
not have seen. A robot shall then be slow, not wrong: a kernel that cannot be compiled, or whose
numbers are others, is reported once, and plain PyTorch does its work from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_MAX_DEVIATION = 0.05
"""Mean deviation, relative to the mean magnitude, that no rounding to 16 or 8 bits explains."""

_MAX_KINDS = 4096
"""Combinations of shapes that are remembered as tried."""


class Trial:
    """A kernel and the plain function that it stands for, which may both write to their arguments.

    Attributes:
        failures: what was wrong, by device on which the kernel is not used any more.
    """

    def __init__(self, name: str, kernel: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.failures: dict[torch.device, str] = {}
        self._name = name
        self._kernel = kernel
        self._plain = plain
        self._tried: set[tuple[torch.device, tuple[Any, ...]]] = set()

    def __call__(self, *arguments: Any) -> Any:
        """Return what the kernel makes of the arguments, the first of which is a tensor."""
        device = arguments[0].device
        if device in self.failures:
            return self._plain(*arguments)
        # What is compiled and launched depends on shapes and dtypes, so each is tried.
        key = (device, tuple(_kind(argument) for argument in arguments))
        if key in self._tried:
            return self._kernel(*arguments)
        result = self._try(device, arguments)
        if len(self._tried) == _MAX_KINDS:
            self._tried.clear()
        self._tried.add(key)
        return result

    def _try(self, device: torch.device, arguments: tuple[Any, ...]) -> Any:
        copies = tuple(_copy(argument) for argument in arguments)
        wanted = self._plain(*copies)
        # The plain result is kept whatever the kernel does to memory of its own.
        kept = tuple(_copy(argument) for argument in arguments)
        try:
            found = self._kernel(*kept)
            failure = _difference((wanted, *copies), (found, *kept))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in ways of their own; all of them end here
            failure = f"{type(error).__name__}: {error}"
        if failure:
            self.failures[device] = failure
            _log.warning(
                "the kernel %s is not used on %s, plain PyTorch is: %s",
                self._name,
                device,
                failure.splitlines()[0],
            )
        for argument, copy in zip(arguments, copies, strict=True):
            if isinstance(argument, Tensor) and not torch.equal(argument, copy):
                argument.copy_(copy)
        return wanted


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype
    return argument if isinstance(argument, bool) else type(argument)


def _copy(argument: Any) -> Any:
    return argument.clone() if isinstance(argument, Tensor) else argument


def _difference(wanted: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    """Return what differs by more than rounding, in words; empty if nothing does."""
    for one, other in zip(wanted, found, strict=True):
        if not isinstance(one, Tensor):
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"it gave {tuple(other.shape)} {other.dtype}, not {tuple(one.shape)} {one.dtype}"
        if not one.numel():
            continue
        expected, given = (torch.nan_to_num(values.double()) for values in (one, other))
        magnitude = float(expected.abs().mean())
        deviation = float((expected - given).abs().mean())
        if deviation > _MAX_DEVIATION * magnitude:
            return f"its numbers deviate by {deviation:.3g} where they are {magnitude:.3g} large"
    return ""
