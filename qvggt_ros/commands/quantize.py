"""`qvggt quantize`: a 4-bit checkpoint from a full-precision one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros import console
from qvggt_ros.commands.checkpoint import info


def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision VGGT: .pt or .safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .safetensors.")],
    recipe: Annotated[str, typer.Option(help="How weights are rounded.")] = "rtn",
    plan: Annotated[
        str, typer.Option(help="What has 4 bits: uniform, qvggt-paper, or a YAML file.")
    ] = "uniform",
    group_size: Annotated[int, typer.Option(help="Weights per scale: 128, 64 or 32.")] = 128,
    point_head: Annotated[bool, typer.Option(help="Keep the point head.")] = False,
) -> None:
    """Make a 4-bit checkpoint that runs without the full-precision one."""
    from qvggt_core.quantize import PRESETS, quantize_checkpoint

    heads = ("camera", "depth", "points") if point_head else ("camera", "depth")
    with console.progress("quantizing", "tensors") as progress:
        report = quantize_checkpoint(
            checkpoint,
            output,
            recipe=recipe,
            plan=plan,
            group_size=group_size,
            heads=heads,
            progress=lambda index, total, name: progress(index, total),
        )
    for rule in report.unused_rules if plan not in PRESETS else ():
        console.err.print(f"[yellow]note:[/] the plan's rule {rule!r} fits no weight")
    info(output)
