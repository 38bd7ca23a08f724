"""Bounds of a network's sizes: a description alone must take neither time nor memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qvggt_core.errors import CheckpointError
from qvggt_core.util.quoting import short

_COUNTS: Mapping[str, tuple[int, int]] = {
    "img_size": (1, 16384),
    "patch_size": (1, 256),
    "embed_dim": (4, 16384),
    "depth": (1, 256),
    "num_heads": (1, 256),
    "num_register_tokens": (0, 256),
    "position_grid": (1, 1024),
    "camera_trunk_depth": (0, 64),
    "camera_num_heads": (1, 256),
    "camera_iterations": (1, 64),
    "dpt_features": (2, 16384),
    "dpt_out_channels": (1, 16384),
    "taps": (0, 255),
    "alternate_from": (1, 255),
}
_FRACTIONS: Mapping[str, tuple[float, float]] = {
    "mlp_ratio": (0.125, 64.0),
    "layer_scale": (0, 1e3),
}
"""Several times the sizes of the largest published network."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "feed_forward": ("gelu", "swiglu"),
    "camera_head": ("iterative", "decoder", "none"),
}
_NESTED: Mapping[str, str] = {"encoder": "EncoderConfig", "stack": "StackConfig"}


def check_values(config: Any) -> None:
    """Check the kind and the bounds of every size, before anything is built of them.

    Args:
        config: `ModelConfig`, or one of its parts.

    Raises:
        CheckpointError: names the size, its value and what is allowed.
    """
    for field in fields(config):
        name, value, usual = field.name, getattr(config, field.name), field.default
        if name in _NESTED:
            allowed = f"none, or an {_NESTED[name]}"
            right = value is None or type(value).__name__ == _NESTED[name]
        elif name in _CHOICES:
            allowed = " or ".join(_CHOICES[name])
            right = isinstance(value, str) and value in _CHOICES[name]
        elif isinstance(usual, bool):
            allowed, right = "true or false", isinstance(value, bool)
        elif isinstance(usual, float):
            low, high = _FRACTIONS[name]
            allowed = f"a number from {low:g} to {high:g}"
            right = type(value) in (int, float) and low <= value <= high
        else:
            low, high = _COUNTS[name]
            count = len(usual) if isinstance(usual, tuple) else 1
            allowed = f"{'a' if count == 1 else count} whole number(s) from {low} to {high}"
            values = value if isinstance(usual, tuple) else (value,)
            right = (
                isinstance(values, tuple)
                and len(values) == count
                and all(type(each) is int and low <= each <= high for each in values)
            )
            right = right or (value is None and name == "alternate_from")
        if not right:
            raise CheckpointError(f"{name} of the network is {short(value)}: it must be {allowed}")
