"""`qvggt view`: a result in the browser, live."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console


def view(
    result: Annotated[Path, typer.Argument(help="Directory that `qvggt replay` made.")],
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback is open to others.")
    ] = "127.0.0.1",
) -> None:
    """Show a result in the browser: cloud, cameras, depth (extra: viz)."""
    from qvggt_ros.viewer import LiveView

    with console.stop_on_interrupt() as stop, LiveView(port, host) as live:
        live.show_result(result)
        console.out.print(f"{live.address}  (Ctrl-C ends)", soft_wrap=True, highlight=False)
        while not stop():
            time.sleep(0.2)
