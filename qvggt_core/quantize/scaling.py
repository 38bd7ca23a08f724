"""Equivalent changes of a block: factors and rotations under which its linears lose less.

For a linear y = W x and factors s, y = (W diag(s)) (diag(s)^-1 x). The inverse goes where x is
made: into the LayerNorm before qkv and fc1, into the value rows of qkv before proj (attention
mixes tokens, not channels). Nothing before fc2 can carry it through GELU: there, and after a
rotation, the layer multiplies its input itself.
"""

from __future__ import annotations

import torch
from qvggt_kernels import hadamard_transform
from torch import Tensor, nn

from qvggt_core.model.blocks import Block
from qvggt_core.quantize.activation_statistics import InputStatistics
from qvggt_core.quantize.block_linears import Linear, linear_of

_SMALLEST = 1e-4


def foldable(linear: Linear) -> bool:
    """Return whether a linear's factors can be folded into the layer before it."""
    return linear != "fc2"


def searched_factors(statistics: InputStatistics, alpha: float) -> Tensor:
    """Return AWQ's factors (K,): mean |x|^alpha, their range centred on 1."""
    factors = statistics.mean_magnitude.clamp_min(_SMALLEST).pow(alpha)
    return factors / (factors.max() * factors.min()).sqrt()


def smoothing_factors(statistics: InputStatistics, weight: Tensor, balance: float) -> Tensor:
    """Return SmoothQuant's factors (K,): max|x|^a / max|w|^(1-a) per column."""
    largest = weight.abs().amax(dim=0).clamp_min(_SMALLEST)
    seen = statistics.max_magnitude.clamp_min(_SMALLEST)
    return (seen.pow(balance) / largest.pow(1.0 - balance)).clamp_min(_SMALLEST)


@torch.no_grad()
def scale_weight(block: Block, linear: Linear, factors: Tensor) -> None:
    """Multiply the columns of a full-precision linear by factors (K,)."""
    module = linear_of(block, linear)
    assert isinstance(module, nn.Linear)
    module.weight = nn.Parameter(module.weight * factors, requires_grad=False)


@torch.no_grad()
def fold_inverse(block: Block, linear: Linear, factors: Tensor) -> None:
    """Divide what makes a linear's input by factors (K,), so that the block stays the same.

    Parameters are replaced, not written to: they may be mapped from the checkpoint.
    """
    if linear == "proj":
        qkv = block.attn.qkv
        rows = qkv.weight.shape[0] - len(factors)
        ones = torch.ones(rows, device=factors.device)
        _divide(qkv, torch.cat([ones, factors]))
    elif foldable(linear):
        _divide(block.norm1 if linear == "qkv" else block.norm2, factors)
    else:
        raise AssertionError(f"nothing before {linear} can carry factors")


def _divide(module: nn.Module, factors: Tensor) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    shaped = factors[:, None] if weight.dim() == 2 else factors
    module.weight = nn.Parameter(weight / shaped, requires_grad=False)
    if isinstance(module.bias, Tensor):
        module.bias = nn.Parameter(module.bias / factors, requires_grad=False)


@torch.no_grad()
def rotate_values(block: Block) -> int:
    """Rotate values and proj against each other, head by head, and return the rotation's block.

    The Hadamard transform of a head's value channels passes through attention, which mixes
    tokens only; proj takes it back. Nothing is left to do at run time. Heads whose width is no
    power of two are left alone (returns 0).
    """
    attention = block.attn
    width = attention.proj.in_features // attention.num_heads
    if width & (width - 1):
        return 0
    qkv, proj = attention.qkv, attention.proj
    split = 2 * proj.in_features
    values = hadamard_transform(qkv.weight[split:].t().float(), width).t()
    qkv.weight = nn.Parameter(
        torch.cat([qkv.weight[:split], values.to(qkv.weight.dtype)]), requires_grad=False
    )
    bias = hadamard_transform(qkv.bias[split:].float(), width)
    qkv.bias = nn.Parameter(torch.cat([qkv.bias[:split], bias]), requires_grad=False)
    proj.weight = nn.Parameter(hadamard_transform(proj.weight, width), requires_grad=False)
    return width


class Snapshot:
    """The parameters and linears of a block at one moment, to go back to."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._modules = [
            (module, dict(module._parameters), dict(module._modules)) for module in block.modules()
        ]

    def restore(self) -> None:
        """Bring the block back; what was replaced since is dropped."""
        for module, parameters, children in self._modules:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._modules.clear()
            module._modules.update(children)
