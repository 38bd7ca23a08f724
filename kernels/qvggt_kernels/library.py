"""Registers operators of qvggt with PyTorch, so that compilers and CUDA graphs see each whole."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

from .trial import Trial

_LIBRARY = Library("qvggt", "DEF")


def register(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: str,
    fake: Callable[..., Any],
    plain: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define `qvggt::<name>` and return it as a callable.

    A call costs one to two microseconds more than the function behind it (a decorated
    `torch.library.custom_op` twice as much), which counts for a network of tiny layers.

    Args:
        schema: of the operator, in PyTorch's notation, without the namespace.
        cpu: what computes it on the CPU.
        cuda: what computes it on a CUDA device, as `module:function` within this package;
            imported by its first call, so that Triton is needed by no one else. The first
            argument is a tensor.
        plain: computes the same by PyTorch on any device, for the trial of the CUDA code; None is
            `cpu`.
        fake: returns results of the right shape, dtype and device without computing.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, Trial(name, _Lazy(cuda), plain or cpu), "CUDA")
    torch.library.register_fake(f"qvggt::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.qvggt, name).default
    return operator


class _Lazy:
    """A function of this package that is imported when it is first called."""

    def __init__(self, path: str) -> None:
        self._module, self._name = path.split(":")
        self._function: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._function is None:
            module = importlib.import_module(f"{__package__}.{self._module}")
            self._function = getattr(module, self._name)
        # Triton launches on the current device, PyTorch on that of its arguments.
        with torch.cuda.device(arguments[0].device):
            return self._function(*arguments)
