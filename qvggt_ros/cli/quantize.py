"""`qvggt quantize` and `qvggt sensitivity`: checkpoints in integers, and what tolerates them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from qvggt_core.errors import QuantizationError
from qvggt_core.util.files import write_atomically
from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.checkpoint import info
from qvggt_ros.cli.options import OutputDirectory

if TYPE_CHECKING:
    from qvggt_core.model import Checkpoint
    from qvggt_core.quantize import (
        CalibrationSet,
        Plan,
        QuantizationReport,
        QuantizationSettings,
        Recipe,
    )
    from qvggt_core.quantize.sensitivity import Sweep

FullPrecision = Annotated[Path, typer.Argument(help="Full-precision VGGT: .pt or .safetensors.")]
CheckpointFile = Annotated[
    Path, typer.Option("--output", "-o", help="File to write: .safetensors.")
]
_SENSITIVITY_FILES = ("sensitivity.json", "sensitivity.png", "plan.yaml")
_AUTO = "auto"
_CALIBRATED, _UNCALIBRATED = "qvggt+", "rtn"


@dataclass(frozen=True)
class ImageOptions:
    """Which images a network is calibrated on."""

    calibration: str | None = option(
        None,
        "What to calibrate on: a folder of images, a video, a recording, a rendered pool, or "
        "synthetic:WORLD.",
    )
    frames: int = option(4, "Calibration images in a window.")
    seed: int = option(0, "Of the choice of images.")
    width: int = option(0, "Width in pixels that the network sees; 0: as in its training.")
    image_topic: str | None = option(None, "Of a recording with cameras.")
    device: str = option("cpu", "Where calibration runs: cpu or cuda.")

    def read(self, checkpoint: Checkpoint, images: int, sampling: str) -> CalibrationSet:
        """Return so many images in windows.

        Raises:
            QuantizationError: the sampling is unknown, or there are too few images.
        """
        import torch

        from qvggt_core.model import load_model
        from qvggt_core.quantize.sampling import choose_windows
        from qvggt_ros.io.calibration_images import read_calibration_data

        if sampling not in ("random", "diverse"):
            raise QuantizationError(f"there is no sampling {sampling!r}: choose random or diverse")
        if self.calibration is None:
            raise QuantizationError("images are needed: name them with --calibration")
        with console.err.status("reading calibration images"):
            found = read_calibration_data(
                self.calibration,
                checkpoint,
                images=images,
                frames=self.frames,
                width=self.width,
                image_topic=self.image_topic,
            )
            model = None
            if sampling == "diverse":
                model = load_model(checkpoint.path, self.device, torch.float32)
            return choose_windows(found, images, sampling, self.seed, model)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BudgetOptions:
    """The size that a plan is solved for."""

    budget_mb: float | None = option(None, "Size of the file in MB that a plan is solved for.")
    budget_bits: float | None = option(None, "The same as bits per weight of the whole file.")

    @property
    def is_given(self) -> bool:
        """Whether there is a budget."""
        return self.budget_mb is not None or self.budget_bits is not None

    def solve(self, sweep: Sweep, shapes: dict[str, tuple[int, ...]]) -> Plan:
        """Return the plan of the least loss within the budget.

        Raises:
            QuantizationError: no plan is small enough.
        """
        from qvggt_core.quantize.sensitivity import auto_plan

        return auto_plan(sweep, shapes, megabytes=self.budget_mb, bits_per_weight=self.budget_bits)


@dataclass(frozen=True)
class FileOptions:
    """What the file in integers holds."""

    recipe: str | None = option(
        None,
        "rtn, smoothquant, gptq, awq, qvggt, qvggt-paper, quantvggt or qvggt+; if not given, "
        "qvggt+ with calibration images and rtn without.",
    )
    plan: str = option(
        "uniform", "What is in integers: uniform, qvggt-paper, auto, or a YAML file."
    )
    precision: str | None = option(
        None, "Bits of weights and activations: w4a16, w8a8, w4a8, w4a4, w3a16."
    )
    group_size: str = option("128", "Weights per scale: 128, 64, 32, or channel for a whole row.")
    images: int = option(128, "Calibration images.")
    sampling: str = option("random", "How they are chosen: random, or diverse (noise-filtered).")
    judged_images: int = option(32, "Images on which a task-aware search compares candidates.")
    task_candidates: int | None = option(None, "Alphas per linear that the heads judge; qvggt: 4.")
    report: Path | None = option(None, "Also write the report as JSON.")
    overwrite: bool = option(False, "Replace a file that is there already.")
    point_head: bool = option(False, "Keep the point head.")
    conditioning: bool = option(
        False, "Keep what takes known cameras (Depth Anything 3, condition_on)."
    )
    rays: bool = option(False, "Keep the ray branch (Depth Anything 3).")
    licence: str | None = option(None, "Of the weights, where the checkpoint does not name it.")

    def heads(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Return what is kept: cameras and depth where there are any, and what is wanted."""
        has_cameras = checkpoint.config.camera_head != "none"
        always = ("camera", "depth") if has_cameras else ("depth",)
        wanted = {
            "points": self.point_head,
            "conditioning": self.conditioning,
            "rays": self.rays,
        }
        return (*always, *(head for head, keep in wanted.items() if keep))


def quantize(
    checkpoint: FullPrecision,
    output: CheckpointFile,
    options: FileOptions,
    images: ImageOptions,
    budget: BudgetOptions,
) -> None:
    """Make a checkpoint in integers that runs without the full-precision one.

    An interrupted calibration goes on where it stopped when the same command is run again.
    """
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize import PRESETS, CalibrationOptions, quantize_checkpoint

    opened = read_checkpoint(checkpoint)
    _check_new(output, options.overwrite)
    data = None
    if images.calibration is not None:
        data = images.read(opened, options.images, options.sampling)
    settings = _settings(opened, options, images, budget, data)
    workspace = output.with_name(output.name + ".partial")
    try:
        with console.steps("quantizing") as steps:
            result = quantize_checkpoint(
                opened,
                output,
                settings,
                data=data,
                options=CalibrationOptions(
                    device=images.device, judged_images=options.judged_images
                ),
                workspace=workspace,
                progress=steps,
            )
    except KeyboardInterrupt:
        if workspace.exists():
            console.err.print("interrupted: run the same command again to go on from there")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    if options.report is not None:
        write_atomically(options.report, json.dumps(result.to_dict(), indent=1) + "\n")
    for rule in result.unused_rules if options.plan not in (*PRESETS, _AUTO) else ():
        console.note("[yellow]note:[/]", f"the plan's rule {rule!r} fits no weight")
    if data is not None and result.calibration is None:
        console.note("[yellow]note:[/]", "the recipe uses no calibration images")
    _print_report(result)
    info(output)


def _settings(
    opened: Checkpoint,
    options: FileOptions,
    images: ImageOptions,
    budget: BudgetOptions,
    data: CalibrationSet | None,
) -> QuantizationSettings:
    from qvggt_core.quantize import RECIPES, QuantizationSettings

    recipe = options.recipe or (_UNCALIBRATED if images.calibration is None else _CALIBRATED)
    heads, columns = options.heads(opened), _group_size(options.group_size)
    plan: str | Plan = options.plan
    precision = options.precision
    if options.plan == _AUTO:
        bits = precision or (RECIPES[recipe].precision if recipe in RECIPES else "w4a16")
        plan, precision = _solved_plan(opened, data, bits, columns, heads, budget, images), None
    elif budget.is_given:
        raise QuantizationError("a budget is solved by --plan auto: add it, or leave the budget")
    return QuantizationSettings(
        recipe=_changed_recipe(recipe, options.task_candidates),
        plan=plan,
        precision=precision,
        group_size=columns,
        heads=heads,
        licence=options.licence,
    )


def sensitivity(
    checkpoint: FullPrecision,
    output: OutputDirectory,
    images: ImageOptions,
    budget: BudgetOptions,
    precision: Annotated[str, typer.Option(help="What each part is brought to.")] = "w4a16",
    group_size: Annotated[str, typer.Option(help="128, 64, 32, or channel.")] = "128",
    compared: Annotated[
        int, typer.Option("--images", help="Images on which the heads are compared.")
    ] = 32,
) -> None:
    """Quantize each block and each of its linears alone, and show what happens to each head."""
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize.pipeline import written_shapes
    from qvggt_core.quantize.sensitivity import draw_heat_map
    from qvggt_core.util.output_files import directory_of, json_with

    directory_of(output, _SENSITIVITY_FILES, json_with("rows", "precision"))
    opened = read_checkpoint(checkpoint)
    data = images.read(opened, compared, "random")
    sweep = _swept(opened, data, precision, _group_size(group_size), images.device)
    *files, plan_file = (output / name for name in _SENSITIVITY_FILES)
    write_atomically(files[0], json.dumps(sweep.to_dict(), indent=1) + "\n")
    draw_heat_map(sweep, files[1])
    if budget.is_given:
        files.append(plan_file)
        write_atomically(files[-1], budget.solve(sweep, written_shapes(opened)).to_yaml())
    _print_sweep(sweep)
    console.wrote(*files)


def _changed_recipe(name: str, task_candidates: int | None) -> str | Recipe:
    from dataclasses import replace

    from qvggt_core.quantize import RECIPES

    if task_candidates is None or name not in RECIPES:
        return name
    scaling = RECIPES[name].scaling
    if scaling is None or scaling.method != "search":
        raise QuantizationError(f"the recipe {name} searches nothing that heads could judge")
    return replace(RECIPES[name], scaling=replace(scaling, task_candidates=task_candidates))


def _group_size(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _swept(
    checkpoint: Checkpoint, data: CalibrationSet, precision: str, columns: int | str, device: str
) -> Sweep:
    from qvggt_core.quantize.sensitivity import sweep_sensitivity

    with console.steps("measuring sensitivity") as steps:
        return sweep_sensitivity(
            checkpoint,
            data,
            precision=precision,
            group_size=columns,
            device=device,
            progress=steps,
        )


def _solved_plan(
    checkpoint: Checkpoint,
    data: CalibrationSet | None,
    precision: str,
    columns: int | str,
    heads: tuple[str, ...],
    budget: BudgetOptions,
    images: ImageOptions,
) -> Plan:
    from qvggt_core.quantize.pipeline import written_shapes

    if data is None:
        raise QuantizationError("plan auto measures sensitivity: name images with --calibration")
    few = data.part(range(min(8, len(data.images))))
    sweep = _swept(checkpoint, few, precision, columns, images.device)
    return budget.solve(sweep, written_shapes(checkpoint, heads))


def _print_report(result: QuantizationReport) -> None:
    if result.calibration is None:
        return
    facts = console.Table(show_header=False, box=None)
    for key in ("source", "selection", "images", "frames_per_window", "size", "ground_truth"):
        facts.add_row(f"[dim]{key}[/]", escape(str(result.calibration[key])))
    facts.add_row("[dim]time[/]", f"{result.calibration_seconds:.0f} s")
    if result.resumed_blocks:
        facts.add_row("[dim]taken over[/]", f"{result.resumed_blocks} blocks of a former run")
    errors = [layer.output_error for layer in result.layers if layer.output_error is not None]
    if errors:
        worst = max(result.layers, key=lambda layer: layer.output_error or 0.0)
        facts.add_row(
            "[dim]output error[/]",
            f"mean {sum(errors) / len(errors):.2%}, largest {worst.output_error:.2%} "
            f"at {worst.name}",
        )
    for note in result.notes:
        facts.add_row("[dim]decided[/]", escape(note))
    console.out.print(facts)


def _print_sweep(sweep: Sweep) -> None:
    table = console.Table(
        title=f"each alone at {sweep.precision}, worst first", title_justify="left"
    )
    for column in ("block", "kind", "camera", "depth", "points", "matches", "share of all"):
        table.add_column(column, justify="left" if column in ("block", "kind") else "right")
    rows = sorted(sweep.rows, key=lambda row: sweep.total(row.errors), reverse=True)
    for row in rows[:20]:
        errors = row.errors
        table.add_row(
            row.path.removeprefix("aggregator."),
            row.kind,
            f"{errors.camera:.5f}",
            f"{errors.depth:.3%}",
            f"{errors.points:.3%}",
            f"{errors.matches:.3%}",
            f"{sweep.total(errors):.1%}",
        )
    whole = sweep.everything
    table.add_section()
    shares = (f"{share:.3%}" for share in (whole.depth, whole.points, whole.matches))
    table.add_row("everything", "", f"{whole.camera:.5f}", *shares, "100.0%")
    console.out.print(table)


def _check_new(output: Path, overwrite: bool) -> None:
    """Refuse to replace a file: it may be hours of calibration, or full-precision weights."""
    if output.is_file() and not overwrite:
        raise QuantizationError(f"{output} is there already: name another, or add --overwrite")


@dataclass(frozen=True)
class ImportOptions:
    """Options of `qvggt import`."""

    base: Path | None = option(
        None, "Full-precision VGGT, for a file that holds quantized blocks alone."
    )
    licence: str | None = option(None, "Of the base weights.")
    overwrite: bool = option(False, "Replace a file that is there already.", "--overwrite")


def import_released(
    file: Annotated[Path, typer.Argument(help="QVGGT's released model-v2.pt.")],
    output: CheckpointFile,
    options: ImportOptions,
) -> None:
    """Convert a checkpoint that QVGGT's authors released."""
    from qvggt_core.quantize.awq_import import import_released as convert

    _check_new(output, options.overwrite)
    count = convert(file, output, options.base, options.licence)
    console.out.print(f"{count} linears carried over in 4 bits")
    info(output)
