"""What a network weighs under a plan, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qvggt_core.model.checkpoint import PARTS
from qvggt_core.quantize.plan import DEFAULT_GROUP_SIZE, Plan, Precision


class PartSize(NamedTuple):
    """Weights of a part of the network, how many of them have 4 bits, and bytes for all."""

    weights: int
    weights_4bit: int
    nbytes: int


def part_of(name: str) -> str:
    """Return the part of a VGGT to which a tensor belongs, "other" if it is of none."""
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), "other")


def stored_bytes(shape: Sequence[int], precision: Precision) -> int:
    """Return the bytes of a tensor as it is stored: with its 2-byte scales for 4 bits."""
    weights = math.prod(shape)
    if precision.bits == 4:
        return weights // 2 + 2 * (weights // precision.group_size)
    return weights * precision.bits // 8


def planned_sizes(
    plan: Plan,
    shapes: Mapping[str, Sequence[int]],
    group_size: int = DEFAULT_GROUP_SIZE,
) -> dict[str, PartSize]:
    """Return the size of each part that has tensors, without allocating any.

    Args:
        plan: which tensor is stored how.
        shapes: of the full-precision checkpoint's tensors, by name.
        group_size: for 4-bit rules that name none.
    """
    sizes: dict[str, PartSize] = {}
    for name, shape in shapes.items():
        precision = plan.precision(name, shape, group_size)
        weights = math.prod(shape)
        before = sizes.get(part_of(name), PartSize(0, 0, 0))
        sizes[part_of(name)] = PartSize(
            before.weights + weights,
            before.weights_4bit + (weights if precision.bits == 4 else 0),
            before.nbytes + stored_bytes(shape, precision),
        )
    return sizes
