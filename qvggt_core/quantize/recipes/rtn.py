"""Round to nearest: every number on its own, no calibration."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qvggt_core.errors import QuantizationError

_LOWEST, _HIGHEST = -8, 7
_ROWS = 256
"""Rows that are rounded at once, so that temporaries stay small beside the weight."""


def quantize_weight(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a weight symmetrically to 4 bits, in groups along its input.

    Per row and group, with b = 4 (QVGGT, section 3.1):

        delta = max|w| / (2^(b-1) - 1),    q = clamp(round(w / delta), -2^(b-1), 2^(b-1) - 1)

    where delta is rounded to bfloat16 first, so that w is divided by what q will be
    multiplied by.

    Args:
        weight: (N, K) floating.
        group_size: columns per scale g; divides K.

    Returns:
        q (N, K) int8 and the scales delta (N, K/g) bfloat16; both 0 where a group is all zero.

    Raises:
        QuantizationError: the shape does not divide into groups, or a weight is not finite.
    """
    if weight.dim() != 2 or group_size < 1 or weight.shape[1] % group_size:
        raise QuantizationError(
            f"a weight of shape {tuple(weight.shape)} does not divide into groups of "
            f"{group_size} along its input"
        )
    parts = [_quantize_rows(rows, group_size) for rows in weight.split(_ROWS)]
    q, scales = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    # The largest magnitude of a group is NaN or infinite if any of its numbers is.
    if not torch.isfinite(scales).all():
        count = int((~torch.isfinite(weight)).sum())
        raise QuantizationError(
            f"{count} of {weight.numel()} weights are NaN or infinite, or too large for bfloat16: "
            "the checkpoint is damaged or its training diverged"
        )
    return q, scales


def _quantize_rows(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    grouped = weight.float().unflatten(1, (-1, group_size))
    scales = (grouped.abs().amax(dim=2) / _HIGHEST).to(torch.bfloat16)
    delta = scales.float().unsqueeze(2)
    steps = grouped / torch.where(delta == 0, 1, delta)
    return steps.round_().clamp_(_LOWEST, _HIGHEST).to(torch.int8).flatten(1), scales


def recipe(
    name: str, weight: Tensor, group_size: int, statistics: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Round to nearest as a recipe; statistics are not used.

    Raises:
        QuantizationError: as `quantize_weight`, with the weight's name.
    """
    del statistics
    try:
        return quantize_weight(weight, group_size)
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from None
