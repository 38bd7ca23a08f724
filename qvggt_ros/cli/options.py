"""Arguments and options of the commands: each is declared once, in groups that are dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from qvggt_core.errors import ParameterError
from qvggt_core.util.options import option
from qvggt_core.util.yaml_text import load_yaml

if TYPE_CHECKING:
    from qvggt_core.parameters import Parameters

RecordingPath = Annotated[
    Path, typer.Argument(help="rosbag2 directory, .mcap or .db3 file, video, or folder of images.")
]
ImageTopic = Annotated[str | None, typer.Option(help="Found by type if not given.")]
CameraInfoTopic = Annotated[str | None, typer.Option(help="Found beside the images if not given.")]
OutputDirectory = Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")]
OutputPath = Annotated[Path, typer.Option("--output", "-o", help="What to make.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Evaluate = Annotated[
    bool | None,
    typer.Option(
        help="Compare with the ground truth; done without asking if a topic is called so."
    ),
]


@dataclass(frozen=True)
class NetworkOptions:
    """The network and the parameters of a reconstruction."""

    checkpoint: Path | None = option(None, "Network; the small one that ships if not given.")
    params: Path | None = option(None, "Parameter file, as config/reconstruct.yaml.")
    settings: tuple[str, ...] = option(
        (), "One parameter; may be repeated.", "--set", metavar="NAME=VALUE"
    )

    def parameters(self, checkpoint: Path | None = None) -> Parameters:
        """Return the parameters of the file with single ones replaced.

        Args:
            checkpoint: the network instead of the one of the options.

        Raises:
            ParameterError: a name or a value is refused, or the file cannot be read.
        """
        from qvggt_core.parameters import Parameters

        overrides = dict(map(_setting, self.settings))
        if checkpoint or self.checkpoint:
            overrides["checkpoint"] = str(checkpoint or self.checkpoint)
        if self.params is None:
            return Parameters.build(overrides)
        return Parameters.read(self.params, overrides)


def _setting(setting: str) -> tuple[str, Any]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise ParameterError(f"--set {setting} has no value: write NAME=VALUE")
    try:
        return name.strip(), load_yaml(value)
    except ValueError as error:
        raise ParameterError(f"--set {setting}: the value cannot be read: {error}") from error


def with_options(
    function: Callable[..., None], leave_out: Sequence[str] = ()
) -> Callable[..., None]:
    """Return a command whose parameters that are dataclasses have become options.

    Every field becomes an option with the default and the description of the field; a tuple
    becomes an option that may be repeated. The command gets the dataclasses as before.

    Args:
        function: the command; its parameters are annotated for Typer or are dataclasses.
        leave_out: fields that are no options of this command and keep their defaults.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if is_dataclass(kind):
            groups[name] = kind
            parameters |= _parameters_of(kind, leave_out)
        else:
            changes = {"annotation": kind, "kind": inspect.Parameter.KEYWORD_ONLY}
            parameters[name] = parameter.replace(**changes)

    @wraps(function)
    def command(**values: Any) -> None:
        for name, kind in groups.items():
            own = [each.name for each in fields(kind) if each.name in values]
            given = {each: values.pop(each) for each in own}
            values[name] = kind(**{k: _as_field(kind, k, v) for k, v in given.items()})
        function(**values)

    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return command


def _parameters_of(kind: Any, leave_out: Sequence[str]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(kind)
    found = {}
    for each in fields(kind):
        if each.name in leave_out:
            continue
        annotation, default = hints[each.name], each.default
        if get_origin(annotation) is tuple:
            annotation, default = list[get_args(annotation)[0]] | None, None  # type: ignore[misc]
        if default is MISSING:
            raise TypeError(f"{kind.__name__}.{each.name} has no default")
        properties = {"help": each.metadata["description"], **each.metadata["command_line"]}
        found[each.name] = inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[annotation, typer.Option(*each.metadata["names"], **properties)],
        )
    return found


def _as_field(kind: Any, name: str, value: Any) -> Any:
    default = next(each.default for each in fields(kind) if each.name == name)
    if not isinstance(default, tuple):
        return value
    return tuple(value) if value else default
