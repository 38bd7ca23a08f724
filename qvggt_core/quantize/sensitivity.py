"""Which linears tolerate low precision: each is quantized alone, and the heads are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint, Prediction, load_model
from qvggt_core.quantize.block_linears import (
    LINEARS,
    Linear,
    linear_of,
    quantized_precisions,
    replace_linear,
)
from qvggt_core.quantize.blockwise import BlockwiseRunner
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.objective import (
    TaskTargets,
    attention_moved,
    teacher_targets,
    unprojected,
)
from qvggt_core.quantize.plan import (
    DEFAULT_GROUP_SIZE,
    PRESETS,
    Plan,
    Precision,
    Rule,
    parse_precision,
)
from qvggt_core.quantize.rounding import quantized_linear
from qvggt_core.quantize.scaling import Snapshot
from qvggt_core.quantize.stored_size import planned_sizes, stored_bytes

_HEADS = ("camera", "depth", "points")
BLOCK = "block"
"""Kind of the row that has all four linears of a block quantized."""


@dataclass(frozen=True)
class HeadErrors:
    """Changes of the heads' outputs by quantization, on the mean over calibration windows.

    Attributes:
        camera: mean absolute change of the pose encodings.
        depth: mean relative change of depth; 0 without a depth head.
        points: mean distance that points move, over their mean distance from the first camera;
            0 without depth.
        matches: share of the attention between views that moves, see `attention_moved`; 0 for a
            network that was not trained to match, and behind its first global block.
    """

    camera: float
    depth: float
    points: float
    matches: float = 0.0


@dataclass(frozen=True)
class Sensitivity:
    """One row of the sweep.

    Attributes:
        path: of the block.
        part: "encoder", "frame", "global" or "camera".
        index: of the block in its part.
        kind: "qkv", "proj", "fc1", "fc2", or "block" for all four.
        errors: when this alone is quantized.
        extra_bytes: of keeping it in 16 bits instead.
    """

    path: str
    part: str
    index: int
    kind: str
    errors: HeadErrors
    extra_bytes: int


@dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    Attributes:
        precision: of what was quantized, e.g. "w4a16".
        group_size: columns per scale.
        rows: per linear and per block.
        everything: errors when all blocks are quantized at once.
        calibration: images on which the errors were measured.
    """

    precision: str
    group_size: int | str
    rows: tuple[Sensitivity, ...]
    everything: HeadErrors
    calibration: dict[str, Any]

    def total(self, errors: HeadErrors) -> float:
        """Return one number: the mean over heads of the errors' share of everything's.

        Where poses come from matches, cameras do not count, nor points that are seen by them: the
        camera head gives the solution no more than its start.
        """
        heads = ("depth", "matches") if self.everything.matches > 0 else _HEADS
        wholes = {head: getattr(self.everything, head) for head in heads}
        shares = [getattr(errors, head) / whole for head, whole in wholes.items() if whole > 0]
        return float(np.mean(shares)) if shares else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as plain data, for JSON."""
        data = asdict(self)
        for row in data["rows"]:
            row["damage"] = row.pop("errors")
        return data


def sweep_sensitivity(
    checkpoint: Checkpoint,
    data: CalibrationSet,
    *,
    precision: str = "w4a16",
    group_size: int | str = DEFAULT_GROUP_SIZE,
    device: str = "cpu",
    batch: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> Sweep:
    """Quantize each linear and each block alone, to nearest, and measure the heads' errors.

    Only the network behind the block is run for each. Errors are against the full-precision
    outputs: no ground truth is needed.

    Args:
        checkpoint: full precision.
        data: calibration images; a few windows are enough.
        precision: of what is quantized.
        group_size: columns per scale, or "channel".
        device: where the network runs.
        batch: windows that are run at once.
        progress: called before each block with its index, the number of blocks, its path.
    """
    bits = parse_precision(precision)
    plan = PRESETS["uniform"].at(*bits)
    model = load_model(checkpoint.path, device, torch.float32, ("camera", "depth", "points"))
    runner = BlockwiseRunner(model, data.images, batch, len(data.images))
    targets = [
        teacher_targets(runner.predict(b), runner.matches(b))
        for b in range(runner.batches(judged=True))
    ]
    rows: list[Sensitivity] = []
    for number, site in enumerate(runner.sites):
        if progress:
            progress(number, len(runner.sites), site.path)
        precisions = quantized_precisions(checkpoint, plan, group_size, site.path)
        kinds: list[tuple[str, list[Linear]]] = [(name, [name]) for name in LINEARS]
        for kind, linears in [*kinds, (BLOCK, list(LINEARS))]:
            before = Snapshot(site.block)
            chosen = {name: precisions[name] for name in linears if name in precisions}
            _round(site.block, chosen)
            errors = _head_errors(runner, targets)
            before.restore()
            extra = sum(
                _saved_bytes(checkpoint.shape(f"{site.path}.{LINEARS[name]}.weight"), precision)
                for name, precision in chosen.items()
            )
            rows.append(Sensitivity(site.path, site.part, site.index, kind, errors, extra))
        runner.advance()
    for site in runner.sites:
        _round(site.block, quantized_precisions(checkpoint, plan, group_size, site.path))
    whole = BlockwiseRunner(model, data.images, batch, len(data.images))
    everything = _head_errors(whole, targets)
    return Sweep(precision, group_size, tuple(rows), everything, data.describe())


def auto_plan(
    sweep: Sweep,
    shapes: dict[str, tuple[int, ...]],
    *,
    megabytes: float | None = None,
    bits_per_weight: float | None = None,
    draw: int | None = None,
) -> Plan:
    """Return a plan that fits a budget and protects what is most sensitive for its size.

    Linears are kept in 16 bits in the order of errors per byte until the budget is used up;
    the errors of several are taken to be the sum of each one's. What causes no error is left alone.

    Args:
        sweep: errors of each linear alone.
        shapes: of the checkpoint's entries that will be written, by name.
        megabytes: budget of the file's weights, 10^6 bytes.
        bits_per_weight: budget over all weights of the file, instead of megabytes.
        draw: seed of an order by chance instead, as a control.

    Raises:
        QuantizationError: no budget or two, or one below the size of the uniform plan.
    """
    if (megabytes is None) == (bits_per_weight is None):
        raise QuantizationError("an auto plan solves one budget: megabytes or bits per weight")
    uniform = PRESETS["uniform"].at(*parse_precision(sweep.precision))
    sizes = planned_sizes(uniform, shapes, sweep.group_size)
    least = sum(size.nbytes for size in sizes.values())
    weights = sum(size.weights for size in sizes.values())
    budget = 1e6 * megabytes if megabytes else (bits_per_weight or 0.0) * weights / 8
    if budget < least:
        raise QuantizationError(
            f"a budget of {budget / 1e6:.2f} MB is below the {least / 1e6:.2f} MB "
            f"({8 * least / weights:.2f} bits per weight) that the uniform plan takes"
        )
    candidates = [
        row
        for row in sweep.rows
        if row.kind != BLOCK and row.extra_bytes > 0 and sweep.total(row.errors) > 0
    ]
    candidates.sort(key=lambda row: sweep.total(row.errors) / row.extra_bytes, reverse=True)
    if draw is not None:
        order = np.random.default_rng(draw).permutation(len(candidates))
        candidates = [candidates[index] for index in order]
    protected, room = [], budget - least
    for row in candidates:
        if row.extra_bytes <= room:
            room -= row.extra_bytes
            protected.append(row)
    rules = tuple(
        Rule(match=f"{row.path}.{LINEARS[row.kind]}.weight", bits=16)  # type: ignore[index]
        for row in protected
    )
    fine = tuple(rule for rule in uniform.rules if rule.bits >= 16)
    blocks = tuple(rule for rule in uniform.rules if rule.bits < 16)
    return Plan(name="auto", rules=(*fine, *rules, *blocks))


def draw_heat_map(sweep: Sweep, path: Path) -> None:
    """Draw the errors that each linear alone causes, a panel per head, blocks across."""
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys((row.part, row.index) for row in sweep.rows))
    kinds = [*LINEARS, BLOCK]
    heads = [h for h in asdict(sweep.everything) if getattr(sweep.everything, h) > 0]
    figure = Figure(figsize=(max(6.0, 0.42 * len(blocks) + 2.4), 1.9 * len(heads) + 0.6))
    for axis, head in zip(np.atleast_1d(figure.subplots(len(heads), 1)), heads, strict=True):
        grid = np.full((len(kinds), len(blocks)), np.nan)
        for row in sweep.rows:
            cell = kinds.index(row.kind), blocks.index((row.part, row.index))
            grid[cell] = 100 * getattr(row.errors, head) / getattr(sweep.everything, head)
        image = axis.imshow(grid, aspect="auto", cmap="magma_r", vmin=0)
        axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
        axis.set_xticks(
            range(len(blocks)), [f"{part[0].upper()}{i}" for part, i in blocks], fontsize=8
        )
        axis.set_title(f"{head}: % of the error with everything quantized", fontsize=9, loc="left")
        figure.colorbar(image, ax=axis, pad=0.01)
    figure.supxlabel("blocks: E encoder, F frame, G global, C camera trunk", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")


def _round(block: nn.Module, precisions: dict[Linear, Precision]) -> None:
    for name, precision in precisions.items():
        linear = linear_of(block, name)
        if not isinstance(linear, nn.Linear):
            continue
        packed = quantized_linear(linear.weight, linear.bias, precision)
        replace_linear(block, LINEARS[name], packed)


def _saved_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    return stored_bytes(shape, Precision(16)) - stored_bytes(shape, precision)


def _head_errors(runner: BlockwiseRunner, targets: Sequence[TaskTargets]) -> HeadErrors:
    per_batch = [
        (*_compare(runner.predict(b), wanted), _moved(runner.matches(b), wanted))
        for b, wanted in enumerate(targets)
    ]
    return HeadErrors(*(float(each) for each in np.mean(per_batch, axis=0)))


def _moved(matches: Tensor | None, wanted: TaskTargets) -> float:
    if matches is None or wanted.matches is None:
        return 0.0
    return float(attention_moved(matches, wanted.matches))


def _compare(prediction: Prediction, wanted: TaskTargets) -> tuple[float, float, float]:
    depth = 0.0
    if prediction.depth is not None and wanted.depth is not None:
        depth = float(((prediction.depth - wanted.depth).abs() / wanted.depth).mean())
    if wanted.pose_encodings is None:
        return 0.0, depth, 0.0
    encodings = prediction.pose_encodings[-1].float()
    camera = float((encodings - wanted.pose_encodings).abs().mean())
    if prediction.depth is None or wanted.points is None:
        return camera, 0.0, 0.0
    points = prediction.points
    if points is None:
        points = unprojected(prediction.depth, encodings)
    moved = torch.linalg.vector_norm(points - wanted.points, dim=-1).mean()
    distance = torch.linalg.vector_norm(wanted.points, dim=-1).mean()
    return camera, depth, float(moved / distance)
