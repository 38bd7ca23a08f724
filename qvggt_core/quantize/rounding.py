"""Rounding: which integers and scales stand for a weight, number by number or column by column."""

from __future__ import annotations

import torch
from qvggt_kernels import (
    Int4Linear,
    IntegerLinear,
    PackedLinear,
    PackingError,
    dequantize,
    unpack_integer,
)
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.quantize.plan import Precision
from qvggt_core.quantize.stored_size import scale_columns

_ROWS = 256
"""Rows that are rounded at once, so that temporaries stay small beside the weight."""

_DOUBLE = 1024
"""Columns up to which a second moment is factorised in double precision."""

_GPTQ_COLUMNS = 128
"""Columns whose errors are gathered before the rest of the weight is corrected."""


def highest(bits: int) -> int:
    """Return the largest integer of a symmetric range, 2^(b-1) - 1."""
    return 2 ** (bits - 1) - 1


def quantize_weight(
    weight: Tensor,
    group_size: int,
    bits: int = 4,
    clip: Tensor | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """Round a weight to nearest, symmetrically, in groups along its input.

    Per row and group, with b bits (QVGGT, section 3.1):

        delta = clip * max|w| / (2^(b-1) - 1),    q = clamp(round(w / delta), -2^(b-1), 2^(b-1) - 1)

    where delta is rounded to its storage dtype first, so that w is divided by what q will be
    multiplied by.

    Args:
        weight: (N, K) floating.
        group_size: columns per scale g; divides K.
        bits: 2 to 8.
        clip: (N, K/g) share of each group's range that is covered; None covers all.
        scale_dtype: of the scales.

    Returns:
        q (N, K) int8 and the scales delta (N, K/g); both 0 where a group is all zero.

    Raises:
        QuantizationError: the shape does not divide into groups, or a weight is not finite.
    """
    if weight.dim() != 2 or group_size < 1 or weight.shape[1] % group_size:
        raise QuantizationError(
            f"a weight of shape {tuple(weight.shape)} does not divide into groups of "
            f"{group_size} along its input"
        )
    clips = [None] * len(weight.split(_ROWS)) if clip is None else clip.split(_ROWS)
    parts = [
        _quantize_rows(rows, group_size, bits, share, scale_dtype)
        for rows, share in zip(weight.split(_ROWS), clips, strict=True)
    ]
    q, scales = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    # The largest magnitude of a group is NaN or infinite if any of its numbers is.
    if not torch.isfinite(scales).all():
        count = int((~torch.isfinite(weight)).sum())
        raise QuantizationError(
            f"{count} of {weight.numel()} weights are NaN or infinite, or too large for "
            f"{str(scale_dtype).removeprefix('torch.')}: "
            "the checkpoint is damaged or its training diverged"
        )
    return q, scales


def _quantize_rows(
    weight: Tensor, group_size: int, bits: int, clip: Tensor | None, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    top = highest(bits)
    grouped = weight.float().unflatten(1, (-1, group_size))
    largest = grouped.abs().amax(dim=2)
    scales = ((largest if clip is None else largest * clip) / top).to(scale_dtype)
    delta = scales.float().unsqueeze(2)
    steps = grouped / torch.where(delta == 0, 1, delta)
    return steps.round_().clamp_(-top - 1, top).to(torch.int8).flatten(1), scales


def nearest_weight(weight: Tensor, precision: Precision, clip: Tensor | None = None) -> Tensor:
    """Return the weight (N, K) float32 that rounding to nearest makes of a weight.

    Args:
        weight: (N, K).
        precision: integers.
        clip: see `quantize_weight`.
    """
    dtype = scale_dtype_of(precision)
    q, scales = quantize_weight(weight, precision.group_size, precision.bits, clip, dtype)
    grouped = q.unflatten(1, (scales.shape[1], -1)).float()
    return grouped.mul_(scales.float().unsqueeze(2)).flatten(1)


def scale_dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype in which a packed layer keeps its scales."""
    return torch.bfloat16 if precision.activations == 16 else torch.float32


def gptq(
    weight: Tensor,
    second_moment: Tensor,
    group_size: int,
    bits: int = 4,
    clip: Tensor | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Round column by column, each time correcting the columns to come (GPTQ, Frantar et al.).

    Scales are those of `quantize_weight`, taken when a group's first column is reached, from
    the weight as it is corrected by then.

    Args:
        weight: (N, K) floating.
        second_moment: (K, K) mean of x x^T over the inputs that calibration saw.
        group_size: columns per scale g; divides K.
        bits: 2 to 8.
        clip: (N, K/g) share of each group's range that is covered; None covers all.
        scale_dtype: of the scales.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        q (N, K) int8 and the scales (N, K/g).

    Raises:
        QuantizationError: the second moment cannot be factorised even with ten times more
            damping: an input is not finite, or nothing was seen.
    """
    work = weight.float().clone()
    correction = _correction(second_moment, damping)
    work[:, second_moment.diagonal() == 0] = 0
    rows, columns = work.shape
    top = highest(bits)
    q = torch.empty(rows, columns, dtype=torch.int8, device=work.device)
    scales = torch.zeros(rows, columns // group_size, dtype=scale_dtype, device=work.device)
    step = min(_GPTQ_COLUMNS, group_size)
    for start in range(0, columns, step):
        end = min(start + step, columns)
        errors = torch.zeros(rows, end - start, device=work.device)
        group = start // group_size
        if start % group_size == 0:
            part = work[:, start : start + group_size].abs().amax(dim=1) / top
            scales[:, group] = part if clip is None else part * clip[:, group]
        delta = scales[:, group].float()
        delta = torch.where(delta == 0, 1, delta)
        for column in range(start, end):
            value = work[:, column]
            rounded = (value / delta).round().clamp(-top - 1, top)
            q[:, column] = rounded.to(torch.int8)
            error = (value - rounded * delta) / correction[column, column]
            work[:, column:end] -= error[:, None] * correction[column, column:end]
            errors[:, column - start] = error
        work[:, end:] -= errors @ correction[start:end, end:]
    return q, scales


def _correction(second_moment: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped second moment's inverse, (K, K)."""
    # Wide moments cost minutes in double precision, and the damping leaves single enough room.
    moment = second_moment.double() if len(second_moment) <= _DOUBLE else second_moment.float()
    diagonal = moment.diagonal()
    for share in (damping, 10 * damping):
        damped = moment + torch.diag((diagonal == 0).to(moment) + share * diagonal.mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            return torch.linalg.cholesky(inverse, upper=True).float()
    raise QuantizationError(
        f"the inputs' second moment ({moment.shape[0]} columns, mean diagonal "
        f"{float(diagonal.mean()):g}) cannot be inverted: calibrate on more varied images"
    )


def quantized_linear(
    weight: Tensor,
    bias: Tensor | None,
    precision: Precision,
    *,
    second_moment: Tensor | None = None,
    clip: Tensor | None = None,
    activation_clip: float = 1.0,
    rotation: int = 0,
    input_scale: Tensor | None = None,
) -> PackedLinear:
    """Return the layer that stands for a weight whose input is prepared as the layer does.

    Args:
        weight: (N, K), already rotated and scaled against its input.
        bias: (N,) or None.
        precision: integers, with 16-bit or integer activations.
        second_moment: (K, K) of the prepared input: rounds by GPTQ; None rounds to nearest.
        clip: (N, K/g) share of each group's range that is covered.
        activation_clip: share of a token's range that is covered, for integer activations.
        rotation: block of the input's Hadamard transform, 0 for none.
        input_scale: (K,) factors on the rotated input, or None.

    Raises:
        QuantizationError: the weight cannot be rounded or packed.
    """
    columns = weight.shape[1]
    group = precision.group_size
    dtype = scale_dtype_of(precision)
    if second_moment is None:
        q, scales = quantize_weight(weight, group, precision.bits, clip, dtype)
    else:
        q, scales = gptq(weight, second_moment, group, precision.bits, clip, dtype)
    try:
        if precision.activations < 16:
            return IntegerLinear.from_quantized(
                q,
                scales[:, 0].contiguous(),
                bias,
                weight_bits=8 if precision.bits == 8 else 4,
                activation_bits=precision.activations,
                clip=activation_clip,
                rotation=rotation,
                input_scale=input_scale,
            )
        repeats = group // scale_columns(columns, group)
        return Int4Linear.from_quantized(
            q,
            scales.repeat_interleave(repeats, dim=1),
            bias,
            rotation=rotation,
            input_scale=input_scale,
        )
    except PackingError as error:
        raise QuantizationError(f"the weight cannot be packed: {error}") from error


def represented_weight(layer: PackedLinear) -> Tensor:
    """Return the weight (N, K) float32 that a packed layer multiplies its prepared input by."""
    if isinstance(layer, IntegerLinear):
        return unpack_integer(layer.qweight).t().float() * layer.scales[:, None]
    assert isinstance(layer, Int4Linear)
    return dequantize(layer.packed(), torch.float32)
