"""Statistics of the inputs of a block's linears, special tokens clamped or excluded if wished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from qvggt_kernels import hadamard_transform
from torch import Tensor, nn

from qvggt_core.errors import QuantizationError
from qvggt_core.model.blocks import Block
from qvggt_core.quantize.block_linears import LINEARS, Linear, linear_of
from qvggt_core.quantize.blockwise import BlockInput, run_block
from qvggt_core.quantize.recipes.recipe import TokenView

MAX_TOKENS = 16384
"""Tokens that enter a second moment, taken evenly: more cost time and change nothing."""


@dataclass
class InputStatistics:
    """Statistics of one linear's input over n tokens.

    Attributes:
        mean_magnitude: (K,) mean |x| per column.
        max_magnitude: (K,) largest |x| per column.
        second_moment: (K, K) mean of x x^T.
        samples: (n, K) the tokens of the second moment while they are fewer than K, else None.
    """

    mean_magnitude: Tensor
    max_magnitude: Tensor
    second_moment: Tensor
    samples: Tensor | None = None

    def divided(self, factors: Tensor) -> InputStatistics:
        """Return the statistics of the input divided by factors (K,)."""
        return InputStatistics(
            self.mean_magnitude / factors,
            self.max_magnitude / factors,
            self.second_moment / factors[:, None] / factors[None, :],
            None if self.samples is None else self.samples / factors,
        )

    def output_energy(self, weight: Tensor) -> float:
        """Return the mean of |W x|^2 over tokens, for a weight or a weight's error W (N, K)."""
        if self.samples is not None:
            return float((self.samples @ weight.t()).square().sum()) / max(len(self.samples), 1)
        return float(((weight @ self.second_moment) * weight).sum())


@torch.no_grad()
def input_statistics(
    block: Block,
    inputs: Sequence[BlockInput],
    special_tokens: int = 0,
    view: TokenView = "all",
    rotations: Mapping[Linear, int] | None = None,
) -> dict[Linear, InputStatistics]:
    """Run a block on all inputs and gather the statistics of its linears' inputs.

    Args:
        block: its linears are in full precision.
        inputs: see `BlockwiseRunner.inputs`.
        special_tokens: leading tokens of each frame that are not image tokens.
        view: of these tokens.
        rotations: blocks of the Hadamard transform by which inputs are rotated first.

    Raises:
        QuantizationError: an input is not finite.
    """
    skipped = special_tokens if view == "excluded" else 0
    tokens = sum(
        given.x.shape[:3].numel() - skipped * given.x.shape[:2].numel() for given in inputs
    )
    stride = max(1, -(-tokens // MAX_TOKENS))
    gatherers = {
        name: _Gatherer(linear_of(block, name), stride, (rotations or {}).get(name, 0), view)
        for name in LINEARS
    }
    try:
        for given in inputs:
            special = torch.zeros(given.x.shape[:3], dtype=torch.bool, device=given.x.device)
            special[:, :, :special_tokens] = True
            for gatherer in gatherers.values():
                gatherer.begin(special.flatten())
            run_block(block, given)
    finally:
        for gatherer in gatherers.values():
            gatherer.handle.remove()
    return {name: gatherer.result(name) for name, gatherer in gatherers.items()}


def _viewed(rows: Tensor, special: Tensor, view: TokenView) -> Tensor:
    """Return the rows (n, K) of a slice of a batch's tokens that enter the statistics."""
    if view == "excluded":
        return rows[~special]
    if view == "all" or not special.any() or special.all():
        return rows
    lengths = torch.linalg.vector_norm(rows, dim=1)
    usual = lengths[~special].mean()
    share = torch.where(special, usual / lengths.clamp_min(1e-30), 1.0).clamp_max(1.0)
    return rows * share[:, None]


class _Gatherer:
    """Gathers the statistics of one linear, whose input may come in slices of a batch's tokens."""

    def __init__(self, linear: nn.Module, stride: int, rotation: int, view: TokenView) -> None:
        self._stride = stride
        self._view = view
        self._rotation = rotation
        self._offset = self._seen = self._moment_tokens = 0
        self._sum: Tensor | None = None
        self._samples: list[Tensor] | None = []
        self.handle = linear.register_forward_pre_hook(self._see)

    def begin(self, special: Tensor) -> None:
        """Prepare for a batch, with the mask of its special tokens."""
        self._special = special
        self._offset = 0

    def _see(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        del module
        rows = arguments[0].reshape(-1, arguments[0].shape[-1]).float()
        special = self._special[self._offset : self._offset + len(rows)]
        self._offset += len(rows)
        x = _viewed(rows, special, self._view)
        if self._rotation:
            x = hadamard_transform(x, self._rotation)
        if self._sum is None:
            self._sum = torch.zeros_like(x[0])
            self._max = torch.zeros_like(x[0])
            self._moment = torch.zeros(x.shape[1], x.shape[1], device=x.device)
        self._sum += x.abs().sum(dim=0)
        if len(x):
            torch.maximum(self._max, x.abs().amax(dim=0), out=self._max)
        sampled = x[(-self._seen) % self._stride :: self._stride]
        self._moment.addmm_(sampled.t(), sampled)
        if self._samples is not None:
            self._samples.append(sampled)
            if self._moment_tokens + len(sampled) > x.shape[1]:
                self._samples = None
        self._moment_tokens += len(sampled)
        self._seen += len(x)

    def result(self, name: str) -> InputStatistics:
        """Return the statistics over all batches."""
        assert self._sum is not None
        if not torch.isfinite(self._sum).all():
            raise QuantizationError(
                f"the input of {name} is not finite on the calibration images: the network is "
                "damaged"
            )
        return InputStatistics(
            self._sum / max(self._seen, 1),
            self._max,
            self._moment / max(self._moment_tokens, 1),
            None if self._samples is None else torch.cat(self._samples),
        )
