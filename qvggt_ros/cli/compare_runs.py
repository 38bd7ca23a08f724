"""`qvggt compare-runs`: results side by side, in one page and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console
from qvggt_ros.cli.options import OutputFile
from qvggt_ros.cli.replay_many import print_comparison


def compare_runs(
    results: Annotated[list[Path], typer.Argument(help="Directories that `qvggt replay` made.")],
    output: OutputFile,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Comparison",
) -> None:
    """Compare results: one self-contained page (.html), and a table here."""
    from qvggt_core.report import is_page, write_comparison
    from qvggt_core.results.result import Result
    from qvggt_core.util.output_files import check_file

    check_file(output, is_page, results)
    read = {directory: Result.read(directory) for directory in results}
    write_comparison(output, read, title=title)
    print_comparison(read)
    console.wrote(output)
