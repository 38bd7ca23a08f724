"""The parameters of the ROS 2 node: declared from the one schema, refused with a reason."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

from qvggt_core.errors import ParameterError
from qvggt_core.parameters import ParameterDescription, Parameters

_LARGEST = sys.float_info.max
_LARGEST_INTEGER = 2**63 - 1
# Those of ROS itself.
_FOREIGN = ("use_sim_time", "start_type_description_service")
_FOREIGN_PREFIXES = ("qos_overrides.", "diagnostic_updater.")


def declare_all(node: Any) -> Parameters:
    """Declare all parameters at a node; return them with the values that were given.

    Raises:
        ParameterError: a value is refused; says which and why.
    """
    return Parameters.build({each.name: _declare(node, each) for each in Parameters.describe()})


def unknown_parameters(given: Iterable[str]) -> list[str]:
    """Return a sentence for each name that is no parameter, with the one that it resembles."""
    found = []
    for name in given:
        known = list(Parameters.model_fields)
        if name in known or name in _FOREIGN or name.startswith(_FOREIGN_PREFIXES):
            continue
        (near,) = difflib.get_close_matches(name, known, 1) or ("",)
        hint = f": is {near} meant?" if near else ""
        found.append(f"there is no parameter {name}; what it was given has no effect{hint}")
    return found


def refusal(current: Parameters, changes: dict[str, Any], *, loaded: bool) -> str:
    """Return why a change has to wait until the network is released; empty if it has not.

    Args:
        current: the parameters before.
        changes: new values by name.
        loaded: whether the network is loaded.
    """
    fixed = {each.name for each in Parameters.describe() if each.read_only}
    names = [n for n, value in changes.items() if n in fixed and value != getattr(current, n)]
    if not loaded or not names:
        return ""
    return (
        f"{', '.join(names)} is fixed while the network is loaded: deactivate and clean the node "
        "up (`ros2 lifecycle set`), change it, and configure again"
    )


def _declare(node: Any, parameter: ParameterDescription) -> Any:
    try:
        declared = node.declare_parameter(parameter.name, parameter.default, _descriptor(parameter))
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ParameterError(f"parameter {parameter.name}: {error}") from error
    return declared.value


def _descriptor(parameter: ParameterDescription) -> ParameterDescriptor:
    bounded = parameter.minimum is not None or parameter.maximum is not None
    descriptor = ParameterDescriptor(
        description=parameter.description,
        # What is fixed only while the network is loaded is refused then, and can be mended after.
        read_only=parameter.from_start,
        additional_constraints=parameter.allowed.replace("`", "") if parameter.allowed else "",
    )
    low, high = parameter.minimum, parameter.maximum
    if bounded and isinstance(parameter.default, int):
        descriptor.integer_range = [
            IntegerRange(
                from_value=-_LARGEST_INTEGER if low is None else int(low),
                to_value=_LARGEST_INTEGER if high is None else int(high),
            )
        ]
    elif bounded:
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=-_LARGEST if low is None else low,
                to_value=_LARGEST if high is None else high,
            )
        ]
    return descriptor
