"""`qvggt tune`: which kernels and blocks are fastest for a checkpoint on this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_core.errors import QvggtError
from qvggt_ros.cli import console


def tune(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint whose layers are measured. [default: the shipped one]"),
    ] = None,
) -> None:
    """Measure the kernels of a checkpoint's linears on this GPU; later runs use the fastest."""
    from qvggt_kernels import tuning

    from qvggt_core.model import load_model
    from qvggt_core.model.checkpoint import shipped_checkpoint

    try:
        tuning.require_device()
        model = load_model(checkpoint or shipped_checkpoint())
        shapes = tuning.shapes_of(model)
        if not shapes:
            raise QvggtError(
                f"{checkpoint} has no packed weights to measure: `qvggt quantize` makes them"
            )
        with console.steps("measuring") as advance:
            path, entries = tuning.tune(shapes, advance=advance)
    except tuning.TuningError as error:
        raise QvggtError(str(error)) from error
    table = Table()
    for column in ("operator", "outputs x inputs", "rows", "kernel", "blocks"):
        table.add_column(column)
    for operator, (n, k), rows, config in entries:
        blocks = "" if config.blocks is None else str(tuple(config.blocks))
        table.add_row(operator, f"{n} x {k}", str(rows), config.kernel, blocks)
    console.out.print(table)
    console.out.print(f"wrote {escape(str(path))}")
