"""Registers operators of qvggt with PyTorch, so that compilers and CUDA graphs see each whole."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

from .selfcheck import SelfCheck

_LIBRARY = Library("qvggt", "DEF")

Function = Callable[..., Any]


def register(
    schema: str, compute: Function, *, fake: Function, reference: Function | None = None
) -> Function:
    """Define `qvggt::<name>` and return it as a callable.

    A call takes one to two microseconds more than the function behind it (a decorated
    `torch.library.custom_op` twice as much), which counts for a network of tiny layers.

    Args:
        schema: of the operator, in PyTorch's notation, without the namespace. The first argument
            is a tensor.
        compute: computes it, on the CPU and on CUDA devices.
        fake: returns results of the right shape, dtype and device without computing.
        reference: computes the same by PyTorch on any device, for the self-check on CUDA
            devices; None where the operator exists on the CPU alone.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, compute, "CPU")
    if reference is not None:
        _LIBRARY.impl(name, SelfCheck(name, _OnDevice(compute), reference), "CUDA")
    torch.library.register_fake(f"qvggt::{name}", fake, lib=_LIBRARY)
    operator: Function = getattr(torch.ops.qvggt, name).default
    return operator


class Lazy:
    """A function of this package that is imported by its first call: Triton may be missing."""

    def __init__(self, path: str) -> None:
        """Take `module:function`, relative to this package."""
        self._module, self._name = path.split(":")
        self._function: Function | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        if self._function is None:
            module = importlib.import_module(f"{__package__}.{self._module}")
            self._function = getattr(module, self._name)
        return self._function(*arguments)


class _OnDevice:
    """Calls a function on its arguments' device: Triton launches on the current one."""

    def __init__(self, compute: Function) -> None:
        self._compute = compute

    def __call__(self, *arguments: Any) -> Any:
        with torch.cuda.device(arguments[0].device):
            return self._compute(*arguments)
