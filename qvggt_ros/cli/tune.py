"""`qvggt tune`: which network suits this machine, and which kernels are fastest on its GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from qvggt_core.errors import QvggtError
from qvggt_ros.cli import console


def tune(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint whose kernels are measured; none proposes a network."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Keyframes a second that the network must keep up with.")
    ] = 5.0,
) -> None:
    """Propose a network for this machine; with a checkpoint, measure its kernels on this GPU.

    The fastest kernels are kept for later runs. The proposal is measured too, on random weights:
    speed does not depend on their values.
    """
    if checkpoint is None:
        _propose(rate)
        return
    from qvggt_kernels import tuning

    from qvggt_core.model import load_model

    try:
        tuning.require_device()
        model = load_model(checkpoint)
        shapes = tuning.shapes_of(model)
        if not shapes:
            raise QvggtError(
                f"{checkpoint} has no packed weights to measure: `qvggt quantize` makes them"
            )
        with console.steps("measuring") as advance:
            path, entries = tuning.tune(shapes, advance=advance)
    except tuning.TuningError as error:
        raise QvggtError(str(error)) from error
    table = console.Table()
    for column in ("operator", "outputs x inputs", "rows", "kernel", "blocks"):
        table.add_column(column)
    for operator, (n, k), rows, config in entries:
        blocks = "" if config.blocks is None else str(tuple(config.blocks))
        table.add_row(operator, f"{n} x {k}", str(rows), config.kernel, blocks)
    console.out.print(table)
    console.out.print(f"wrote {escape(str(path))}")


def _propose(rate: float) -> None:
    from qvggt_kernels import fastest_linears

    from qvggt_core.measure.network_choice import measure_choices, proposal
    from qvggt_core.model import ComputeSettings
    from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
    from qvggt_core.stream.load_network import device_of

    device = device_of("auto")
    linears = fastest_linears(device)
    with console.steps("measuring") as advance:
        measured = measure_choices(
            device, ComputeSettings(linears=linears), write_random_checkpoint, advance
        )
    table = console.Table(
        title=f"windows of 4 views, 2 new, on this {device}", title_justify="left"
    )
    for column in ("network", "images", "ms a window", "keyframes a second"):
        table.add_column(column, justify="left" if column in ("network", "images") else "right")
    chosen = proposal(measured, rate)
    for each in measured:
        size = f"{each.choice.width}x{each.choice.height}"
        cells = (f"{1e3 * each.seconds:.0f}", f"{each.keyframes_per_second:.1f}")
        table.add_row(each.choice.network, size, *cells, style="bold" if each is chosen else None)
    console.out.print(table)
    if chosen is None:
        console.out.print(
            f"none keeps up with {rate:g} keyframes a second: let the camera's motion choose fewer "
            "(keyframe_min_motion), or reconstruct recordings"
        )
        return
    console.out.print(
        f"proposed for {rate:g} keyframes a second: {chosen.choice.network}, image_width "
        f"{chosen.choice.width}, window_size 4, window_stride 2, linears {linears}\n"
        f"next: qvggt download {chosen.choice.network}"
    )
