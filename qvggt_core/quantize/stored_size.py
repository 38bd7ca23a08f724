"""Stored size of a network under a plan, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qvggt_kernels import GROUP_SIZES
from torch import Tensor

from qvggt_core.model.packed_format import PACKED_EXTRAS, WEIGHTS_PER_WORD
from qvggt_core.model.part_sizes import part_of
from qvggt_core.quantize.plan import DEFAULT_GROUP_SIZE, Plan, Precision


class PartSize(NamedTuple):
    """Weights of a part of the network, how many of them are integers, and bytes for all."""

    weights: int
    weights_quantized: int
    nbytes: int


def scale_columns(columns: int, group_size: int) -> int:
    """Return the columns that share a stored scale.

    One scale a row is stored once per widest group of the packed layout that divides the row.
    """
    if group_size in GROUP_SIZES:
        return group_size
    return max(size for size in GROUP_SIZES if columns % size == 0)


def stored_bytes(shape: Sequence[int], precision: Precision) -> int:
    """Return the bytes of a tensor as it is stored: integers with their scales.

    Factors that a recipe adds on a layer's input are not included.
    """
    weights = math.prod(shape)
    if not precision.quantized:
        return weights * precision.bits // 8
    if precision.activations < 16:
        # A clip factor, and one float32 scale a row.
        return weights // (1 if precision.bits == 8 else 2) + 4 * shape[0] + 4
    return weights // 2 + 2 * (weights // scale_columns(shape[1], precision.group_size))


def planned_sizes(
    plan: Plan,
    shapes: Mapping[str, Sequence[int]],
    group_size: int | str = DEFAULT_GROUP_SIZE,
) -> dict[str, PartSize]:
    """Return the size of each part that has tensors, without allocating any.

    Args:
        plan: which tensor is stored how.
        shapes: of the full-precision checkpoint's tensors, by name.
        group_size: for rules that name none.
    """
    sizes: dict[str, PartSize] = {}
    for name, shape in shapes.items():
        precision = plan.precision(name, shape, group_size)
        weights = math.prod(shape)
        before = sizes.get(part_of(name), PartSize(0, 0, 0))
        sizes[part_of(name)] = PartSize(
            before.weights + weights,
            before.weights_quantized + (weights if precision.quantized else 0),
            before.nbytes + stored_bytes(shape, precision),
        )
    return sizes


def stored_sizes(state: Mapping[str, Tensor]) -> dict[str, PartSize]:
    """Return the size of each part that has tensors, from the tensors of a written file."""
    sizes: dict[str, PartSize] = {}
    for name, tensor in state.items():
        packed = name.endswith(".qweight")
        count = 0 if name.endswith(PACKED_EXTRAS) and _of_packed(name, state) else tensor.numel()
        weights = count * (WEIGHTS_PER_WORD[tensor.dtype] if packed else 1)
        before = sizes.get(part_of(name), PartSize(0, 0, 0))
        sizes[part_of(name)] = PartSize(
            before.weights + weights,
            before.weights_quantized + (weights if packed else 0),
            before.nbytes + tensor.nbytes,
        )
    return sizes


def _of_packed(name: str, state: Mapping[str, Tensor]) -> bool:
    return f"{name.rpartition('.')[0]}.qweight" in state
