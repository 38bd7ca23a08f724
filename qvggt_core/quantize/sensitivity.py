"""Which parts of a network bear few bits: each linear quantized alone, the heads asked."""

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
from qvggt_core.quantize.activation_statistics import LINEARS, linear_of
from qvggt_core.quantize.blockwise import Walk
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.objective import TaskTargets, teacher_targets, unprojected
from qvggt_core.quantize.plan import (
    DEFAULT_GROUP_SIZE,
    PRESETS,
    Plan,
    Precision,
    Rule,
    parse_precision,
)
from qvggt_core.quantize.recipes.recipe import Linear
from qvggt_core.quantize.rounding import quantized_linear
from qvggt_core.quantize.scaling import Snapshot
from qvggt_core.quantize.stored_size import planned_sizes, stored_bytes

BLOCK = "block"
"""Kind of the row that has all four linears of a block quantized."""


@dataclass(frozen=True)
class Damage:
    """What quantization of something does to each head, on the mean over calibration windows.

    Attributes:
        camera: mean absolute change of the pose encodings.
        depth: mean relative change of depth; 0 without a depth head.
        points: mean distance that points move, over their mean distance from the first camera;
            0 without depth.
    """

    camera: float
    depth: float
    points: float


@dataclass(frozen=True)
class Sensitivity:
    """One row of the sweep.

    Attributes:
        path: of the block.
        part: "encoder", "frame", "global" or "camera".
        index: of the block in its part.
        kind: "qkv", "proj", "fc1", "fc2", or "block" for all four.
        damage: done when this alone is quantized.
        extra_bytes: what it takes to keep it in 16 bits instead.
    """

    path: str
    part: str
    index: int
    kind: str
    damage: Damage
    extra_bytes: int


@dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    Attributes:
        precision: of what was quantized, e.g. "w4a16".
        group_size: columns per scale.
        rows: per linear and per block.
        everything: damage when all blocks are quantized at once.
        calibration: what the damage was measured on.
    """

    precision: str
    group_size: int | str
    rows: tuple[Sensitivity, ...]
    everything: Damage
    calibration: dict[str, Any]

    def total(self, damage: Damage) -> float:
        """Return one number: the mean over heads of the damage's share of everything's."""
        shares = [
            part / whole
            for part, whole in zip(
                asdict(damage).values(), asdict(self.everything).values(), strict=True
            )
            if whole > 0
        ]
        return float(np.mean(shares)) if shares else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as plain data, for JSON."""
        return asdict(self)


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
    """Quantize each linear and each block alone, to nearest, and measure what heads say.

    Only the network behind the block is run for each; the full-precision outputs are the
    yardstick, no ground truth is needed.

    Args:
        checkpoint: full precision.
        data: what the network is shown; a few windows are enough.
        precision: of what is quantized.
        group_size: columns per scale, or "channel".
        device: where the network runs.
        batch: windows that are run at once.
        progress: called before each block with its index, the number of blocks, its path.
    """
    bits = parse_precision(precision)
    plan = PRESETS["uniform"].at(*bits)
    model = load_model(checkpoint.path, device, torch.float32, ("camera", "depth", "points"))
    walk = Walk(model, data.images, batch, len(data.images))
    targets = [teacher_targets(walk.predict(b)) for b in range(walk.batches(judged=True))]
    rows: list[Sensitivity] = []
    for number, site in enumerate(walk.sites):
        if progress:
            progress(number, len(walk.sites), site.path)
        weights = {name: f"{site.path}.{path}.weight" for name, path in LINEARS.items()}
        precisions: dict[Linear, Precision] = {
            name: plan.precision(weight, checkpoint.shape(weight), group_size)
            for name, weight in weights.items()
        }
        kinds: list[tuple[str, list[Linear]]] = [(name, [name]) for name in LINEARS]
        for kind, linears in [*kinds, (BLOCK, list(LINEARS))]:
            before = Snapshot(site.block)
            _round(site.block, {n: precisions[n] for n in linears if precisions[n].quantized})
            damage = _damage(walk, targets)
            before.restore()
            extra = sum(
                stored_bytes(shape, Precision(16)) - stored_bytes(shape, precisions[name])
                for name in linears
                for shape in (checkpoint.shape(weights[name]),)
            )
            rows.append(Sensitivity(site.path, site.part, site.index, kind, damage, extra))
        walk.advance()
    for site in walk.sites:
        weights = {name: f"{site.path}.{path}.weight" for name, path in LINEARS.items()}
        whole: dict[Linear, Precision] = {
            name: plan.precision(weight, checkpoint.shape(weight), group_size)
            for name, weight in weights.items()
        }
        _round(site.block, {name: p for name, p in whole.items() if p.quantized})
    everything = _damage(Walk(model, data.images, batch, len(data.images)), targets)
    return Sweep(precision, group_size, tuple(rows), everything, data.describe())


def auto_plan(
    sweep: Sweep,
    shapes: dict[str, tuple[int, ...]],
    *,
    megabytes: float | None = None,
    bits_per_weight: float | None = None,
) -> Plan:
    """Return a plan that fits a budget and protects what is most sensitive for its size.

    Linears are kept in 16 bits in the order of damage per byte until the budget is used up;
    the damage of several is taken to be the sum of each one's.

    Args:
        sweep: what each linear alone does.
        shapes: of the checkpoint's entries that will be written, by name.
        megabytes: budget of the file's weights, 10^6 bytes.
        bits_per_weight: budget over all weights of the file, instead of megabytes.

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
    candidates = [row for row in sweep.rows if row.kind != BLOCK and row.extra_bytes > 0]
    candidates.sort(key=lambda row: sweep.total(row.damage) / row.extra_bytes, reverse=True)
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
    """Draw the damage of each linear to each head, a panel per head, blocks across."""
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys((row.part, row.index) for row in sweep.rows))
    kinds = [*LINEARS, BLOCK]
    heads = [h for h in asdict(sweep.everything) if getattr(sweep.everything, h) > 0]
    figure = Figure(figsize=(max(6.0, 0.42 * len(blocks) + 2.4), 1.9 * len(heads) + 0.6))
    for axis, head in zip(np.atleast_1d(figure.subplots(len(heads), 1)), heads, strict=True):
        grid = np.full((len(kinds), len(blocks)), np.nan)
        for row in sweep.rows:
            place = kinds.index(row.kind), blocks.index((row.part, row.index))
            grid[place] = 100 * getattr(row.damage, head) / getattr(sweep.everything, head)
        image = axis.imshow(grid, aspect="auto", cmap="magma_r", vmin=0)
        axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
        axis.set_xticks(
            range(len(blocks)), [f"{part[0].upper()}{i}" for part, i in blocks], fontsize=8
        )
        axis.set_title(f"{head}: % of what quantizing everything does", fontsize=9, loc="left")
        figure.colorbar(image, ax=axis, pad=0.01)
    figure.supxlabel("blocks: E encoder, F frame, G global, C camera trunk", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")


def _round(block: nn.Module, precisions: dict[Linear, Precision]) -> None:
    for name, precision in precisions.items():
        linear = linear_of(block, name)  # type: ignore[arg-type]
        if not isinstance(linear, nn.Linear):
            continue
        parent, _, leaf = LINEARS[name].rpartition(".")
        packed = quantized_linear(linear.weight, linear.bias, precision)
        setattr(block.get_submodule(parent), leaf, packed)


def _damage(walk: Walk, targets: Sequence[TaskTargets]) -> Damage:
    per_batch = [_compare(walk.predict(b), wanted) for b, wanted in enumerate(targets)]
    camera, depth, points = np.mean(per_batch, axis=0)
    return Damage(float(camera), float(depth), float(points))


def _compare(said: Prediction, wanted: TaskTargets) -> tuple[float, float, float]:
    depth = 0.0
    if said.depth is not None and wanted.depth is not None:
        depth = float(((said.depth - wanted.depth).abs() / wanted.depth).mean())
    if wanted.pose_encodings is None:
        return 0.0, depth, 0.0
    encodings = said.pose_encodings[-1].float()
    camera = float((encodings - wanted.pose_encodings).abs().mean())
    if said.depth is None or wanted.points is None:
        return camera, 0.0, 0.0
    points: Tensor = said.points if said.points is not None else unprojected(said.depth, encodings)
    moved = torch.linalg.vector_norm(points - wanted.points, dim=-1).mean()
    distance = torch.linalg.vector_norm(wanted.points, dim=-1).mean()
    return camera, depth, float(moved / distance)
