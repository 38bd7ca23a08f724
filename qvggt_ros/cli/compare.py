"""`qvggt compare`: all recipes on one protocol, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import Device, OutputDirectory

_ALL = ["recipes", "harder", "components", "calibration"]


@dataclass(frozen=True)
class StudyOptions:
    """How much is compared."""

    windows: int = option(256, "Held-out windows.")
    frames: int = option(4, "Frames in a window.")
    images: int = option(128, "Calibration images.")
    seeds: int = option(3, "Calibration sets per recipe.")
    judged_images: int = option(32, "Images on which a task-aware search compares candidates.")


def compare(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision network with a depth head.")],
    output: OutputDirectory,
    options: StudyOptions,
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="recipes, harder, components, calibration, transfer, or a YAML file; may be "
            "repeated. The first four if not given."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training configuration whose worlds are used; small.yaml if not given."),
    ] = None,
    device: Device = "cpu",
    footprint: Annotated[bool, typer.Option(help="Measure memory and time.")] = True,
) -> None:
    """Compare recipes on held-out synthetic windows: Markdown, HTML with bars, raw JSON.

    An interrupted comparison goes on where it stopped.
    """
    from qvggt_core.measure.provenance import provenance
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize.calibrate import CalibrationOptions
    from qvggt_core.quantize.calibration_sources import (
        calibration_windows,
        evaluation_set,
        plan_windows,
        window_worlds,
    )
    from qvggt_core.quantize.comparison import SWEEP_WINDOWS, Protocol, run_studies
    from qvggt_core.quantize.study import load_study
    from qvggt_core.report.recipe_comparison import FILES, write_tables
    from qvggt_core.util.output_files import directory_of, json_with

    directory_of(output, FILES, json_with("network", "studies"))
    studies = [load_study(name) for name in study or _ALL]
    opened = read_checkpoint(checkpoint)
    plan_worlds = {row.plan_world for each in studies for row in each.rows if row.plan_world}
    with console.progress("rendering", "clips") as progress:
        protocol = Protocol(
            calibration=calibration_windows(
                config, output / "calibration_pool", options.frames, progress
            ),
            evaluation=evaluation_set(
                config, output / "evaluation_pool", options.windows, options.frames, progress
            ),
            seeds=tuple(range(options.seeds)),
            images=options.images,
            options=CalibrationOptions(device=device, judged_images=options.judged_images),
            device=device,
            worlds=window_worlds(config, options.windows, options.frames),
            plan_windows={
                world: plan_windows(
                    config,
                    world,
                    output / "plan_pools" / world,
                    SWEEP_WINDOWS,
                    options.frames,
                    progress,
                )
                for world in sorted(plan_worlds)
            },
        )
    with console.steps("comparing") as steps:
        results = run_studies(
            opened, studies, protocol, output / "rows", footprint=footprint, progress=steps
        )
    facts = {
        **provenance(checkpoint),
        "network": checkpoint.name,
        "network_sha256": opened.sha256(),
        "network_metadata": {
            key: value for key, value in opened.metadata.items() if key.startswith("training_")
        },
        "protocol": protocol.describe(),
    }
    console.wrote(*write_tables(results, facts, output))
