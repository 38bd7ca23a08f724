"""Integers of 8 and 4 bits: how weights are stored, and how tokens are quantized.

Storage. A weight has N rows (outputs) and K columns (inputs) and one scale per row. It is kept
transposed, as the integer matrix product reads it:

    8 bits, layout `columns-int8/1`: byte[k, n] = q[n, k], so the words have the shape (K, N)
    4 bits, layout `halves-uint8/1`: byte[k, j] = (q[j, k] + 8) | (q[j + N/2, k] + 8) << 4,
        shape (K, N/2); two shifts and masks unpack it into whole halves

Activations are quantized per token when they arrive: symmetric, step = clip * max|x| / levels,
levels 127 for 8 bits and 7 for 4, so that no token's range depends on another's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import PackingError

INTEGER_LAYOUTS = {8: "columns-int8/1", 4: "halves-uint8/1"}
"""Layout of a weight by its bits, written into checkpoints and compared on load."""

ACTIVATION_BITS = (8, 4)
_LEVELS = {8: 127, 4: 7}
_RANGES = {8: (-128, 127), 4: (-8, 7)}


def levels(bits: int) -> int:
    """Return the largest number of a symmetric range: 127 for 8 bits, 7 for 4.

    Raises:
        PackingError: there are no integers of so many bits here.
    """
    if bits not in _LEVELS:
        raise PackingError(f"integers of {bits} bits are not among {ACTIVATION_BITS}")
    return _LEVELS[bits]


def pack_integer(q: Tensor, bits: int) -> Tensor:
    """Pack the numbers of a weight.

    Args:
        q: (N, K) int8, in [-8, 7] for 4 bits; N even for 4 bits.
        bits: 8 or 4.

    Returns:
        (K, N) int8 or (K, N/2) uint8.

    Raises:
        PackingError: wrong dtype or shape, a number out of range, or other bits.
    """
    levels(bits)
    if q.dtype != torch.int8 or q.dim() != 2:
        raise PackingError(f"numbers to pack are {tuple(q.shape)} {q.dtype}, not (N, K) int8")
    if bits == 8:
        return q.t().contiguous()
    if q.shape[0] % 2:
        raise PackingError(f"{q.shape[0]} rows are odd: 4-bit integers are stored in pairs of rows")
    lowest, highest = _RANGES[4]
    if q.numel() and (int(q.min()) < lowest or int(q.max()) > highest):
        raise PackingError(
            f"numbers to pack range over [{int(q.min())}, {int(q.max())}]: four bits hold "
            f"[{lowest}, {highest}]"
        )
    shifted = (q - lowest).to(torch.uint8).t()
    half = q.shape[0] // 2
    return (shifted[:, :half] | shifted[:, half:] << 4).contiguous()


def unpack_integer(packed: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the numbers (K, N) int8 of packed words, transposed as they are stored.

    Args:
        packed: (K, N) int8 or (K, N/2) uint8.
        out: (K, N) int8 that takes the numbers of 4-bit words; 8-bit ones are returned as is.
    """
    if packed.dtype == torch.int8:
        return packed
    columns, half = packed.shape
    if out is None:
        out = torch.empty(columns, 2 * half, dtype=torch.int8, device=packed.device)
    whole = out.view(torch.uint8)
    torch.bitwise_and(packed, 15, out=whole[:, :half])
    torch.bitwise_right_shift(packed, 4, out=whole[:, half:])
    return out.sub_(8)


def quantize_tokens(x: Tensor, bits: int, clip: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Quantize each token on its own.

    Args:
        x: (..., K) float32.
        bits: 8 or 4.
        clip: share of a token's largest magnitude that its range covers.

    Returns:
        q (..., K) int8 and the steps (..., 1) float32, so that x is about q * step.
    """
    highest = levels(bits)
    step = x.abs().amax(dim=-1, keepdim=True) * clip / highest
    # A token of zeros has no step; it stays zero whatever it is divided by.
    q = (x / torch.where(step == 0, 1, step)).round_().clamp_(-highest, highest)
    return q.to(torch.int8), step
