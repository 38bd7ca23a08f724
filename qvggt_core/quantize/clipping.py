"""Ranges of weights: searched per group for the least output error, or trained with the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qvggt_kernels import hadamard_transform, levels
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.blocks import Block
from qvggt_core.quantize.block_linears import LINEARS, Linear, linear_of, replace_linear
from qvggt_core.quantize.blockwise import BlockInput, run_block
from qvggt_core.quantize.plan import Precision
from qvggt_core.quantize.recipes.recipe import LearnedClipping
from qvggt_core.quantize.rounding import highest, nearest_weight

_SHARES = tuple(1.0 - 0.05 * step for step in range(11))
"""Shares of a group's range that the search tries: 1 to 0.5."""

_START = 4.0
"""Logit of a trained share at the start: sigmoid(4) = 0.982, close to the whole range."""


@torch.no_grad()
def searched_clip(weight: Tensor, second_moment: Tensor, precision: Precision) -> Tensor:
    """Return the share (N, K/g) of each group's range that gives the least output error.

    The error of a group on its own is D H D^T with D the weight's error there and H the group's
    part of the input's second moment, as if groups did not see each other (AWQ does the same).

    Args:
        weight: (N, K).
        second_moment: (K, K) of the input.
        precision: of the weight.
    """
    group = precision.group_size
    groups = weight.shape[1] // group
    blocks = torch.stack(
        [
            second_moment[g * group : (g + 1) * group, g * group : (g + 1) * group]
            for g in range(groups)
        ]
    )
    exact = weight.float().unflatten(1, (groups, group))
    best = torch.full((weight.shape[0], groups), float("inf"), device=weight.device)
    share = torch.ones_like(best)
    for candidate in _SHARES:
        clip = torch.full_like(best, candidate)
        wrong = nearest_weight(weight, precision, clip).unflatten(1, (groups, group)).sub_(exact)
        moved = torch.einsum("ngi,gij->ngj", wrong, blocks)
        error = (moved * wrong).sum(dim=2)
        better = error < best
        best = torch.where(better, error, best)
        share = torch.where(better, clip, share)
    return share


class TrainedLinear(nn.Module):
    """A linear that rounds weight and input in its forward pass and lets gradients through.

    Attributes:
        weight_logit: (N, 1) or (N, K/g, 1): sigmoid gives the share of each range.
        input_logit: (): the same of every token's range.
        log_factors: (K,) logarithm of the factors on the weight's columns.
        rotation: block of the input's Hadamard transform, 0 for none.
    """

    def __init__(
        self, linear: nn.Linear, precision: Precision, factors: Tensor, rotation: int
    ) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.weight = hadamard_transform(weight, rotation) if rotation else weight
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.precision = precision
        self.rotation = rotation
        groups = self.weight.shape[1] // precision.group_size
        logits = torch.full((self.weight.shape[0], groups, 1), _START, device=self.weight.device)
        self.weight_logit = nn.Parameter(logits)
        self.input_logit = nn.Parameter(torch.tensor(_START, device=self.weight.device))
        self.log_factors = nn.Parameter(factors.log())

    @property
    def factors(self) -> Tensor:
        """The factors (K,) on the weight's columns."""
        return self.log_factors.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N) as the packed layer will, but for rounding's gradient."""
        if self.rotation:
            x = hadamard_transform(x, self.rotation)
        x = x / self.factors
        if self.precision.activations < 16:
            top = levels(self.precision.activations)
            step = x.abs().amax(dim=-1, keepdim=True) * self.input_logit.sigmoid() / top
            x = _rounded(x, step.clamp_min(1e-12), -top, top)
        weight = (self.weight * self.factors).unflatten(1, (-1, self.precision.group_size))
        top = highest(self.precision.bits)
        largest = weight.abs().amax(dim=2, keepdim=True)
        step = (largest * self.weight_logit.sigmoid() / top).clamp_min(1e-12)
        return F.linear(x, _rounded(weight, step, -top - 1, top).flatten(1), self.bias)


def _rounded(x: Tensor, step: Tensor, lowest: int, top: int) -> Tensor:
    """Round to a multiple of the step within bounds; the gradient passes straight through."""
    scaled = x / step
    rounded = scaled + (scaled.round() - scaled).detach()
    return rounded.clamp(lowest, top) * step


def train_block(
    block: Block,
    inputs: Sequence[BlockInput],
    precisions: Mapping[Linear, Precision],
    factors: Mapping[Linear, Tensor],
    rotations: Mapping[Linear, int],
    settings: LearnedClipping,
) -> dict[Linear, TrainedLinear]:
    """Train ranges and factors of a block so that its output stays that of full precision.

    Mean squared error of the block's output, AdamW, a cosine to zero.

    Args:
        block: in full precision, and left so.
        inputs: see `BlockwiseRunner.inputs`.
        precisions: of the linears that are quantized.
        factors: (K,) to start from, by linear.
        rotations: of inputs, by linear.
        settings: epochs and rates.

    Returns:
        The trained substitutes, by linear.
    """
    inputs = [
        BlockInput(rows, given.rope, given.across_frames)
        for given in inputs
        for rows in given.x.split(settings.windows)
    ]
    with torch.no_grad():
        targets = [run_block(block, given) for given in inputs]
    exact = {name: linear_of(block, name) for name in precisions}
    trained: dict[Linear, TrainedLinear] = {}
    for name, linear in exact.items():
        assert isinstance(linear, nn.Linear)
        trained[name] = TrainedLinear(
            linear, precisions[name], factors[name], rotations.get(name, 0)
        )
        replace_linear(block, LINEARS[name], trained[name])
    clips = [p for t in trained.values() for p in (t.weight_logit, t.input_logit)]
    optimizer = torch.optim.AdamW(
        [
            {"params": clips, "lr": settings.clip_rate},
            {"params": [t.log_factors for t in trained.values()], "lr": settings.scale_rate},
        ],
        weight_decay=0.0,
    )
    steps = max(settings.epochs * len(inputs), 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    try:
        with torch.enable_grad():
            for _ in range(settings.epochs):
                for given, target in zip(inputs, targets, strict=True):
                    loss = F.mse_loss(run_block(block, given), target)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    finally:
        for name, linear in exact.items():
            replace_linear(block, LINEARS[name], linear)
    return trained
