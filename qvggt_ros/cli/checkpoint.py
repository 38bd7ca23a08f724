"""`qvggt info` and `qvggt download`: what a checkpoint holds, and where one comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from qvggt_ros.cli import console

if TYPE_CHECKING:
    from qvggt_core.model.download import Offer

_SHOWN_LICENCE = 12_000
"""Characters of a licence text that are shown; Apache-2.0's has 11,358."""


def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt or .safetensors.")],
) -> None:
    """Show what a checkpoint holds: size and bits per part, and its metadata."""
    from qvggt_core.model import part_sizes, read_checkpoint
    from qvggt_core.model.packed_format import LINEARS_KEY

    checkpoint = read_checkpoint(file)
    table = console.Table(title=str(file), title_justify="left")
    for column in ("part", "weights", "MB", "bits per weight"):
        table.add_column(column, justify="left" if column == "part" else "right")
    sizes = part_sizes(checkpoint)
    total = (sum(weights for weights, _ in sizes.values()), sum(size for _, size in sizes.values()))
    for part, (weights, size) in sizes.items():
        table.add_row(part, *_size_cells(weights, size))
    table.add_section()
    table.add_row("in all", *_size_cells(*total), style="bold")
    console.out.print(table)
    facts = console.Table(show_header=False, box=None)
    for name, value in {**checkpoint.metadata, "config": checkpoint.config}.items():
        if name == LINEARS_KEY:
            continue  # a line per layer, for the loader
        if name == "licence_text":
            value = f"{len(str(value))} characters, from the repository"
        facts.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    console.out.print(facts)
    for assumption in checkpoint.assumptions:
        console.err.print(
            f"[yellow]note:[/] assumed that {assumption}; a config.json beside it can state it"
        )


def _size_cells(weights: int, size: int) -> tuple[str, str, str]:
    return f"{weights:,}", f"{size / 1e6:,.1f}", f"{8 * size / max(weights, 1):.2f}"


def download(
    name: Annotated[
        str,
        typer.Argument(help="Of `qvggt networks`, or a hub name owner/name[@revision]."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory.")] = Path(
        "checkpoints"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licence that is shown.")] = False,
) -> None:
    """Get published weights from the Hugging Face hub, after their licence.

    An interrupted download goes on when the same command is run again.
    """
    from qvggt_core.model.download import download as download_weights

    def agree(offer: Offer) -> bool:
        network = offer.network
        console.out.print(escape(offer.licence_text.strip()[:_SHOWN_LICENCE]), highlight=False)
        console.out.print(
            f"\n{network.repository} at {offer.commit[:12]}, {offer.nbytes / 1e9:.2f} GB, licence: "
            f"{escape(offer.licence_id)}\n{escape(network.licence)}\n"
        )
        return yes or typer.confirm("Do you agree?")

    path = download_weights(name, output, agree)
    console.out.print(
        f"wrote {path}\nnext: qvggt quantize {path} -o {name.split('/')[-1]}-int4.safetensors"
    )


def networks() -> None:
    """List the published networks that run here: size, licence, outputs, independent accuracy."""
    from qvggt_core.model.catalog import ACCURACY_SOURCE, CATALOG
    from qvggt_core.quantize.published_sizes import int4_megabytes, parameters_of

    table = console.Table(title="published networks", title_justify="left")
    for column in ("name", "weights", "INT4", "licence", "gives", "AUC@30", "AbsRel"):
        numeric = column in ("weights", "INT4", "AUC@30", "AbsRel")
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=column in ("name", "INT4")
        )
    for network in CATALOG.values():
        assert network.config is not None
        table.add_row(
            network.name,
            f"{parameters_of(network.config) / 1e6:,.0f} M",
            f"{int4_megabytes(network.config):,.0f} MB",
            network.licence_id,
            network.gives,
            "" if network.auc_30 is None else f"{network.auc_30:.1f} %",
            "" if network.abs_rel is None else f"{network.abs_rel:.3f}",
        )
    console.out.print(table)
    console.out.print(
        f"AUC@30 and AbsRel: {ACCURACY_SOURCE}. INT4: size with poses and depth alone. The da3 "
        "networks for several views also take known cameras (condition_on); da3metric-large sees "
        "one image at a time and gives the scale (scale_network). All run on CPUs and on CUDA."
    )
