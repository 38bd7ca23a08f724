"""Calibration: a network is quantized block by block, each from inputs that its forerunners give.

The steps of a recipe are taken on one block at a time: rotate, scale, clip, round. Inputs come
through the blocks that are quantized already, so that each block makes up for what those
before it have lost. Finished blocks are written down, and an interrupted run goes on behind
the last one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from qvggt_kernels import PackedLinear, hadamard_block, hadamard_transform
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint, describe_linears, load_model
from qvggt_core.model.blocks import Block
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.packed_format import LINEARS_KEY, empty_packed_linear
from qvggt_core.quantize.activation_statistics import (
    LINEARS,
    InputStatistics,
    input_statistics,
    linear_of,
)
from qvggt_core.quantize.blockwise import BlockInput, Site, Walk
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.clipping import TrainedLinear, searched_clip, train_block
from qvggt_core.quantize.compensation import compensation_token
from qvggt_core.quantize.objective import TaskTargets, task_loss, teacher_targets, true_targets
from qvggt_core.quantize.plan import Plan, Precision
from qvggt_core.quantize.recipes import Recipe
from qvggt_core.quantize.recipes.recipe import Linear, TokenView
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

logger = logging.getLogger(__name__)

_RUN = "run.json"
_COMPENSATION = "camera_head.cict_token"
# proj comes first: folding its factors changes rows of qkv, which must not be rounded yet.
_ORDER: tuple[Linear, ...] = ("proj", "qkv", "fc1", "fc2")


@dataclass(frozen=True)
class CalibrationOptions:
    """How calibration is run; results depend on `judged_images` alone.

    Attributes:
        device: where the network runs.
        batch: windows that are run at once.
        judged_images: images for which candidates are judged by the heads; more cost time.
    """

    device: str = "cpu"
    batch: int = 4
    judged_images: int = 32


@dataclass
class LinearReport:
    """What became of one linear.

    Attributes:
        name: of its weight.
        alpha: exponent of its factors that was chosen, or None.
        weight_error: |W - W_hat| / |W|, rotation and factors applied.
        output_error: root of the share of the output's energy on calibration inputs that
            rounding the weight costs.
        view: what statistics saw of special tokens, where the heads could choose.
    """

    name: str
    alpha: float | None
    weight_error: float
    output_error: float
    view: TokenView | None = None


@dataclass
class Calibrated:
    """A calibrated network's blocks.

    Attributes:
        state: entries of all blocks, and of the compensation token, by name.
        linears: the packed linears, by path.
        reports: what became of each linear.
        notes: what was decided on the way, for people.
        resumed_blocks: blocks that were taken over from an interrupted run.
        seconds: time that this run took.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    linears: dict[str, PackedLinear] = field(default_factory=dict)
    reports: list[LinearReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed_blocks: int = 0
    seconds: float = 0.0


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
    """One way to scale a linear: factors (K,) of an alpha, and what reconstruction loses."""

    view: TokenView
    alpha: float
    factors: Tensor
    lost: float


def calibrate(
    checkpoint: Checkpoint,
    plan: Plan,
    group_size: int | str,
    recipe: Recipe,
    data: CalibrationSet,
    *,
    options: CalibrationOptions = CalibrationOptions(),
    workspace: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibrated:
    """Quantize the blocks of a network on a calibration set.

    Args:
        checkpoint: full precision.
        plan: which linears are integers.
        group_size: for rules that name none.
        recipe: which steps are taken.
        data: what the network is shown.
        options: how.
        workspace: directory for finished blocks; an interrupted run in it goes on. None keeps
            nothing.
        progress: called before each block with its index, the number of blocks, its path.

    Raises:
        QuantizationError: the images do not fit the network, or a block cannot be quantized.
    """
    started = time.perf_counter()
    _check_fit(checkpoint, data)
    model = load_model(
        checkpoint.path, options.device, torch.float32, heads=("camera", "depth", "points")
    )
    frames = data.images.shape[1]
    judging = recipe.scaling is not None and recipe.scaling.task_candidates > 0
    judged = -(-options.judged_images // frames) if judging else 0
    walk = Walk(model, data.images, options.batch, min(judged, len(data.images)))
    teacher, targets = _targets(walk, recipe, data) if judging else ([], [])
    store = _Store(workspace, _fingerprint(checkpoint, plan, group_size, recipe, data, options))
    result = Calibrated()
    for number, site in enumerate(walk.sites):
        if progress:
            progress(number, len(walk.sites), site.path)
        if site.part == "camera" and site.index == 0 and recipe.compensation:
            _compensate(walk, recipe, teacher, result)
        reports = store.read(site)
        if reports is None:
            precisions = _precisions(checkpoint, plan, group_size, site)
            reports = _BlockWork(walk, recipe, precisions, targets).run() if precisions else []
            store.write(site, reports)
        else:
            result.resumed_blocks += 1
        result.reports += reports
        _collect(site, result)
        walk.advance()
    if recipe.compensation and all(site.part != "camera" for site in walk.sites):
        result.notes.append("no compensation token: the network has no camera trunk to give it to")
    store.remove()
    _note_views(result)
    result.seconds = time.perf_counter() - started
    return result


def _compensate(
    walk: Walk, recipe: Recipe, targets: Sequence[TaskTargets], result: Calibrated
) -> None:
    """Give the camera head its compensation token, unless the heads are asked and refuse it.

    The yardstick is the full-precision network: against the truth of a few windows, a token
    that changes every pose may win by chance.
    """
    head = walk.model.camera_head
    assert isinstance(head, CameraHead)
    token = compensation_token(walk.camera_tokens(), walk.patch_norm, recipe.compensation)
    before = _heads_loss(walk, targets) if targets else 0.0
    head.cict_token = token.to(head.token_norm.weight.device)
    if recipe.compensation_judged and targets:
        after = _heads_loss(walk, targets)
        kept = after < before
        result.notes.append(
            f"camera compensation token {'kept' if kept else 'left out'}: the heads' loss is "
            f"{before:.5f} without it, {after:.5f} with it"
        )
        if not kept:
            head.cict_token = None
            return
    result.state[_COMPENSATION] = token


def _note_views(result: Calibrated) -> None:
    views = [report.view for report in result.reports if report.view]
    if views:
        result.notes.append(
            f"special tokens filtered in the statistics of {views.count('filtered')} of "
            f"{len(views)} linears, as the heads judged"
        )


def _heads_loss(walk: Walk, targets: Sequence[TaskTargets]) -> float:
    losses = [task_loss(walk.predict(batch), wanted) for batch, wanted in enumerate(targets)]
    return sum(losses) / len(losses)


class _BlockWork:
    """The steps of a recipe on the block where a walk stands."""

    def __init__(
        self,
        walk: Walk,
        recipe: Recipe,
        precisions: Mapping[Linear, Precision],
        targets: Sequence[TaskTargets],
    ) -> None:
        self.walk = walk
        self.recipe = recipe
        self.targets = targets
        self.site = walk.site
        self.block: Block = walk.site.block
        self.treatments = {name: _Treatment(precision) for name, precision in precisions.items()}
        self.views: dict[TokenView, dict[Linear, InputStatistics]] = {}
        self.statistics: dict[Linear, InputStatistics] = {}
        self.reports: dict[Linear, LinearReport] = {}

    def run(self) -> list[LinearReport]:
        """Quantize the block in place."""
        if self.recipe.rotation:
            self._rotate()
        inputs = self.walk.inputs()
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
            for name, stand_in in trained.items():
                treatment = self.treatments[name]
                treatment.clip = stand_in.weight_logit.sigmoid().squeeze(2)
                treatment.activation_clip = float(stand_in.input_logit.sigmoid())
                self._apply_factors(name, stand_in.factors.detach())

    def _scale(self, name: Linear) -> None:
        scaling = self.recipe.scaling
        if scaling is None or name not in scaling.linears:
            return
        if scaling.method == "smooth":
            factors = self._smoothing(name)
            assert factors is not None
            self._apply_factors(name, factors)
            return
        places = max(scaling.task_candidates // len(self.views), 1)
        finalists: list[_Candidate] = []
        for view in self.views:
            finalists += self._candidates(name, view, scaling.candidates)[:places]
        chosen = finalists[0]
        if self.targets:
            chosen = min(finalists, key=lambda candidate: self._loss(name, candidate))
        self.statistics[name] = self.views[chosen.view][name]
        self.treatments[name].alpha = chosen.alpha
        self.treatments[name].view = chosen.view
        self._apply_factors(name, chosen.factors)

    def _token_views(self) -> tuple[TokenView, ...]:
        """Return what of special tokens this block's statistics are gathered of."""
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
        """Return what reconstruction, by the yardstick's tokens, and the heads lose."""
        yardstick = self.recipe.token_views[-1]
        lost = candidate.lost
        if candidate.view != yardstick:
            lost = self._reconstruction(name, candidate.factors, yardstick)
        return lost + self._judged(name, candidate)

    def _reconstruction(self, name: Linear, factors: Tensor, view: TokenView) -> float:
        """Return the share of the output's energy that rounding costs with these factors."""
        treatment = self.treatments[name]
        statistics = self.views[view][name].divided(factors)
        weight = self._rotated_weight(name) * factors
        wrong = nearest_weight(weight, treatment.precision).sub_(weight)
        return statistics.output_energy(wrong) / max(statistics.output_energy(weight), 1e-30)

    def _judged(self, name: Linear, candidate: _Candidate) -> float:
        """Return what the heads lose when the linear is quantized as the candidate says."""
        before, treatment = Snapshot(self.block), self.treatments[name]
        statistics = self.statistics[name]
        self.statistics[name] = self.views[candidate.view][name]
        trial = _Treatment(treatment.precision, treatment.rotation)
        self.treatments[name] = trial
        try:
            self._apply_factors(name, candidate.factors)
            self._pack(name, trial)
            return _heads_loss(self.walk, self.targets)
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
        parent, _, leaf = LINEARS[name].rpartition(".")
        setattr(self.block.get_submodule(parent), leaf, packed)


class _Store:
    """Finished blocks on disk, of one run as its fingerprint says."""

    def __init__(self, directory: Path | None, fingerprint: str) -> None:
        self._directory = directory
        if directory is None:
            return
        run = directory / _RUN
        try:
            same = json.loads(run.read_text(encoding="utf-8"))["fingerprint"] == fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            self.remove()
            directory.mkdir(parents=True)
            run.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")

    def read(self, site: Site) -> list[LinearReport] | None:
        """Bring a block to its finished state; None if it is not there."""
        path = self._path(site)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s): the block is calibrated again", path, error)
            return None
        descriptions = json.loads(metadata.get(LINEARS_KEY, "{}"))
        device = next(site.block.parameters()).device
        for name in [n for n in state if n.endswith(".qweight")]:
            leaf_path = name.removesuffix(".qweight")
            parent, _, leaf = leaf_path.rpartition(".")
            linear = site.block.get_submodule(leaf_path)
            assert isinstance(linear, nn.Linear)
            shapes = {
                n.rpartition(".")[2]: t.shape
                for n, t in state.items()
                if n.startswith(leaf_path + ".")
            }
            packed = empty_packed_linear(linear, shapes, descriptions.get(leaf_path, {}))
            setattr(site.block.get_submodule(parent), leaf, packed)
        site.block.load_state_dict({n: t.to(device) for n, t in state.items()}, assign=True)
        site.block.requires_grad_(False)
        return [LinearReport(**report) for report in json.loads(metadata["reports"])]

    def write(self, site: Site, reports: list[LinearReport]) -> None:
        """Write a finished block, whole or not at all."""
        path = self._path(site)
        if path is None:
            return
        metadata = {
            **describe_linears(packed_linears(site.block)),
            "reports": json.dumps([asdict(report) for report in reports]),
        }
        temporary = path.with_suffix(".tmp")
        state = {name: tensor.contiguous() for name, tensor in site.block.state_dict().items()}
        save_file(state, temporary, metadata)
        temporary.replace(path)

    def remove(self) -> None:
        """Delete the directory."""
        if self._directory is not None and self._directory.exists():
            shutil.rmtree(self._directory)

    def _path(self, site: Site) -> Path | None:
        return None if self._directory is None else self._directory / f"{site.path}.safetensors"


def packed_linears(module: nn.Module, prefix: str = "") -> dict[str, PackedLinear]:
    """Return the packed linears below a module, by their paths after a prefix."""
    return {
        f"{prefix}{path}": child
        for path, child in module.named_modules()
        if isinstance(child, PackedLinear)
    }


def _collect(site: Site, result: Calibrated) -> None:
    for name, tensor in site.block.state_dict().items():
        result.state[f"{site.path}.{name}"] = tensor.cpu()
    result.linears |= packed_linears(site.block, f"{site.path}.")


def _precisions(
    checkpoint: Checkpoint, plan: Plan, group_size: int | str, site: Site
) -> dict[Linear, Precision]:
    found = {}
    for name, path in LINEARS.items():
        weight = f"{site.path}.{path}.weight"
        precision = plan.precision(weight, checkpoint.shape(weight), group_size)
        if precision.quantized:
            found[name] = precision
    return found


def _targets(
    walk: Walk, recipe: Recipe, data: CalibrationSet
) -> tuple[list[TaskTargets], list[TaskTargets]]:
    """Return what full precision says, and what the heads should say, per judged batch.

    The walk stands at the start, before anything is quantized.
    """
    assert recipe.scaling is not None
    predictions = [walk.predict(batch) for batch in range(walk.batches(judged=True))]
    teacher = [teacher_targets(prediction) for prediction in predictions]
    has_cameras = walk.model.camera_head is not None
    if recipe.scaling.targets == "teacher" or data.truth is None or not has_cameras:
        return teacher, teacher
    windows = sum(len(p.pose_encodings[-1]) for p in predictions)
    truth = data.part(range(windows)).truth
    assert truth is not None
    whole, start, parts = true_targets(truth), 0, []
    for prediction in predictions:
        count = len(prediction.pose_encodings[-1])
        parts.append(whole.part(slice(start, start + count)))
        start += count
    return teacher, parts


def _check_fit(checkpoint: Checkpoint, data: CalibrationSet) -> None:
    patch = checkpoint.config.patch_size
    height, width = data.images.shape[-2:]
    if height % patch or width % patch:
        raise QuantizationError(
            f"calibration images of {width}x{height} are no whole number of patches of {patch} "
            "pixels: resize them as the network's preprocessing does"
        )


def _fingerprint(
    checkpoint: Checkpoint,
    plan: Plan,
    group_size: int | str,
    recipe: Recipe,
    data: CalibrationSet,
    options: CalibrationOptions,
) -> str:
    said = [
        checkpoint.sha256(),
        plan.to_yaml(),
        str(group_size),
        json.dumps(recipe.to_dict(), sort_keys=True),
        data.sha256(),
        f"{options.batch} {options.judged_images}",
    ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
