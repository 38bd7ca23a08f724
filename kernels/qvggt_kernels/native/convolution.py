"""Steps of dense heads: convolutions in `winograd.cpp`, the last ones in `dense_output.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import float_lanes, is_usable, run
from .arguments import aligned, names, require

_OUTPUT_DTYPES = (torch.float32, torch.bfloat16)
"""Of the maps that `dense_output` takes; it computes in float32."""

_PIXELS = 2048
"""Pixels of all maps below which a convolution spends its time on transforming its weights."""


def supports_convolution3x3(x: Tensor, weight: Tensor) -> bool:
    """Return whether `convolution3x3` computes this, faster than PyTorch."""
    outputs, inputs = weight.shape[:2]
    of_inputs, of_outputs = float_lanes(), 2 * float_lanes()
    fits = inputs % of_inputs == 0 and outputs % of_outputs == 0 and x.dtype == torch.float32
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
    of_inputs, of_outputs = float_lanes(), 2 * float_lanes()
    out = torch.empty(frames, height, width, outputs, dtype=x.dtype, device="cpu")
    wanted = [(weight, (outputs, inputs, 3, 3)), (bias, (outputs,))]
    wanted.append((total, (frames, outputs, height, width)))
    require(
        inputs % of_inputs == 0
        and outputs % of_outputs == 0
        and x.dtype == torch.float32
        and all(p is None or (p.shape == s and p.dtype == x.dtype) for p, s in wanted),
        f"a map {tuple(x.shape)} {x.dtype} and weights {tuple(weight.shape)}: this kernel takes "
        f"float32 of multiples of {of_inputs} and {of_outputs} channels that fit together",
    )
    maps = [None if part is None else _channels_last(part) for part in (x, total)]
    parts = [None if part is None else aligned(part.contiguous()) for part in (weight, bias)]
    sizes = (frames, height, width, inputs, outputs)
    if out.numel():
        run("convolution3x3", maps[0], *parts, maps[1], out, rectified, *sizes)
    return out.permute(0, 3, 1, 2)


def _channels_last(maps: Tensor) -> Tensor:
    return aligned(maps.permute(0, 2, 3, 1).contiguous())


def supports_dense_output(x: Tensor, weight: Tensor, last_weight: Tensor) -> bool:
    """Return whether `dense_output` computes this, faster than PyTorch."""
    outputs, inputs = weight.shape[:2]
    fits = supports_channels(inputs, x.dtype) and outputs % (2 * float_lanes()) == 0
    same = x.dtype == weight.dtype and last_weight.dtype in (x.dtype, torch.float32)
    return fits and same and x.numel() > 0


def supports_channels(channels: int, dtype: torch.dtype) -> bool:
    """Return whether `dense_output` takes maps of so many channels."""
    fits = channels % (2 * float_lanes()) == 0 and dtype in _OUTPUT_DTYPES
    return fits and is_usable("dense_output")


def dense_output(
    x: Tensor,
    size: tuple[int, int],
    places: tuple[Tensor, Tensor] | None,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
) -> Tensor:
    """Return what `qvggt_kernels.dense_output` does, in float32 whatever the dtype of `x`.

    Raises:
        ValueError: the arguments do not fit together.
    """
    (frames, inputs, *rows_columns), (height, width) = x.shape, size
    (hidden, outputs), half = (first[0].shape[0], last[0].shape[0]), inputs // 2
    of_inputs, of_outputs = float_lanes(), 2 * float_lanes()
    wanted = [(first[0], (hidden, inputs, 3, 3)), (first[1], (hidden,))]
    wanted += [(last[0], (outputs, hidden, 1, 1)), (last[1], (outputs,))]
    if places is not None:
        wanted += [(places[0], (half, 1, width)), (places[1], (half, height, 1))]
    require(
        inputs % (2 * of_inputs) == 0
        and hidden % of_outputs == 0
        and x.dtype in _OUTPUT_DTYPES
        and min(*rows_columns, height, width) > 0
        and all(p.shape == shape and p.dtype in (x.dtype, torch.float32) for p, shape in wanted),
        f"a map {tuple(x.shape)} {x.dtype} to {height}x{width}, weights {tuple(first[0].shape)} "
        f"and {tuple(last[0].shape)}: this kernel takes {names(_OUTPUT_DTYPES)} of multiples "
        f"of {2 * of_inputs} and {of_outputs} channels that fit together",
    )
    out = torch.empty(frames, outputs, height, width, dtype=torch.float32, device="cpu")
    along_u, along_v = (None, None) if places is None else (p.flatten(1).T for p in places)
    parts = [
        None if part is None else aligned(part.float().contiguous())
        for part in (along_u, along_v, *first, *last)
    ]
    if out.numel():
        sizes = (frames, *rows_columns, height, width, inputs, hidden, outputs)
        run("dense_output", _channels_last(x), *parts, out, x.dtype == torch.float32, *sizes)
    return out
