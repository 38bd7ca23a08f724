"""`qvggt params`: the table of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
import yaml

if TYPE_CHECKING:
    from qvggt_core.parameters import Parameters


def params() -> None:
    """Print the table of parameters, in Markdown."""
    from qvggt_core.parameters import Parameters

    typer.echo(parameter_table(Parameters))


def parameter_table(parameters: type[Parameters]) -> str:
    """Return names, defaults, ranges, whether live, and descriptions as a Markdown table."""
    rows = ["| parameter | default | allowed | live | meaning |", "|---|---|---|---|---|"]
    for parameter in parameters.describe():
        default = yaml.safe_dump(parameter.default, default_flow_style=True)
        default = default.split("\n")[0].replace("'", '"')
        live = "" if parameter.read_only else "yes"
        rows.append(
            f"| `{parameter.name}` | `{default}` | {parameter.allowed or 'text'} | {live} "
            f"| {parameter.description} |"
        )
    return "\n".join(rows)
