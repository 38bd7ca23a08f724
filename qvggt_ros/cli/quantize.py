"""`qvggt quantize` and `qvggt sensitivity`: checkpoints in integers, and what tolerates them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_core.errors import QuantizationError
from qvggt_ros.cli import console
from qvggt_ros.cli.checkpoint import info

if TYPE_CHECKING:
    from qvggt_core.model import Checkpoint
    from qvggt_core.quantize import CalibrationSet, Plan, QuantizationReport, Recipe
    from qvggt_core.quantize.sensitivity import Sweep

_CALIBRATION_HELP = (
    "What to calibrate on: a folder of images, a video, a recording, a rendered pool, or "
    "synthetic:WORLD."
)
_AUTO = "auto"
_CALIBRATED, _UNCALIBRATED = "qvggt+", "rtn"


def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision VGGT: .pt or .safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .safetensors.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="rtn, smoothquant, gptq, awq, qvggt, qvggt-paper, quantvggt or qvggt+; if not "
            "given, qvggt+ with calibration images and rtn without."
        ),
    ] = None,
    plan: Annotated[
        str,
        typer.Option(help="What is in integers: uniform, qvggt-paper, auto, or a YAML file."),
    ] = "uniform",
    precision: Annotated[
        str | None,
        typer.Option(help="Bits of weights and activations: w4a16, w8a8, w4a8, w4a4, w3a16."),
    ] = None,
    group_size: Annotated[
        str, typer.Option(help="Weights per scale: 128, 64, 32, or channel for a whole row.")
    ] = "128",
    calibration: Annotated[str | None, typer.Option(help=_CALIBRATION_HELP)] = None,
    images: Annotated[int, typer.Option(help="Calibration images.")] = 128,
    frames: Annotated[int, typer.Option(help="Calibration images in a window.")] = 4,
    sampling: Annotated[
        str, typer.Option(help="How they are chosen: random, or diverse (noise-filtered).")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    width: Annotated[
        int, typer.Option(help="Width in pixels that the network sees; 0: as in its training.")
    ] = 0,
    image_topic: Annotated[str | None, typer.Option(help="Of a recording with cameras.")] = None,
    judged_images: Annotated[
        int, typer.Option(help="Images on which a task-aware search compares candidates.")
    ] = 32,
    task_candidates: Annotated[
        int | None, typer.Option(help="Alphas per linear that the heads judge; qvggt: 4.")
    ] = None,
    budget_mb: Annotated[float | None, typer.Option(help="For plan auto: size in MB.")] = None,
    budget_bits: Annotated[
        float | None, typer.Option(help="For plan auto: bits per weight of the whole file.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where calibration runs: cpu or cuda.")] = "cpu",
    report: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    point_head: Annotated[bool, typer.Option(help="Keep the point head.")] = False,
    conditioning: Annotated[
        bool, typer.Option(help="Keep what takes known cameras (Depth Anything 3, condition_on).")
    ] = False,
    rays: Annotated[bool, typer.Option(help="Keep the ray branch (Depth Anything 3).")] = False,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, where the checkpoint does not say it.")
    ] = None,
) -> None:
    """Make a checkpoint in integers that runs without the full-precision one.

    An interrupted calibration goes on where it stopped when the same command is run again.
    """
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize import (
        PRESETS,
        RECIPES,
        CalibrationOptions,
        QuantizationSettings,
        quantize_checkpoint,
    )

    opened = read_checkpoint(checkpoint)
    columns = _group_size(group_size)
    recipe = recipe or (_UNCALIBRATED if calibration is None else _CALIBRATED)
    data = None
    if calibration is not None:
        data = _calibration_set(
            calibration, opened, images, frames, sampling, seed, width, image_topic, device
        )
    heads = _kept_heads(opened, points=point_head, conditioning=conditioning, rays=rays)
    chosen: str | Plan = plan
    if plan == _AUTO:
        bits = precision or (RECIPES[recipe].precision if recipe in RECIPES else "w4a16")
        chosen = _solved_plan(opened, data, bits, columns, heads, budget_mb, budget_bits, device)
    elif budget_mb is not None or budget_bits is not None:
        raise QuantizationError("a budget is solved by --plan auto: add it, or leave the budget")
    workspace = output.with_name(output.name + ".partial")
    try:
        with console.steps("quantizing") as steps:
            result = quantize_checkpoint(
                opened,
                output,
                QuantizationSettings(
                    recipe=_changed_recipe(recipe, task_candidates),
                    plan=chosen,
                    precision=None if plan == _AUTO else precision,
                    group_size=columns,
                    heads=heads,
                    licence=licence,
                ),
                data=data,
                options=CalibrationOptions(device=device, judged_images=judged_images),
                workspace=workspace,
                progress=steps,
            )
    except KeyboardInterrupt:
        if workspace.exists():
            console.err.print("interrupted: run the same command again to go on from there")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    for rule in result.unused_rules if plan not in (*PRESETS, _AUTO) else ():
        console.err.print(f"[yellow]note:[/] the plan's rule {rule!r} fits no weight")
    if data is not None and result.calibration is None:
        console.err.print(f"[yellow]note:[/] the recipe {recipe} uses no calibration images")
    _print_report(result)
    info(output)


def sensitivity(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision VGGT: .pt or .safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the results.")],
    calibration: Annotated[str, typer.Option(help=_CALIBRATION_HELP)],
    precision: Annotated[str, typer.Option(help="What each part is brought to.")] = "w4a16",
    group_size: Annotated[str, typer.Option(help="128, 64, 32, or channel.")] = "128",
    images: Annotated[int, typer.Option(help="Images on which the heads are compared.")] = 32,
    frames: Annotated[int, typer.Option(help="Images in a window.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = 0,
    width: Annotated[int, typer.Option(help="Width in pixels; 0: as in training.")] = 0,
    image_topic: Annotated[str | None, typer.Option(help="Of a recording with cameras.")] = None,
    budget_mb: Annotated[
        float | None, typer.Option(help="Also solve a plan within so many MB.")
    ] = None,
    budget_bits: Annotated[
        float | None, typer.Option(help="Or within so many bits per weight.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Quantize each block and each of its linears alone, and show what happens to each head."""
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize.pipeline import written_shapes
    from qvggt_core.quantize.sensitivity import auto_plan, draw_heat_map

    opened = read_checkpoint(checkpoint)
    columns = _group_size(group_size)
    data = _calibration_set(
        calibration, opened, images, frames, "random", seed, width, image_topic, device
    )
    sweep = _swept(opened, data, precision, columns, device)
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "sensitivity.json", output / "sensitivity.png"]
    files[0].write_text(json.dumps(sweep.to_dict(), indent=1) + "\n", encoding="utf-8")
    draw_heat_map(sweep, files[1])
    if budget_mb is not None or budget_bits is not None:
        shapes = written_shapes(opened)
        plan = auto_plan(sweep, shapes, megabytes=budget_mb, bits_per_weight=budget_bits)
        files.append(output / "plan.yaml")
        files[-1].write_text(plan.to_yaml(), encoding="utf-8")
    _print_sweep(sweep)
    for file in files:
        console.out.print(f"wrote {file}", soft_wrap=True, highlight=False)


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


def _calibration_set(
    source: str,
    checkpoint: Checkpoint,
    images: int,
    frames: int,
    sampling: str,
    seed: int,
    width: int,
    image_topic: str | None,
    device: str,
) -> CalibrationSet:
    import torch

    from qvggt_core.model import load_model
    from qvggt_core.quantize.sampling import choose_windows
    from qvggt_ros.io.calibration_images import read_calibration_data

    with console.err.status("reading calibration images"):
        found = read_calibration_data(
            source, checkpoint, images=images, frames=frames, width=width, image_topic=image_topic
        )
        if sampling not in ("random", "diverse"):
            raise QuantizationError(f"there is no sampling {sampling!r}: choose random or diverse")
        model = None
        if sampling == "diverse":
            model = load_model(checkpoint.path, device, torch.float32)
        return choose_windows(found, images, sampling, seed, model)  # type: ignore[arg-type]


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


def _kept_heads(checkpoint: Checkpoint, **wanted: bool) -> tuple[str, ...]:
    """Return the heads that a file keeps: cameras and depth if it has them, and what is wanted."""
    has_cameras = checkpoint.config.camera_head != "none"
    always = ("camera", "depth") if has_cameras else ("depth",)
    return (*always, *(head for head, keep in wanted.items() if keep))


def _solved_plan(
    checkpoint: Checkpoint,
    data: CalibrationSet | None,
    precision: str,
    columns: int | str,
    heads: tuple[str, ...],
    budget_mb: float | None,
    budget_bits: float | None,
    device: str,
) -> Plan:
    from qvggt_core.quantize.pipeline import written_shapes
    from qvggt_core.quantize.sensitivity import auto_plan

    if data is None:
        raise QuantizationError("plan auto measures sensitivity: name images with --calibration")
    few = data.part(range(min(8, len(data.images))))
    sweep = _swept(checkpoint, few, precision, columns, device)
    return auto_plan(
        sweep,
        written_shapes(checkpoint, heads),
        megabytes=budget_mb,
        bits_per_weight=budget_bits,
    )


def _print_report(result: QuantizationReport) -> None:
    if result.calibration is None:
        return
    facts = Table(show_header=False, box=None)
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
    table = Table(title=f"each alone at {sweep.precision}, worst first", title_justify="left")
    for column in ("block", "kind", "camera", "depth", "points", "share of all"):
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
            f"{sweep.total(errors):.1%}",
        )
    whole = sweep.everything
    table.add_section()
    cells = (f"{whole.camera:.5f}", f"{whole.depth:.3%}", f"{whole.points:.3%}", "100.0%")
    table.add_row("everything", "", *cells)
    console.out.print(table)


def import_released(
    file: Annotated[Path, typer.Argument(help="QVGGT's released model-v2.pt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .safetensors.")],
    base: Annotated[
        Path | None,
        typer.Option(help="Full-precision VGGT, for a file that holds quantized blocks alone."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the base weights.")] = None,
) -> None:
    """Convert a checkpoint that QVGGT's authors released."""
    from qvggt_core.quantize.awq_import import import_released as convert

    count = convert(file, output, base, licence)
    console.out.print(f"{count} linears carried over in 4 bits")
    info(output)
