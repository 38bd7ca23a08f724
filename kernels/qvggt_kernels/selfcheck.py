"""Compares the first call of a GPU kernel with some shapes with plain PyTorch on the same input.

Kernels are compiled on the machine where they run, by a compiler and for a GPU that their tests may
not have covered. A robot must then be slow, not wrong: a kernel that cannot be compiled, or whose
numbers differ, is reported once, and plain PyTorch does its work from there.
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

_MAX_SIGNATURES = 4096
"""Combinations of shapes and dtypes that are remembered as checked."""


class SelfCheck:
    """A kernel and the reference that it stands for, which may both write to their arguments.

    Attributes:
        failures: what was wrong, by device on which the kernel is not used any more.
    """

    def __init__(
        self, name: str, kernel: Callable[..., Any], reference: Callable[..., Any]
    ) -> None:
        self.failures: dict[torch.device, str] = {}
        self._name = name
        self._kernel = kernel
        self._reference = reference
        self._checked: set[tuple[torch.device, tuple[Any, ...]]] = set()

    def __call__(self, *arguments: Any) -> Any:
        """Return the kernel's result for arguments, the first of which is a tensor."""
        device = arguments[0].device
        if device in self.failures:
            return self._reference(*arguments)
        # What is compiled and launched depends on shapes and dtypes, so each is checked.
        key = (device, tuple(_signature(argument) for argument in arguments))
        if key in self._checked:
            return self._kernel(*arguments)
        result = self._check(device, arguments)
        if len(self._checked) == _MAX_SIGNATURES:
            self._checked.clear()
        self._checked.add(key)
        return result

    def _check(self, device: torch.device, arguments: tuple[Any, ...]) -> Any:
        copies = tuple(_copy(argument) for argument in arguments)
        expected = self._reference(*copies)
        # The reference's result is kept whatever the kernel does to memory of its own.
        used = tuple(_copy(argument) for argument in arguments)
        try:
            found = self._kernel(*used)
            failure = _difference((expected, *copies), (found, *used))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; all of them end here
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
        return expected


def _signature(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype
    return argument if isinstance(argument, bool) else type(argument)


def _copy(argument: Any) -> Any:
    return argument.clone() if isinstance(argument, Tensor) else argument


def _difference(expected: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    """Describe what differs by more than rounding; empty if nothing does."""
    for one, other in zip(expected, found, strict=True):
        if not isinstance(one, Tensor):
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"it gave {tuple(other.shape)} {other.dtype}, not {tuple(one.shape)} {one.dtype}"
        if not one.numel():
            continue
        exact, given = (torch.nan_to_num(values.double()) for values in (one, other))
        magnitude = float(exact.abs().mean())
        deviation = float((exact - given).abs().mean())
        if deviation > _MAX_DEVIATION * magnitude:
            return f"its numbers deviate by {deviation:.3g} where they are {magnitude:.3g} large"
    return ""
