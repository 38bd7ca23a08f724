"""`qvggt params`, and how commands read parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from qvggt_core.errors import ParameterError

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


def read_parameters(
    path: Path | None, settings: Sequence[str], checkpoint: Path | None
) -> Parameters:
    """Return the parameters of a file with single ones replaced.

    Raises:
        ParameterError: a name or a value is refused, or the file cannot be read.
    """
    from qvggt_core.parameters import Parameters

    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(f"--set {setting} has no value: write NAME=VALUE")
        try:
            overrides[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ParameterError(f"--set {setting}: the value cannot be read: {error}") from error
    if checkpoint is not None:
        overrides["checkpoint"] = str(checkpoint)
    return Parameters.build(overrides) if path is None else Parameters.read(path, overrides)
