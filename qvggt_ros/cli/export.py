"""`qvggt export`: a map and its images in the formats of other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import OutputPath


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how."""

    format: str | None = option(
        None, "ply, pcd, glb, colmap, colmap-text or nerfstudio; by the suffix of a file."
    )
    segment: int | None = option(None, "Of a result; the one with the most poses if not given.")
    max_points: int = option(2_000_000, "Points at most, spread evenly over the map.", min=1)
    max_images: int = option(2000, "Images at most, spread evenly over time.", min=1)
    overwrite: bool = option(False, "Replace the file, or a former export.")


def export(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Result of `qvggt replay` (all points, six images), map that --save-map saved "
            "(all keyframes), or both of one run."
        ),
    ],
    output: OutputPath,
    options: ExportOptions,
) -> None:
    """Write a map for other tools: point clouds, COLMAP models, nerfstudio data sets."""
    from qvggt_core.export.formats import DIRECTORY_FORMATS, format_of, write_scene
    from qvggt_core.export.sources import read_scene

    name = format_of(output, options.format)
    scene = read_scene(sources, options.segment)
    scene = scene.thinned(options.max_points, options.max_images)
    write_scene(output, scene, name, overwrite=options.overwrite, inputs=sources)
    has_images = name in DIRECTORY_FORMATS
    facts = [
        ("format", name),
        ("points", f"{len(scene.cloud):,}"),
        ("images", str(len(scene.images)) if has_images else "none in this format"),
        ("unit", "metres" if scene.is_metric else "its own: nothing knew metres"),
        ("up", scene.up_source),
    ]
    console.print_facts(str(output), facts)
    for note in scene.notes:
        console.note("[yellow]note:[/]", note)
    console.wrote(output)
