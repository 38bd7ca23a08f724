"""The packed layout of 4-bit weights: one for disk, CPU and GPU.

Layout `planar-int16/1`. A weight has N rows (outputs) and K columns (inputs); every run of g
columns of a row is a group with one scale. Four numbers share an int16 word, and the four
planes of a group lie a quarter of the group apart:

    word[n, k // g, j] holds, in its bits 4i .. 4i+3,  q[n, (k // g) * g + (g / 4) * i + j] + 8

for planes i = 0..3 and lanes j = 0..g/4-1, so the words have the shape (N, K/g, g/4). One
shift and one mask therefore unpack a whole plane of neighbouring columns: nothing has to be
interleaved, neither by vector units nor in a GPU's registers.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUT = "planar-int16/1"
"""Name and version of the layout, written into checkpoints and compared on load."""

GROUP_SIZES = (32, 64, 128)
"""Columns that may share a scale."""

PLANES = 4
"""Numbers in a word."""

ZERO = 8
"""Stored number that stands for zero where a group has no zero point of its own."""

_LOWEST, _HIGHEST = -8, 7


class PackingError(ValueError):
    """A weight cannot be packed, or packed words do not fit together."""


def check_group(columns: int, group_size: int) -> None:
    """Raise PackingError unless the layout has a group size and it divides the columns."""
    if group_size not in GROUP_SIZES:
        raise PackingError(f"group size {group_size} is not one of {GROUP_SIZES}")
    if columns % group_size:
        raise PackingError(
            f"{columns} columns do not divide into groups of {group_size}: choose a smaller "
            f"group of {GROUP_SIZES}, or keep this weight in 16 bit"
        )


def group_size_of(qweight: Tensor, scales: Tensor) -> int:
    """Return the group size of packed words and their scales after checking that they fit.

    Args:
        qweight: (N, K/g, g/4) int16.
        scales: (N, K/g) bfloat16.

    Raises:
        PackingError: a dtype or shape is not of this layout.
    """
    if qweight.dtype != torch.int16 or qweight.dim() != 3:
        raise PackingError(
            f"packed words are {tuple(qweight.shape)} {qweight.dtype}, not (N, K/g, g/4) int16"
        )
    rows, groups, lanes = qweight.shape
    if scales.dtype != torch.bfloat16 or tuple(scales.shape) != (rows, groups):
        raise PackingError(
            f"scales are {tuple(scales.shape)} {scales.dtype}, not ({rows}, {groups}) "
            "bfloat16 as the packed words need"
        )
    check_group(groups * lanes * PLANES, lanes * PLANES)
    return lanes * PLANES


def pack(q: Tensor, group_size: int) -> Tensor:
    """Pack signed 4-bit numbers into words.

    Args:
        q: (N, K) int8, every element in [-8, 7].
        group_size: columns per scale g, one of `GROUP_SIZES`.

    Returns:
        (N, K/g, g/4) int16.

    Raises:
        PackingError: wrong dtype or shape, a number out of range, or an impossible group size.
    """
    if q.dtype != torch.int8 or q.dim() != 2:
        raise PackingError(f"numbers to pack are {tuple(q.shape)} {q.dtype}, not (N, K) int8")
    rows, columns = q.shape
    check_group(columns, group_size)
    if q.numel():
        lowest, highest = (int(bound) for bound in torch.aminmax(q))
        if lowest < _LOWEST or highest > _HIGHEST:
            raise PackingError(
                f"numbers to pack range over [{lowest}, {highest}]: "
                f"four bits hold [{_LOWEST}, {_HIGHEST}]"
            )
    planes = (q.to(torch.int16) - _LOWEST).view(
        rows, columns // group_size, PLANES, group_size // PLANES
    )
    words = planes[:, :, 0].clone()
    for plane in range(1, PLANES):
        words |= planes[:, :, plane] << 4 * plane
    return words


def unpack(packed: Tensor, group_size: int) -> Tensor:
    """Return the numbers (N, K) int8 in [-8, 7] of words (N, K/g, g/4) int16.

    Raises:
        PackingError: the words are not of this layout and group size.
    """
    if packed.dtype != torch.int16 or packed.dim() != 3 or packed.shape[2] * PLANES != group_size:
        raise PackingError(
            f"packed words are {tuple(packed.shape)} {packed.dtype}, "
            f"not (N, K/{group_size}, {group_size // PLANES}) int16"
        )
    planes = [((packed >> 4 * plane) & 15) + _LOWEST for plane in range(PLANES)]
    return torch.stack(planes, dim=2).to(torch.int8).flatten(1)
