"""Calibration of one block: rotate, scale, clip and round its linears, as a recipe describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from qvggt_kernels import hadamard_block, hadamard_transform
from torch import Tensor, nn

from qvggt_core.errors import QuantizationError
from qvggt_core.model.blocks import Block
from qvggt_core.quantize.activation_statistics import InputStatistics, input_statistics
from qvggt_core.quantize.block_linears import LINEARS, Linear, linear_of, replace_linear
from qvggt_core.quantize.blockwise import BlockInput, BlockwiseRunner
from qvggt_core.quantize.clipping import TrainedLinear, searched_clip, train_block
from qvggt_core.quantize.objective import TaskTargets, task_loss
from qvggt_core.quantize.plan import Precision
from qvggt_core.quantize.recipes.recipe import Recipe, TokenView
from qvggt_core.quantize.rounding import nearest_weight, quantized_linear, represented_weight
from qvggt_core.quantize.scaling import (
    Snapshot,
    fold_inverse,
    foldable,
    rotate_values,
    scale_weight,
    searched_factors,
    smoothing_factors,
)

# proj comes first: folding its factors changes rows of qkv, which must not be rounded yet.
_ORDER: tuple[Linear, ...] = ("proj", "qkv", "fc1", "fc2")


@dataclass
class LinearReport:
    """The result for one linear.

    Attributes:
        name: of its weight.
        alpha: exponent of its factors that was chosen, or None.
        weight_error: |W - W_hat| / |W|, rotation and factors applied.
        output_error: root of the share of the output's energy on calibration inputs that
            rounding the weight costs.
        view: special tokens in the statistics, where the heads' loss decided.
    """

    name: str
    alpha: float | None
    weight_error: float
    output_error: float
    view: TokenView | None = None


@dataclass
class _Treatment:
    """How one linear is packed: see `quantized_linear`."""

    precision: Precision
    rotation: int = 0
    factors: Tensor | None = None
    clip: Tensor | None = None
    activation_clip: float = 1.0
    alpha: float | None = None
    view: TokenView | None = None


class _Candidate(NamedTuple):
    """One way to scale a linear: factors (K,) of an alpha, and their reconstruction loss."""

    view: TokenView
    alpha: float
    factors: Tensor
    lost: float


def heads_loss(runner: BlockwiseRunner, targets: Sequence[TaskTargets]) -> float:
    """Return the mean task loss over the judged batches, from the next block on."""
    losses = [
        task_loss(runner.predict(batch), wanted, runner.matches(batch))
        for batch, wanted in enumerate(targets)
    ]
    return sum(losses) / len(losses)


class BlockCalibration:
    """The steps of a recipe on a runner's next block."""

    def __init__(
        self,
        runner: BlockwiseRunner,
        recipe: Recipe,
        precisions: Mapping[Linear, Precision],
        targets: Sequence[TaskTargets],
    ) -> None:
        """Prepare for the block.

        Args:
            runner: at the block, which is in full precision.
            recipe: which steps are taken.
            precisions: of the linears to quantize.
            targets: of the heads per judged batch; none where no candidates are judged.
        """
        self.runner = runner
        self.recipe = recipe
        self.targets = targets
        self.site = runner.site
        self.block: Block = runner.site.block
        self.treatments = {name: _Treatment(precision) for name, precision in precisions.items()}
        self.views: dict[TokenView, dict[Linear, InputStatistics]] = {}
        self.statistics: dict[Linear, InputStatistics] = {}
        self.reports: dict[Linear, LinearReport] = {}

    def run(self) -> list[LinearReport]:
        """Quantize the block in place."""
        if self.recipe.rotation:
            self._rotate()
        inputs = self.runner.inputs()
        rotations = {name: t.rotation for name, t in self.treatments.items()}
        self.views = {
            view: input_statistics(self.block, inputs, self.site.special_tokens, view, rotations)
            for view in self._token_views()
        }
        self.statistics = dict(self.views[self.recipe.token_views[-1]])
        if self.recipe.learned_clipping is not None:
            self._train(inputs)
        for name in _ORDER:
            if name not in self.treatments:
                continue
            if self.recipe.learned_clipping is None:
                self._scale(name)
            self._pack(name, self.treatments[name])
        return [self.reports[name] for name in LINEARS if name in self.reports]

    def _rotate(self) -> None:
        for name, treatment in self.treatments.items():
            if name != "proj":
                columns = self._linear(name).in_features
                treatment.rotation = hadamard_block(columns)
        if "proj" in self.treatments:
            rotate_values(self.block)

    def _linear(self, name: Linear) -> nn.Linear:
        linear = linear_of(self.block, name)
        assert isinstance(linear, nn.Linear)
        return linear

    def _rotated_weight(self, name: Linear) -> Tensor:
        weight, rotation = self._linear(name).weight, self.treatments[name].rotation
        return hadamard_transform(weight, rotation) if rotation else weight

    def _smoothing(self, name: Linear) -> Tensor | None:
        scaling = self.recipe.scaling
        if scaling is None or scaling.method != "smooth" or name not in scaling.linears:
            return None
        weight = self._rotated_weight(name)
        return smoothing_factors(self.statistics[name], weight, scaling.balance)

    def _train(self, inputs: Sequence[BlockInput]) -> None:
        settings = self.recipe.learned_clipping
        assert settings is not None
        factors = {}
        for name in self.treatments:
            smoothing = self._smoothing(name)
            ones = torch.ones_like(self.statistics[name].mean_magnitude)
            factors[name] = ones if smoothing is None else smoothing
        trained: dict[Linear, TrainedLinear] = train_block(
            self.block,
            inputs,
            {name: t.precision for name, t in self.treatments.items()},
            factors,
            {name: t.rotation for name, t in self.treatments.items()},
            settings,
        )
        with torch.no_grad():
            for name, substitute in trained.items():
                treatment = self.treatments[name]
                treatment.clip = substitute.weight_logit.sigmoid().squeeze(2)
                treatment.activation_clip = float(substitute.input_logit.sigmoid())
                self._apply_factors(name, substitute.factors.detach())

    def _scale(self, name: Linear) -> None:
        scaling = self.recipe.scaling
        if scaling is None or name not in scaling.linears:
            return
        if scaling.method == "smooth":
            factors = self._smoothing(name)
            assert factors is not None
            self._apply_factors(name, factors)
            return
        per_view = max(scaling.task_candidates // len(self.views), 1)
        finalists: list[_Candidate] = []
        for view in self.views:
            finalists += self._candidates(name, view, scaling.candidates)[:per_view]
        chosen = finalists[0]
        if self.targets:
            chosen = min(finalists, key=lambda candidate: self._loss(name, candidate))
        self.statistics[name] = self.views[chosen.view][name]
        self.treatments[name].alpha = chosen.alpha
        self.treatments[name].view = chosen.view
        self._apply_factors(name, chosen.factors)

    def _token_views(self) -> tuple[TokenView, ...]:
        """Return the views of special tokens from which this block's statistics are gathered."""
        views = self.recipe.token_views
        return views if self.targets and self.site.special_tokens else views[-1:]

    def _candidates(self, name: Linear, view: TokenView, count: int) -> list[_Candidate]:
        """Return factors for the alphas of a grid, those of least reconstruction error first."""
        found = []
        for alpha in torch.linspace(0, 1, count).tolist():
            factors = searched_factors(self.views[view][name], alpha)
            lost = self._reconstruction(name, factors, view)
            found.append(_Candidate(view, alpha, factors, lost))
        return sorted(found, key=lambda candidate: candidate.lost)

    def _loss(self, name: Linear, candidate: _Candidate) -> float:
        """Return the loss of reconstruction, by the baseline's tokens, plus the heads' loss."""
        baseline = self.recipe.token_views[-1]
        lost = candidate.lost
        if candidate.view != baseline:
            lost = self._reconstruction(name, candidate.factors, baseline)
        return lost + self._judged(name, candidate)

    def _reconstruction(self, name: Linear, factors: Tensor, view: TokenView) -> float:
        """Return the share of the output's energy that rounding costs with these factors."""
        treatment = self.treatments[name]
        statistics = self.views[view][name].divided(factors)
        weight = self._rotated_weight(name) * factors
        wrong = nearest_weight(weight, treatment.precision).sub_(weight)
        return statistics.output_energy(wrong) / max(statistics.output_energy(weight), 1e-30)

    def _judged(self, name: Linear, candidate: _Candidate) -> float:
        """Return the heads' loss with the linear quantized by a candidate."""
        before, treatment = Snapshot(self.block), self.treatments[name]
        statistics = self.statistics[name]
        self.statistics[name] = self.views[candidate.view][name]
        candidate_treatment = _Treatment(treatment.precision, treatment.rotation)
        self.treatments[name] = candidate_treatment
        try:
            self._apply_factors(name, candidate.factors)
            self._pack(name, candidate_treatment)
            return heads_loss(self.runner, self.targets)
        finally:
            before.restore()
            self.treatments[name], self.statistics[name] = treatment, statistics

    def _apply_factors(self, name: Linear, factors: Tensor) -> None:
        """Fold factors into the block, or leave them to the packed layer where nothing can."""
        self.statistics[name] = self.statistics[name].divided(factors)
        if foldable(name) and not self.treatments[name].rotation:
            fold_inverse(self.block, name, factors)
            scale_weight(self.block, name, factors)
        else:
            self.treatments[name].factors = factors

    def _pack(self, name: Linear, treatment: _Treatment) -> None:
        linear, statistics = self._linear(name), self.statistics[name]
        weight = self._rotated_weight(name)
        if treatment.factors is not None:
            weight = weight * treatment.factors
        if self.recipe.clip_search:
            treatment.clip = searched_clip(weight, statistics.second_moment, treatment.precision)
        path = f"{self.site.path}.{LINEARS[name]}"
        try:
            packed = quantized_linear(
                weight,
                linear.bias,
                treatment.precision,
                second_moment=statistics.second_moment if self.recipe.rounding == "gptq" else None,
                clip=treatment.clip,
                activation_clip=treatment.activation_clip,
                rotation=treatment.rotation,
                input_scale=None if treatment.factors is None else 1 / treatment.factors,
            )
        except QuantizationError as error:
            raise QuantizationError(f"{path}.weight: {error}") from None
        wrong = represented_weight(packed) - weight
        lost = statistics.output_energy(wrong)
        energy = max(statistics.output_energy(weight), 1e-30)
        self.reports[name] = LinearReport(
            name=f"{path}.weight",
            alpha=treatment.alpha,
            weight_error=float(wrong.norm() / weight.norm().clamp_min(1e-30)),
            output_error=(lost / energy) ** 0.5,
            view=treatment.view if len(self.views) > 1 else None,
        )
        replace_linear(self.block, LINEARS[name], packed)
