"""The fast Walsh-Hadamard transform, which spreads outliers over a whole token."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .packing import PackingError

_RADIX = 32
"""Each pass is a product with a 32x32 matrix: a few wide passes beat many that only add."""


def hadamard_block(width: int) -> int:
    """Return the largest power of two that divides a width: the block that is transformed."""
    return width & -width


def check_rotation(width: int, block: int) -> None:
    """Raise PackingError for a block that is no power of two or does not divide the width.

    0 is no rotation.
    """
    if block < 0 or block & (block - 1) or (block and width % block):
        raise PackingError(
            f"a rotation in blocks of {block} does not fit {width} columns: blocks are powers of "
            f"two that divide them, {hadamard_block(width)} at most"
        )


def hadamard_transform(x: Tensor, block: int) -> Tensor:
    """Multiply every run of `block` numbers in the last dimension by the Hadamard matrix.

    The matrix is Sylvester's, divided by sqrt(block): orthogonal, symmetric, its own inverse.
    It is applied as a Kronecker product of small factors, O(d log d) for a fixed radix; no
    matrix of the width of x exists.

    Args:
        x: (..., d) floating, d divisible by `block`; differentiable.
        block: power of two.

    Returns:
        (..., d), newly allocated, in the dtype of x.

    Raises:
        PackingError: the block is no power of two or does not divide d.
    """
    check_rotation(x.shape[-1], block)
    y = x.reshape(-1, block)
    rest = block
    while rest > 1:
        radix = min(_RADIX, rest)
        rest //= radix
        factor = _matrix(radix).to(y)
        y = y.reshape(-1, radix, rest)
        y = torch.matmul(factor, y) if rest > 1 else y.reshape(-1, radix) @ factor
    return y.reshape(x.shape)


@functools.cache
def _matrix(size: int) -> Tensor:
    """Return Sylvester's matrix of a small size, normalised."""
    # A tensor born in inference mode could not take part in a backward pass later.
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, device="cpu")
        while len(matrix) < size:
            top, bottom = torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)
            matrix = torch.cat([top, bottom])
        return matrix / size**0.5
