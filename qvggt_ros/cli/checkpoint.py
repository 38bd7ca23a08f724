"""`qvggt info` and `qvggt download`: what a checkpoint holds, and where one comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_ros.cli import console

if TYPE_CHECKING:
    from qvggt_core.model.download import PublishedModel


def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt or .safetensors.")],
) -> None:
    """Show what a checkpoint holds: size and bits per part, and what it says of itself."""
    from qvggt_core.model import part_sizes, read_checkpoint
    from qvggt_core.model.packed_format import LINEARS_KEY

    checkpoint = read_checkpoint(file)
    table = Table(title=str(file), title_justify="left")
    for column in ("part", "weights", "MB", "bits per weight"):
        table.add_column(column, justify="left" if column == "part" else "right")
    sizes = part_sizes(checkpoint)
    total = (sum(weights for weights, _ in sizes.values()), sum(size for _, size in sizes.values()))
    for part, (weights, size) in sizes.items():
        table.add_row(part, *_size_cells(weights, size))
    table.add_section()
    table.add_row("in all", *_size_cells(*total), style="bold")
    console.out.print(table)
    facts = Table(show_header=False, box=None)
    for name, value in {**checkpoint.metadata, "config": checkpoint.config}.items():
        if name == LINEARS_KEY:
            continue  # a line per layer, for the loader
        facts.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    console.out.print(facts)


def _size_cells(weights: int, size: int) -> tuple[str, str, str]:
    return f"{weights:,}", f"{size / 1e6:,.1f}", f"{8 * size / max(weights, 1):.2f}"


def download(
    name: Annotated[str, typer.Argument(help="vggt-1b or vggt-1b-commercial.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory.")] = Path(
        "checkpoints"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licence that is shown.")] = False,
) -> None:
    """Get VGGT-1B's published weights, after its licence."""
    from qvggt_core.model.download import download as download_weights

    def agree(model: PublishedModel) -> bool:
        console.out.print(f"{model.repository}, {model.size_gb:g} GB\n{escape(model.licence)}\n")
        return yes or typer.confirm("Do you agree?")

    console.out.print(f"wrote {download_weights(name, output, agree)}")
