"""From a full-precision checkpoint to one `.safetensors` file in integers, tensor by tensor."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import PackedLinear
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint, describe_linears, read_checkpoint, save_checkpoint
from qvggt_core.model.load import with_heads
from qvggt_core.model.published_names import UNUSED_PREFIXES, is_ray_part
from qvggt_core.quantize.calibrate import (
    Calibrated,
    CalibrationOptions,
    LinearReport,
    calibrate,
)
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.plan import (
    DEFAULT_GROUP_SIZE,
    PRESETS,
    Plan,
    Precision,
    load_plan,
    parse_precision,
)
from qvggt_core.quantize.recipes import RECIPES, Recipe
from qvggt_core.quantize.rounding import quantized_linear, represented_weight
from qvggt_core.quantize.stored_size import PartSize, stored_sizes

_PARTS: Mapping[str, Callable[[str], bool]] = {
    "camera": lambda name: name.startswith("camera_head."),
    "depth": lambda name: name.startswith("depth_head.") and not is_ray_part(name),
    "points": lambda name: name.startswith("point_head."),
    "rays": is_ray_part,
    "conditioning": lambda name: name.startswith("camera_encoder."),
}
"""Parts that can be left out of a file, and which entries they have, by name."""
_ALWAYS_KEPT = ("camera",)
_KEPT_IF_PRESENT = ("camera", "depth")
_DTYPES = {16: torch.bfloat16, 32: torch.float32}
UNCALIBRATED = "none"
"""What a checkpoint's metadata says of its calibration when there was none."""


@dataclass(frozen=True)
class LayerReport:
    """One weight in integers.

    Attributes:
        name: of the weight in the full-precision checkpoint.
        shape: (N, K).
        precision: bits, columns per scale, and activations.
        bits_per_weight: everything that the packed layer adds included.
        relative_error: |W - W_hat| / |W|, Frobenius norms, rotation and factors applied; 0 for
            an all-zero weight.
        output_error: root of the share of the output's energy that rounding costs on the
            calibration images; None where nothing was calibrated.
        alpha: exponent of the factors that a search chose, or None.
    """

    name: str
    shape: tuple[int, int]
    precision: Precision
    bits_per_weight: float
    relative_error: float
    output_error: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize_checkpoint` did.

    Attributes:
        target: the file that was written.
        file_bytes: its size.
        plan: name of the plan.
        recipe: name of the recipe.
        calibration: what was calibrated on, see `CalibrationSet.describe`; None for nothing.
        parts: weights and bytes of each part of the network.
        layers: the weights in integers, in the checkpoint's order.
        dropped: tensors of heads that were left out.
        unused_rules: globs of the plan that decided over no tensor.
        notes: what calibration decided on the way, for people.
        resumed_blocks: blocks that were taken over from an interrupted run.
        calibration_seconds: time that calibration took in this run.
    """

    target: Path
    file_bytes: int
    plan: str
    recipe: str
    calibration: Mapping[str, Any] | None
    parts: Mapping[str, PartSize]
    layers: tuple[LayerReport, ...]
    dropped: int
    unused_rules: tuple[str, ...]
    notes: tuple[str, ...] = ()
    resumed_blocks: int = 0
    calibration_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        data = asdict(self)
        data["target"] = str(self.target)
        data["parts"] = {part: size._asdict() for part, size in self.parts.items()}
        for layer in data["layers"]:
            layer["precision"] = Precision(*layer["precision"])._asdict()
        return data


def quantize_checkpoint(
    source: Path | str | Checkpoint,
    target: Path | str,
    *,
    recipe: str | Recipe = "rtn",
    plan: Plan | str | Path = "uniform",
    precision: str | None = None,
    group_size: int | str = DEFAULT_GROUP_SIZE,
    heads: Collection[str] | None = None,
    data: CalibrationSet | None = None,
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 (frozen)
    workspace: Path | None = None,
    licence: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> QuantizationReport:
    """Write a checkpoint in integers that runs without the full-precision one.

    Without calibration, one full-precision tensor is in memory at a time, beside the result;
    with it, the network is, mapped from its file. The file appears whole or not at all.

    Args:
        source: full-precision checkpoint of a VGGT; the track head's tensors are left out.
        target: `.safetensors` file to write; replaced if it is there.
        recipe: a recipe or its name in `RECIPES`.
        plan: a plan, a preset's name, or a YAML file.
        precision: bits of all that the plan has in integers, e.g. "w4a4"; None takes the
            recipe's for presets and leaves other plans as they are.
        group_size: columns per scale, or "channel", for rules that name none.
        heads: of "camera", "depth", "points", "rays" and "conditioning" those to keep; the camera
            head always stays. None keeps "camera" and "depth" where they are.
        data: calibration set; needed by all recipes but rtn.
        options: how calibration runs.
        workspace: directory for finished blocks, so that an interrupted calibration goes on.
        licence: of the base weights; None takes what the source's metadata says, or "unknown".
        progress: called before each block, then before each tensor, with its index, how many
            there are, its name.

    Raises:
        CheckpointError: the source cannot be read.
        QuantizationError: the plan or recipe is unknown, a head is not in the source, the
            source is quantized already, calibration data is missing or of no use, or a weight
            cannot be quantized.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(Path(source))
    recipe = _recipe(recipe)
    plan = planned(plan, recipe, precision)
    heads = _wanted_parts(checkpoint, heads)
    names = _kept(checkpoint, heads)
    calibrated = Calibrated()
    if recipe.calibrated:
        if data is None:
            raise QuantizationError(
                f"the recipe {recipe.name} needs images to calibrate on: name a folder, a video, "
                "a recording or a synthetic world, or use rtn"
            )
        calibrated = calibrate(
            checkpoint,
            plan,
            group_size,
            recipe,
            data,
            options=options,
            workspace=workspace,
            progress=progress,
        )
    writer = _Writer(checkpoint, plan, group_size, calibrated)
    for index, name in enumerate(names):
        if progress:
            progress(index, len(names), name)
        writer.add(name)
    writer.add_new_entries()
    config = with_heads(checkpoint.config, heads)
    metadata = {
        **describe_linears(writer.linears),
        "plan": plan.to_yaml(),
        "recipe": recipe.name,
        "recipe_settings": json.dumps(recipe.to_dict(), sort_keys=True),
        "group_size": str(group_size),
        "calibration": data.to_metadata() if data and recipe.calibrated else UNCALIBRATED,
        "base_model": checkpoint.path.name,
        "base_sha256": checkpoint.sha256(),
        "licence": licence or checkpoint.metadata.get("licence", "unknown"),
        **{key: value for key, value in checkpoint.metadata.items() if key == "note"},
    }
    target = Path(target)
    save_checkpoint(target, writer.state, config, metadata)
    return QuantizationReport(
        target=target,
        file_bytes=target.stat().st_size,
        plan=plan.name,
        recipe=recipe.name,
        calibration=data.describe() if data and recipe.calibrated else None,
        parts=stored_sizes(writer.state),
        layers=tuple(writer.layers),
        dropped=len(checkpoint.names()) - len(names),
        unused_rules=plan.unused_rules(names),
        notes=tuple(calibrated.notes),
        resumed_blocks=calibrated.resumed_blocks,
        calibration_seconds=calibrated.seconds,
    )


def planned(plan: Plan | str | Path, recipe: Recipe, precision: str | None) -> Plan:
    """Return the plan that a run follows: a preset takes the recipe's precision if none is asked.

    Raises:
        QuantizationError: the plan or the precision is refused.
    """
    preset = not isinstance(plan, Plan) and str(plan) in PRESETS
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    wanted = precision or (recipe.precision if preset else None)
    return plan if wanted is None else plan.at(*parse_precision(wanted))


class _Writer:
    """Gathers the entries of the file, each in the precision that the plan has for it."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, group_size: int | str, calibrated: Calibrated
    ) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._group_size = group_size
        self._calibrated = calibrated
        self._reports: dict[str, LinearReport] = {r.name: r for r in calibrated.reports}
        self.state: dict[str, Tensor] = {}
        self.linears: dict[str, PackedLinear] = {}
        self.layers: list[LayerReport] = []

    def add(self, name: str) -> None:
        """Add what a tensor of the full-precision checkpoint has become."""
        shape = self._checkpoint.shape(name)
        precision = self._plan.precision(name, shape, self._group_size)
        if precision.quantized:
            self._add_linear(name, precision)
            return
        tensor = self._calibrated.state.get(name)
        if tensor is None:
            tensor = self._checkpoint.tensor(name)
        self.state[name] = _off_the_heap(_rounded(name, tensor, _DTYPES[precision.bits]))

    def add_new_entries(self) -> None:
        """Add what calibration has brought that belongs to no tensor and no linear."""
        known = {*self._checkpoint.names(), *self.state}
        for name, tensor in self._calibrated.state.items():
            if name not in known:
                self.state[name] = tensor

    def _add_linear(self, name: str, precision: Precision) -> None:
        path = name.removesuffix(".weight")
        linear = self._calibrated.linears.get(path)
        weight = self._checkpoint.tensor(name)
        if linear is None:
            try:
                linear = quantized_linear(weight, None, precision)
            except QuantizationError as error:
                raise QuantizationError(f"{name}: {error}") from None
            wrong, norm = _difference(linear, weight)
            report = LinearReport(name, None, wrong / norm if norm else 0.0, 0.0)
        else:
            report = self._reports[name]
        stored = {key: tensor for key, tensor in linear.state_dict().items() if key != "bias"}
        for key, tensor in stored.items():
            self.state[f"{path}.{key}"] = _off_the_heap(tensor)
        # What was packed lives in the file's pages from here on.
        self.linears[path] = linear.to("meta")
        calibrated = name in self._reports
        self.layers.append(
            LayerReport(
                name=name,
                shape=(weight.shape[0], weight.shape[1]),
                precision=precision,
                bits_per_weight=8 * sum(t.nbytes for t in stored.values()) / weight.numel(),
                relative_error=report.weight_error,
                output_error=report.output_error if calibrated else None,
                alpha=report.alpha,
            )
        )


def _difference(linear: PackedLinear, weight: Tensor) -> tuple[float, float]:
    """Return the norms of a packed weight's error and of the weight."""
    wrong = represented_weight(linear).sub_(weight.float())
    return float(wrong.norm()), float(weight.float().norm())


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise QuantizationError(f"there is no recipe {recipe!r}; known: {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _kept(checkpoint: Checkpoint, heads: Collection[str]) -> list[str]:
    """Return the names of the tensors that go into the file."""
    names = checkpoint.names()
    quantized = next((name for name in names if name.endswith(".qweight")), None)
    if quantized:
        raise QuantizationError(
            f"{checkpoint.path} is quantized already ({quantized}): start from full precision"
        )
    dropped = [_PARTS[part] for part in _PARTS if part not in (*heads, *_ALWAYS_KEPT)]
    return [
        name
        for name in names
        if not name.startswith(UNUSED_PREFIXES) and not any(is_of(name) for is_of in dropped)
    ]


def _wanted_parts(checkpoint: Checkpoint, heads: Collection[str] | None) -> tuple[str, ...]:
    """Return the parts that go into the file; see `quantize_checkpoint`."""
    names = checkpoint.names()
    present = [part for part, is_of in _PARTS.items() if any(map(is_of, names))]
    if heads is None:
        return tuple(part for part in _KEPT_IF_PRESENT if part in present)
    unknown = sorted(set(heads) - set(_PARTS))
    if unknown:
        raise QuantizationError(f"there are no heads {unknown}; known: {', '.join(_PARTS)}")
    for part in heads:
        if part not in present:
            raise QuantizationError(
                f"{checkpoint.path} has no {part} head: leave it out, or take another checkpoint"
            )
    return tuple(heads)


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
