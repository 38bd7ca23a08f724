"""From a full-precision checkpoint to one `.safetensors` file in integers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.model import (
    Checkpoint,
    ModelConfig,
    describe_linears,
    read_checkpoint,
    save_checkpoint,
)
from qvggt_core.model.load import check_complete, with_heads
from qvggt_core.model.published_names import UNUSED_PREFIXES, is_ray_part
from qvggt_core.quantize.calibrate import Calibrated, CalibrationOptions, calibrate
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.calibration_store import remove_blocks
from qvggt_core.quantize.plan import (
    DEFAULT_GROUP_SIZE,
    PRESETS,
    Plan,
    load_plan,
    parse_precision,
)
from qvggt_core.quantize.quantization_report import QuantizationReport
from qvggt_core.quantize.quantized_state import QuantizedState
from qvggt_core.quantize.recipes import RECIPES, Recipe
from qvggt_core.quantize.stored_size import stored_sizes
from qvggt_core.quantize.target import check_target

_PARTS: Mapping[str, Callable[[str], bool]] = {
    "camera": lambda name: name.startswith("camera_head."),
    "depth": lambda name: name.startswith("depth_head.") and not is_ray_part(name),
    "points": lambda name: name.startswith("point_head."),
    "rays": is_ray_part,
    "conditioning": lambda name: name.startswith("camera_encoder."),
}
"""Parts that can be left out of a file, and which entries they have, by name."""
_ALWAYS_WRITTEN = ("camera",)
_WRITTEN_IF_PRESENT = ("camera", "depth")
_CARRIED_OVER = ("note", "source", "licence_text")
"""Entries of the source's metadata that a quantized file keeps."""
UNCALIBRATED = "none"
"""Entry `calibration` of a checkpoint's metadata where nothing was calibrated."""


@dataclass(frozen=True)
class QuantizationSettings:
    """What a quantized checkpoint is to be.

    Attributes:
        recipe: a recipe or its name in `RECIPES`.
        plan: a plan, a preset's name, or a YAML file.
        precision: bits of all that the plan has in integers, e.g. "w4a4"; None takes the
            recipe's for presets and leaves other plans as they are.
        group_size: columns per scale, or "channel", for rules that name none.
        heads: of "camera", "depth", "points", "rays" and "conditioning" those to keep; the camera
            head always stays. None keeps "camera" and "depth" where they are.
        licence: of the base weights; None takes that of the source's metadata, or "unknown".
    """

    recipe: str | Recipe = "rtn"
    plan: Plan | str | Path = "uniform"
    precision: str | None = None
    group_size: int | str = DEFAULT_GROUP_SIZE
    heads: Collection[str] | None = None
    licence: str | None = None


def quantize_checkpoint(
    source: Path | str | Checkpoint,
    target: Path | str,
    settings: QuantizationSettings = QuantizationSettings(),
    *,
    data: CalibrationSet | None = None,
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 (frozen)
    workspace: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> QuantizationReport:
    """Write a checkpoint in integers that runs without the full-precision one.

    Without calibration, one full-precision tensor is in memory at a time, beside the result;
    with it, the network is. The file appears whole or not at all.

    Args:
        source: full-precision checkpoint of a VGGT; the track head's tensors are left out.
        target: `.safetensors` file to write; replaced if it exists.
        settings: recipe, plan, precision and heads.
        data: calibration set; needed by all recipes but rtn.
        options: of calibration.
        workspace: directory for finished blocks, from which an interrupted calibration
            continues.
        progress: called before each block, then before each tensor, with its index, their
            number, its name.

    Raises:
        CheckpointError: the source cannot be read.
        QuantizationError: the plan or recipe is unknown, a head is not in the source, the
            source is quantized already, calibration data is missing or of no use, or a weight
            cannot be quantized.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(Path(source))
    target = Path(target)
    check_target(target, checkpoint.files)
    recipe = _recipe(settings.recipe)
    plan = planned(settings.plan, recipe, settings.precision)
    names = _written_names(checkpoint, settings.heads)
    check_complete(checkpoint, _wanted_parts(checkpoint, settings.heads))
    calibrated = Calibrated()
    data = _needed_data(recipe, data)
    if data is not None:
        calibrated = calibrate(
            checkpoint,
            plan,
            settings.group_size,
            recipe,
            data,
            options=options,
            workspace=workspace,
            progress=progress,
        )
    entries = QuantizedState(checkpoint, plan, settings.group_size, calibrated)
    for index, name in enumerate(names):
        if progress:
            progress(index, len(names), name)
        entries.add(name)
    entries.add_new_entries()
    metadata = {
        **describe_linears(entries.linears),
        **_settings_metadata(settings, plan, recipe, data),
        **_base_metadata(checkpoint, settings.licence),
    }
    config = with_heads(checkpoint.config, _wanted_parts(checkpoint, settings.heads))
    _save(target, entries.state, config, metadata, workspace)
    if workspace is not None and recipe.calibrated:
        remove_blocks(workspace)
    return QuantizationReport(
        target=target,
        file_bytes=target.stat().st_size,
        plan=plan.name,
        recipe=recipe.name,
        calibration=data.describe() if data else None,
        parts=stored_sizes(entries.state),
        layers=tuple(entries.layers),
        dropped=len(checkpoint.names()) - len(names),
        unused_rules=plan.unused_rules(names),
        notes=tuple(calibrated.notes),
        resumed_blocks=calibrated.resumed_blocks,
        calibration_seconds=calibrated.seconds,
    )


def planned(plan: Plan | str | Path, recipe: Recipe, precision: str | None) -> Plan:
    """Return the plan of a run: a preset takes the recipe's precision if none is given.

    Raises:
        QuantizationError: the plan or the precision is not valid.
    """
    preset = not isinstance(plan, Plan) and str(plan) in PRESETS
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    wanted = precision or (recipe.precision if preset else None)
    return plan if wanted is None else plan.at(*parse_precision(wanted))


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise QuantizationError(f"there is no recipe {recipe!r}; known: {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _needed_data(recipe: Recipe, data: CalibrationSet | None) -> CalibrationSet | None:
    if not recipe.calibrated:
        return None
    if data is None:
        raise QuantizationError(
            f"the recipe {recipe.name} needs images to calibrate on: name a folder, a video, "
            "a recording or a synthetic world, or use rtn"
        )
    return data


def _written_names(checkpoint: Checkpoint, heads: Collection[str] | None) -> list[str]:
    """Return the names of the tensors that go into the file."""
    names = checkpoint.names()
    quantized = next((name for name in names if name.endswith(".qweight")), None)
    if quantized:
        raise QuantizationError(
            f"{checkpoint.path} is quantized already ({quantized}): start from full precision"
        )
    wanted = _wanted_parts(checkpoint, heads)
    dropped = [_PARTS[part] for part in _PARTS if part not in (*wanted, *_ALWAYS_WRITTEN)]
    return [
        name
        for name in names
        if not name.startswith(UNUSED_PREFIXES) and not any(is_of(name) for is_of in dropped)
    ]


def _wanted_parts(checkpoint: Checkpoint, heads: Collection[str] | None) -> tuple[str, ...]:
    """Return the parts that go into the file, see `QuantizationSettings`."""
    names = checkpoint.names()
    present = [part for part, is_of in _PARTS.items() if any(map(is_of, names))]
    if heads is None:
        return tuple(part for part in _WRITTEN_IF_PRESENT if part in present)
    unknown = sorted(set(heads) - set(_PARTS))
    if unknown:
        raise QuantizationError(f"there are no heads {unknown}; known: {', '.join(_PARTS)}")
    for part in heads:
        if part not in present:
            raise QuantizationError(
                f"{checkpoint.path} has no {part} head: leave it out, or take another checkpoint"
            )
    return tuple(heads)


def written_shapes(
    checkpoint: Checkpoint, heads: Collection[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the full-precision tensors that a quantized file will hold.

    Raises:
        QuantizationError: a head is not in the checkpoint, or it is quantized already.
    """
    return {name: checkpoint.shape(name) for name in _written_names(checkpoint, heads)}


def _settings_metadata(
    settings: QuantizationSettings, plan: Plan, recipe: Recipe, data: CalibrationSet | None
) -> dict[str, str]:
    return {
        "plan": plan.to_yaml(),
        "recipe": recipe.name,
        "recipe_settings": json.dumps(recipe.to_dict(), sort_keys=True),
        "group_size": str(settings.group_size),
        "calibration": data.to_metadata() if data else UNCALIBRATED,
    }


def _save(
    target: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    metadata: Mapping[str, str],
    workspace: Path | None,
) -> None:
    try:
        save_checkpoint(target, state, config, metadata)
    except (OSError, SafetensorError) as error:
        kept = f"; finished blocks are kept in {workspace}" if workspace else ""
        raise QuantizationError(f"cannot write {target}: {error}{kept}") from error


def _base_metadata(checkpoint: Checkpoint, licence: str | None) -> dict[str, str]:
    return {
        "base_model": checkpoint.path.name,
        "base_sha256": checkpoint.sha256(),
        "licence": licence or checkpoint.metadata.get("licence", "unknown"),
        **{key: value for key, value in checkpoint.metadata.items() if key in _CARRIED_OVER},
    }
