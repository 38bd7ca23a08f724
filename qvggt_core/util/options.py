"""Options as fields of a dataclass: default, description, and how a command line calls them."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, description: str, *names: str, **command_line: Any) -> Any:
    """Return a dataclass field with a description.

    Args:
        default: of the field.
        description: a sentence; the help of the command line, too.
        names: of the option on the command line, such as "--set"; made of the field's name if not
            given. A name that is given alone takes no value where the field is a bool.
        command_line: further properties of the option, such as metavar or envvar.
    """
    metadata = {"description": description, "names": names, "command_line": command_line}
    return field(default=default, metadata=metadata)
