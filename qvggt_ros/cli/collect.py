"""`qvggt collect`: what a live node published, as a result to evaluate and to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console
from qvggt_ros.cli.options import OutputDirectory


def collect(
    live: Annotated[Path, typer.Argument(help="rosbag2 of what the node published.")],
    output: OutputDirectory,
    recording: Annotated[
        Path | None,
        typer.Option(help="rosbag2 that was played to it, where the first has no images itself."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of the node.")] = "qvggt",
) -> None:
    """Make a result of what a live node published; `qvggt evaluate` compares it with the truth."""
    from qvggt_ros.drivers.collect import collect as collect_result

    with console.err.status("collecting"):
        files = collect_result(live, recording, output, namespace=namespace)
    console.wrote(*files)
