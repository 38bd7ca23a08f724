"""Random tokens and packed weights for the tests of kernels."""

from __future__ import annotations

import torch
from qvggt_kernels import IntegerWeight, PackedWeight, pack, pack_integer


def normal(*shape, dtype=torch.float32, seed=0):
    """Normally distributed numbers, the same for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_integers(rows, columns, bits, seed=0):
    """Integers (rows, columns) of the whole range of 8 or 4 bits."""
    limit = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit, (rows, columns), dtype=torch.int8, generator=generator)


def packed_weight(rows, columns, group=32, *, zeros=False, bias=None, seed=0):
    """A 4-bit weight; with zero points if `zeros`."""
    q = random_integers(rows, columns, 4, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (rows, columns // group)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, shape, generator=generator).to(torch.uint8) if zeros else None
    return PackedWeight(pack(q, group), scales, bias, points)


def integer_weight(rows, columns, bits, *, bias=None, activation_bits=8, clip=1.0):
    """A weight for products of integers."""
    q = random_integers(rows, columns, bits, seed=bits)
    scales = torch.rand(rows, generator=torch.Generator().manual_seed(bits)) * 0.01
    return IntegerWeight(pack_integer(q, bits), scales, bias, activation_bits, clip)
