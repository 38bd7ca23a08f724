"""The last steps of a dense head: an operator of PyTorch where our kernel computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import Backend, choose, uses_operator
from .convolution import convolution3x3
from .linear_operator import Implementations
from .native import convolution as native
from .registry import register

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def add_places(x: Tensor, places: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return `x` (F, C, H, W) with a table of columns and one of rows added.

    In place on `x` while no gradient is recorded.

    Args:
        x: the maps.
        places: (C / 2, 1, W) for the first half of the channels and (C / 2, H, 1) for the second,
            of the dtype of `x`; None for none.
    """
    if places is None:
        return x
    (along_u, along_v), half = places, x.shape[1] // 2
    if torch.is_grad_enabled():
        return torch.cat([x[:, :half] + along_u, x[:, half:] + along_v], dim=1)
    # In place and broadcast: spelled out, the embedding would be as large as the widest map.
    x[:, :half].add_(along_u)
    x[:, half:].add_(along_v)
    return x


def is_one_pass(channels: int, dtype: torch.dtype) -> bool:
    """Return whether `dense_output` makes no map of so many channels at full size on this CPU."""
    return native.supports_channels(channels, dtype)


def _places(along_u: Tensor | None, along_v: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if along_u is None or along_v is None else (along_u, along_v)


def _plain_output(
    x: Tensor,
    size: Sequence[int],
    along_u: Tensor | None,
    along_v: Tensor | None,
    convolutions: list[Tensor],
) -> Tensor:
    x = add_places(_resized(x, *size), _places(along_u, along_v))
    hidden = _hidden(x, convolutions)
    # The resized map is as large as all that follows.
    del x
    # The exponential that follows turns rounding into relative error: stay in float32.
    maps = [
        F.conv2d(each.to(weight.dtype), weight, bias).float()
        for each, weight, bias in zip(hidden, convolutions[2::4], convolutions[3::4], strict=True)
    ]
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _hidden(x: Tensor, convolutions: list[Tensor]) -> list[Tensor]:
    # Apart from its caller, which deletes `x`: a compiler cannot follow that in a closure.
    return [
        F.relu(convolution3x3(x, weight, bias), inplace=not torch.is_grad_enabled())
        for weight, bias in zip(convolutions[::4], convolutions[1::4], strict=True)
    ]


def _native_output(
    x: Tensor,
    size: Sequence[int],
    along_u: Tensor | None,
    along_v: Tensor | None,
    convolutions: list[Tensor],
) -> Tensor:
    height, width = size
    places = _places(along_u, along_v)
    maps = [
        native.dense_output(x, (height, width), places, (w, b), (last_w, last_b))
        for w, b, last_w, last_b in zip(*(convolutions[i::4] for i in range(4)), strict=True)
    ]
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


_OUTPUT: Implementations = {Backend.REFERENCE: _plain_output, Backend.NATIVE: _native_output}


def _output(
    x: Tensor,
    size: Sequence[int],
    along_u: Tensor | None,
    along_v: Tensor | None,
    convolutions: list[Tensor],
    backend: Backend | None = None,
) -> Tensor:
    chosen = backend or choose("dense_output", x, *convolutions)
    result: Tensor = _OUTPUT[chosen](x, size, along_u, along_v, convolutions)
    return result


_output_operator = register(
    "dense_output(Tensor x, SymInt[] size, Tensor? along_u, Tensor? along_v, Tensor[] convolutions)"
    " -> Tensor",
    _output,
    fake=_plain_output,
)


def dense_output(
    x: Tensor,
    size: tuple[int, int],
    places: tuple[Tensor, Tensor] | None,
    branches: Sequence[tuple[Affine, Affine]],
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Return the outputs of a dense head: its features resized, two convolutions for each output.

    Args:
        x: (F, C, h, w) floating.
        size: height H and width W of the result.
        places: what is added to the resized features, see `add_places`.
        branches: for each output a convolution of 3x3 pixels with zeros around the map, (O, C, 3,
            3) and (O,) of the dtype of `x`, and one of single pixels that follows a rectifier,
            (N, O, 1, 1) and (N,) of that dtype or float32.
        backend: implementation; None for the fastest that computes this.

    Returns:
        (F, sum of N, H, W) float32; differentiable without `backend`.
    """
    along_u, along_v = (None, None) if places is None else places
    convolutions = [part for first, last in branches for part in (*first, *last)]
    arguments = (x, size, along_u, along_v, convolutions)
    if backend is not None:
        return _output(*arguments, backend)
    is_native = choose("dense_output", x, *convolutions) is Backend.NATIVE
    if is_native and uses_operator(x, *convolutions):
        result: Tensor = _output_operator(*arguments)
        return result
    # Not within an operator: compilers see each of its steps.
    return _plain_output(*arguments)
