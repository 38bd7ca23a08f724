"""The four linears of a transformer block, by name: where they are, and their replacement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qvggt_kernels import PackedLinear
from torch import nn

from qvggt_core.model import Checkpoint
from qvggt_core.quantize.plan import Plan, Precision

Linear = Literal["qkv", "proj", "fc1", "fc2"]

LINEARS: Mapping[Linear, str] = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
"""Their paths in the block, in the order in which they run."""


def linear_of(block: nn.Module, name: Linear) -> nn.Module:
    """Return one of a block's linears."""
    return block.get_submodule(LINEARS[name])


def replace_linear(block: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a path in the block."""
    parent, _, leaf = path.rpartition(".")
    setattr(block.get_submodule(parent), leaf, module)


def packed_linears(module: nn.Module, prefix: str = "") -> dict[str, PackedLinear]:
    """Return the packed linears below a module, by their paths after a prefix."""
    return {
        f"{prefix}{path}": child
        for path, child in module.named_modules()
        if isinstance(child, PackedLinear)
    }


def quantized_precisions(
    checkpoint: Checkpoint, plan: Plan, group_size: int | str, block: str
) -> dict[Linear, Precision]:
    """Return the precisions of those linears of a block that a plan has in integers.

    Args:
        checkpoint: full precision.
        plan: which tensor is stored how.
        group_size: for rules that name none.
        block: path of the block in the network.
    """
    found = {}
    for name, path in LINEARS.items():
        weight = f"{block}.{path}.weight"
        precision = plan.precision(weight, checkpoint.shape(weight), group_size)
        if precision.quantized:
            found[name] = precision
    return found
