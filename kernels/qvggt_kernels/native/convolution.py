"""3x3 convolutions by Winograd's algorithm, in `winograd.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import is_usable, run
from .arguments import aligned, require

_CHANNELS, _OUTPUTS = 8, 16
"""A convolution reads and writes multiples of these: vectors, and those of a product."""

_PIXELS = 2048
"""Pixels of all maps below which a convolution spends its time on transforming its weights."""


def supports_convolution3x3(x: Tensor, weight: Tensor) -> bool:
    """Return whether `convolution3x3` computes this, faster than PyTorch."""
    outputs, inputs = weight.shape[:2]
    fits = inputs % _CHANNELS == 0 and outputs % _OUTPUTS == 0 and x.dtype == torch.float32
    large = x.numel() >= _PIXELS * inputs
    return fits and large and weight.dtype == x.dtype and is_usable("convolution3x3")


def convolution3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, rectified: bool, total: Tensor | None
) -> Tensor:
    """Return what `qvggt_kernels.convolution3x3` does, by Winograd's F(4x4, 3x3).

    Raises:
        ValueError: the arguments do not fit together.
    """
    (frames, inputs, height, width), outputs = x.shape, weight.shape[0]
    out = torch.empty(frames, height, width, outputs, dtype=x.dtype, device="cpu")
    wanted = [(weight, (outputs, inputs, 3, 3)), (bias, (outputs,))]
    wanted.append((total, (frames, outputs, height, width)))
    require(
        inputs % _CHANNELS == 0
        and outputs % _OUTPUTS == 0
        and x.dtype == torch.float32
        and all(p is None or (p.shape == s and p.dtype == x.dtype) for p, s in wanted),
        f"a map {tuple(x.shape)} {x.dtype} and weights {tuple(weight.shape)}: this kernel takes "
        f"float32 of multiples of {_CHANNELS} and {_OUTPUTS} channels that fit together",
    )
    maps = [None if part is None else _channels_last(part) for part in (x, total)]
    parts = [None if part is None else aligned(part.contiguous()) for part in (weight, bias)]
    sizes = (frames, height, width, inputs, outputs)
    if out.numel():
        run("convolution3x3", maps[0], *parts, maps[1], out, rectified, *sizes)
    return out.permute(0, 3, 1, 2)


def _channels_last(maps: Tensor) -> Tensor:
    return aligned(maps.permute(0, 2, 3, 1).contiguous())
