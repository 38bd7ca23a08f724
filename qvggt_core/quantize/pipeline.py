"""From a full-precision checkpoint to one 4-bit `.safetensors` file, tensor by tensor."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import LAYOUT, PackingError, dequantize, group_size_of, pack
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint, read_checkpoint, save_checkpoint
from qvggt_core.quantize.plan import DEFAULT_GROUP_SIZE, Plan, load_plan
from qvggt_core.quantize.recipes import RECIPES, Recipe, Statistics
from qvggt_core.quantize.size import PartSize, planned_sizes

_HEADS = {"camera": "camera_head.", "depth": "depth_head.", "points": "point_head."}
_ALWAYS_KEPT = ("camera",)
_TRACK_HEAD = "track_head."
_ROWS = 256
"""Rows of a weight that are worked on at once, so that temporaries stay small beside it."""
_DTYPES = {16: torch.bfloat16, 32: torch.float32}


@dataclass(frozen=True)
class LayerReport:
    """One 4-bit weight.

    Attributes:
        name: of the weight in the full-precision checkpoint.
        shape: (N, K).
        group_size: columns per scale.
        bits_per_weight: scales included.
        relative_error: |W - W_hat| / |W|, Frobenius norms; 0 for an all-zero weight.
    """

    name: str
    shape: tuple[int, int]
    group_size: int
    bits_per_weight: float
    relative_error: float


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize_checkpoint` did.

    Attributes:
        target: the file that was written.
        file_bytes: its size.
        plan: name of the plan.
        recipe: name of the recipe.
        parts: weights and bytes of each part of the network.
        layers: the 4-bit weights, in the checkpoint's order.
        dropped: tensors of heads that were left out.
        unused_rules: globs of the plan that decided over no tensor.
    """

    target: Path
    file_bytes: int
    plan: str
    recipe: str
    parts: Mapping[str, PartSize]
    layers: tuple[LayerReport, ...]
    dropped: int
    unused_rules: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        data = asdict(self)
        data["target"] = str(self.target)
        data["parts"] = {part: size._asdict() for part, size in self.parts.items()}
        return data


def quantize_checkpoint(
    source: Path | str | Checkpoint,
    target: Path | str,
    *,
    recipe: str | Recipe = "rtn",
    plan: Plan | str | Path = "uniform",
    group_size: int = DEFAULT_GROUP_SIZE,
    heads: Collection[str] = ("camera", "depth"),
    statistics: Mapping[str, Statistics] | None = None,
    calibration: str = "none",
    licence: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> QuantizationReport:
    """Write a 4-bit checkpoint that runs without the full-precision one.

    One full-precision tensor is in memory at a time, beside the result. The file appears
    whole or not at all.

    Args:
        source: full-precision checkpoint of a VGGT; the track head's tensors are left out.
        target: `.safetensors` file to write; replaced if it is there.
        recipe: name in `RECIPES`, or a function like those.
        plan: a plan, a preset's name, or a YAML file.
        group_size: columns per scale, for rules that name none.
        heads: of "camera", "depth", "points" those to keep; the camera head always stays.
        statistics: what calibration saw at each linear's input, by the weight's name.
        calibration: hash of the calibration set, for the metadata.
        licence: of the base weights; None takes what the source's metadata says, or "unknown".
        progress: called before each tensor with its index, the number of tensors, its name.

    Raises:
        CheckpointError: the source cannot be read.
        QuantizationError: the plan or recipe is unknown, a head is not in the source, the
            source is quantized already, or a weight cannot be quantized.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(Path(source))
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    choose, recipe_name = _recipe(recipe)
    names = _kept(checkpoint, heads)
    state: dict[str, Tensor] = {}
    layers = []
    for index, name in enumerate(names):
        if progress:
            progress(index, len(names), name)
        weight = checkpoint.tensor(name)
        precision = plan.precision(name, weight.shape, group_size)
        if precision.bits == 4:
            q, scales = choose(name, weight, precision.group_size, (statistics or {}).get(name))
            qweight = _packed(name, q, scales, precision.group_size)
            path = name.removesuffix(".weight")
            state[f"{path}.qweight"] = _off_the_heap(qweight)
            state[f"{path}.scales"] = _off_the_heap(scales)
            layers.append(_layer_report(name, weight, qweight, scales))
        else:
            state[name] = _off_the_heap(_rounded(name, weight, _DTYPES[precision.bits]))
    config = replace(
        checkpoint.config,
        depth_head=checkpoint.config.depth_head and "depth" in heads,
        point_head=checkpoint.config.point_head and "points" in heads,
    )
    metadata = {
        "layout": LAYOUT,
        "plan": plan.to_yaml(),
        "recipe": recipe_name,
        "group_size": str(group_size),
        "calibration": calibration,
        "base_model": checkpoint.path.name,
        "base_sha256": checkpoint.sha256(),
        "licence": licence or checkpoint.metadata.get("licence", "unknown"),
        **{key: value for key, value in checkpoint.metadata.items() if key == "note"},
    }
    target = Path(target)
    save_checkpoint(target, state, config, metadata)
    shapes = {name: checkpoint.shape(name) for name in names}
    return QuantizationReport(
        target=target,
        file_bytes=target.stat().st_size,
        plan=plan.name,
        recipe=recipe_name,
        parts=planned_sizes(plan, shapes, group_size),
        layers=tuple(layers),
        dropped=len(checkpoint.names()) - len(names),
        unused_rules=plan.unused_rules(names),
    )


def _recipe(recipe: str | Recipe) -> tuple[Recipe, str]:
    if not isinstance(recipe, str):
        return recipe, getattr(recipe, "__qualname__", "custom")
    if recipe not in RECIPES:
        raise QuantizationError(f"there is no recipe {recipe!r}; known: {', '.join(RECIPES)}")
    return RECIPES[recipe], recipe


def _kept(checkpoint: Checkpoint, heads: Collection[str]) -> list[str]:
    """Return the names of the tensors that go into the file."""
    names = checkpoint.names()
    quantized = next((name for name in names if name.endswith(".qweight")), None)
    if quantized:
        raise QuantizationError(
            f"{checkpoint.path} is quantized already ({quantized}): start from full precision"
        )
    unknown = sorted(set(heads) - set(_HEADS))
    if unknown:
        raise QuantizationError(f"there are no heads {unknown}; known: {', '.join(_HEADS)}")
    for head in heads:
        if not any(name.startswith(_HEADS[head]) for name in names):
            raise QuantizationError(
                f"{checkpoint.path} has no {head} head: leave it out, or take another checkpoint"
            )
    dropped = tuple(
        prefix for head, prefix in _HEADS.items() if head not in (*heads, *_ALWAYS_KEPT)
    )
    return [name for name in names if not name.startswith((*dropped, _TRACK_HEAD))]


def _packed(name: str, q: Tensor, scales: Tensor, group_size: int) -> Tensor:
    try:
        qweight = torch.cat([pack(rows, group_size) for rows in q.split(_ROWS)])
        group_size_of(qweight, scales)
    except PackingError as error:
        raise QuantizationError(f"{name}: the recipe's result is refused: {error}") from error
    return qweight


def _off_the_heap(tensor: Tensor) -> Tensor:
    """Return a copy in pages of its own.

    Results that are kept between large temporaries that are freed fragment the C library's
    heap: quantizing VGGT-1B would take over 4 GB where 0.7 GB are alive.
    """
    pages = mmap.mmap(-1, tensor.nbytes)
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        raise QuantizationError(
            f"{name} holds NaN, infinity or numbers too large for {dtype}: "
            "the checkpoint is damaged or its training diverged"
        )
    return rounded


def _layer_report(name: str, weight: Tensor, qweight: Tensor, scales: Tensor) -> LayerReport:
    rows, columns = weight.shape
    error = norm = 0.0
    parts = (whole.split(_ROWS) for whole in (weight, qweight, scales))
    for exact, words, steps in zip(*parts, strict=True):
        exact = exact.float()
        error += float((dequantize(words, steps, torch.float32) - exact).square().sum())
        norm += float(exact.square().sum())
    return LayerReport(
        name=name,
        shape=(rows, columns),
        group_size=columns // scales.shape[1],
        bits_per_weight=8 * (qweight.nbytes + scales.nbytes) / weight.numel(),
        relative_error=(error / norm) ** 0.5 if norm else 0.0,
    )
