"""Calibration: the blocks of a network are quantized in turn, on the outputs of those before.

The steps of a recipe are taken on one block at a time: rotate, scale, clip, round. Inputs come
through the blocks that are quantized already, so that each block compensates for the errors of
those before it. Finished blocks are stored, and an interrupted run continues behind the last one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from qvggt_kernels import PackedLinear
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint, load_model
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.quantize.block_calibration import BlockCalibration, LinearReport, heads_loss
from qvggt_core.quantize.block_linears import packed_linears, quantized_precisions
from qvggt_core.quantize.blockwise import BlockSite, BlockwiseRunner
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.calibration_store import CalibrationStore, fingerprint
from qvggt_core.quantize.compensation import compensation_token
from qvggt_core.quantize.objective import TaskTargets, teacher_targets, true_targets
from qvggt_core.quantize.plan import Plan
from qvggt_core.quantize.recipes import Recipe

_COMPENSATION = "camera_head.cict_token"


@dataclass(frozen=True)
class CalibrationOptions:
    """How calibration is run; results depend on `judged_images` alone.

    Attributes:
        device: where the network runs.
        batch: windows that are run at once.
        judged_images: images on which candidates are compared by the heads' loss; more cost time.
    """

    device: str = "cpu"
    batch: int = 4
    judged_images: int = 32


@dataclass
class Calibrated:
    """A calibrated network's blocks.

    Attributes:
        state: entries of all blocks, and of the compensation token, by name.
        linears: the packed linears, by path.
        reports: one per quantized linear.
        notes: decisions that depended on the data, as sentences.
        resumed_blocks: blocks that an interrupted run had finished.
        seconds: time that this run took.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    linears: dict[str, PackedLinear] = field(default_factory=dict)
    reports: list[LinearReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed_blocks: int = 0
    seconds: float = 0.0


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
        data: calibration images.
        options: device, batch size and judged images.
        workspace: directory for finished blocks, from which an interrupted run continues; they
            stay until `remove_blocks`. None keeps nothing.
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
    judged = min(judged, len(data.images))
    # Whole batches are judged: none is larger than what is wanted.
    batch = min(options.batch, judged or options.batch)
    runner = BlockwiseRunner(model, data.images, batch, judged)
    teacher, targets = _targets(runner, recipe, data) if judging else ([], [])
    facts = [
        checkpoint.sha256(),
        plan.to_yaml(),
        str(group_size),
        json.dumps(recipe.to_dict(), sort_keys=True),
        data.sha256(),
        f"{options.batch} {options.judged_images}",
    ]
    store = CalibrationStore(workspace, fingerprint(facts))
    result = Calibrated()
    for number, site in enumerate(runner.sites):
        if progress:
            progress(number, len(runner.sites), site.path)
        if site.part == "camera" and site.index == 0 and recipe.compensation:
            _compensate(runner, recipe, teacher, result)
        reports = store.read(site)
        if reports is None:
            reports = []
            if precisions := quantized_precisions(checkpoint, plan, group_size, site.path):
                reports = BlockCalibration(runner, recipe, precisions, targets).run()
            store.write(site, reports)
        else:
            result.resumed_blocks += 1
        result.reports += reports
        _collect(site, result)
        runner.advance()
    if recipe.compensation and all(site.part != "camera" for site in runner.sites):
        result.notes.append("no compensation token: the network has no camera trunk to give it to")
    _note_views(result)
    result.seconds = time.perf_counter() - started
    return result


def _compensate(
    runner: BlockwiseRunner, recipe: Recipe, targets: Sequence[TaskTargets], result: Calibrated
) -> None:
    """Set the camera head's compensation token, unless its loss is higher with it.

    The target is the full-precision network: against the truth of a few windows, a token that
    changes every pose may win by chance.
    """
    head = runner.model.camera_head
    assert isinstance(head, CameraHead)
    token = compensation_token(runner.camera_tokens(), runner.patch_norm, recipe.compensation)
    before = heads_loss(runner, targets) if targets else 0.0
    head.cict_token = token.to(head.token_norm.weight.device)
    if recipe.compensation_judged and targets:
        after = heads_loss(runner, targets)
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
            f"special tokens excluded from the statistics of {views.count('excluded')} of "
            f"{len(views)} linears, by the heads' loss"
        )


def _collect(site: BlockSite, result: Calibrated) -> None:
    for name, tensor in site.block.state_dict().items():
        result.state[f"{site.path}.{name}"] = tensor.cpu()
    result.linears |= packed_linears(site.block, f"{site.path}.")


def _targets(
    runner: BlockwiseRunner, recipe: Recipe, data: CalibrationSet
) -> tuple[list[TaskTargets], list[TaskTargets]]:
    """Return the full-precision outputs and the targets of the heads, per judged batch.

    The runner is at the first block, and nothing is quantized yet.
    """
    assert recipe.scaling is not None
    predictions = [runner.predict(batch) for batch in range(runner.batches(judged=True))]
    teacher = [
        teacher_targets(prediction, runner.matches(batch))
        for batch, prediction in enumerate(predictions)
    ]
    has_cameras = runner.model.camera_head is not None
    if recipe.scaling.targets == "teacher" or data.truth is None or not has_cameras:
        return teacher, teacher
    windows = sum(len(p.pose_encodings[-1]) for p in predictions)
    truth = data.part(range(windows)).truth
    assert truth is not None
    whole, start, parts = true_targets(truth), 0, []
    for prediction, own in zip(predictions, teacher, strict=True):
        count = len(prediction.pose_encodings[-1])
        part = whole.part(slice(start, start + count))
        parts.append(replace(part, matches=own.matches))
        start += count
    return teacher, parts


def _check_fit(checkpoint: Checkpoint, data: CalibrationSet) -> None:
    patch = checkpoint.config.patch_size
    height, width = data.images.shape[-2:]
    if height % patch or width % patch:
        raise QuantizationError(
            f"calibration images of {width}x{height} are not a whole number of patches of {patch} "
            "pixels: resize them as the network's preprocessing does"
        )
