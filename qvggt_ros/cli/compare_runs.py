"""`qvggt compare-runs`: results side by side, in one page and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console


def compare_runs(
    results: Annotated[list[Path], typer.Argument(help="Directories that `qvggt replay` made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write: .html.")],
    title: Annotated[str, typer.Option(help="What the page is called.")] = "Comparison",
) -> None:
    """Compare results: one self-contained page, and a table here."""
    from qvggt_core.report import write_comparison
    from qvggt_ros.cli.replay_many import print_results

    write_comparison(output, results, title=title)
    print_results(results)
    console.out.print(f"wrote {output}", soft_wrap=True, highlight=False)
