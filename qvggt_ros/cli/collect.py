"""`qvggt collect`: what a live node published, as a result to evaluate and to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console


def collect(
    live: Annotated[Path, typer.Argument(help="rosbag2 of what the node published.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    recording: Annotated[
        Path | None,
        typer.Option(help="rosbag2 that was played to it, where the first has no images itself."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of the node.")] = "qvggt",
) -> None:
    """Make a result of what a live node published; `qvggt evaluate` tells how good it is."""
    from qvggt_ros.drivers.collect import collect as collect_result

    with console.err.status("collecting"):
        files = collect_result(live, recording, output, namespace=namespace)
    for file in files:
        console.out.print(f"wrote {file}", soft_wrap=True, highlight=False)
