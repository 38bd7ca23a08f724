"""`qvggt compare`: all recipes on one protocol, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console

_ALL = ["recipes", "harder", "components", "calibration"]


def compare(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision network with a depth head.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the tables.")],
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="recipes, harder, components, calibration, or a YAML file; may be repeated. "
            "All four if not given."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training configuration whose worlds are used; small.yaml if not given."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Held-out windows.")] = 256,
    frames: Annotated[int, typer.Option(help="Frames in a window.")] = 4,
    images: Annotated[int, typer.Option(help="Calibration images.")] = 128,
    seeds: Annotated[int, typer.Option(help="Calibration sets per recipe.")] = 3,
    judged_images: Annotated[
        int, typer.Option(help="Images on which a task-aware search compares candidates.")
    ] = 32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    footprint: Annotated[bool, typer.Option(help="Measure memory and time.")] = True,
) -> None:
    """Compare recipes on held-out synthetic windows: Markdown, HTML with bars, raw JSON.

    An interrupted comparison goes on where it stopped.
    """
    from qvggt_core.measure.provenance import provenance
    from qvggt_core.model import read_checkpoint
    from qvggt_core.quantize.calibrate import CalibrationOptions
    from qvggt_core.quantize.calibration_sources import calibration_windows, evaluation_set
    from qvggt_core.quantize.comparison import Protocol, run_studies
    from qvggt_core.quantize.study import load_study
    from qvggt_core.report.recipe_comparison import write_tables

    studies = [load_study(name) for name in study or _ALL]
    opened = read_checkpoint(checkpoint)
    with console.progress("rendering", "clips") as progress:
        protocol = Protocol(
            calibration=calibration_windows(config, output / "calibration_pool", frames, progress),
            evaluation=evaluation_set(
                config, output / "evaluation_pool", windows, frames, progress
            ),
            seeds=tuple(range(seeds)),
            images=images,
            options=CalibrationOptions(device=device, judged_images=judged_images),
            device=device,
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
    for path in write_tables(results, facts, output):
        console.out.print(f"wrote {path}", soft_wrap=True, highlight=False)
