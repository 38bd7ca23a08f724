"""How packed linears are written into a checkpoint, see docs/checkpoint_format.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from qvggt_kernels import (
    INTEGER_LAYOUTS,
    LAYOUT,
    Int4Linear,
    IntegerLinear,
    PackedLinear,
    PackingError,
)
from torch import nn

from qvggt_core.errors import CheckpointError
from qvggt_core.util.quoting import short

WORDS_SUFFIX = ".qweight"
SCALES_SUFFIX = ".scales"
INPUT_SCALE_SUFFIX = ".input_scale"
ZEROS_SUFFIX = ".zeros"
PACKED_EXTRAS = (SCALES_SUFFIX, INPUT_SCALE_SUFFIX, ZEROS_SUFFIX, ".clip")
"""Endings of what a packed linear has beside its words and its bias."""

WEIGHTS_PER_WORD: Mapping[torch.dtype, int] = {torch.int16: 4, torch.uint8: 2, torch.int8: 1}
"""Weights in a packed word, by the dtype of the words."""

LINEARS_KEY = "linears"
"""Metadata entry with what a packed linear's tensors do not show: rotation and bit widths."""

_LAYOUT_KEY = "layout"
_INTEGER_LAYOUTS_KEY = "integer_layouts"
_DESCRIBED = ("weight_bits", "activation_bits", "rotation")


def describe_linears(linears: Mapping[str, PackedLinear]) -> dict[str, str]:
    """Return the metadata that a file needs to be loaded with these packed linears."""
    descriptions = {}
    for path, linear in linears.items():
        description = {"rotation": linear.rotation} if linear.rotation else {}
        if isinstance(linear, IntegerLinear):
            description |= {
                "weight_bits": linear.weight_bits,
                "activation_bits": linear.activation_bits,
            }
        if description:
            descriptions[path] = description
    bits = {d["weight_bits"] for d in descriptions.values() if "weight_bits" in d}
    metadata = {_LAYOUT_KEY: LAYOUT}
    if bits:
        metadata[_INTEGER_LAYOUTS_KEY] = " ".join(INTEGER_LAYOUTS[b] for b in sorted(bits))
    if descriptions:
        metadata[LINEARS_KEY] = json.dumps(descriptions, sort_keys=True)
    return metadata


def linear_descriptions(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return what metadata has of packed linears, by path; see `describe_linears`.

    Raises:
        CheckpointError: weights are packed in another layout, or the entry cannot be read.
    """
    layouts = [metadata.get(_LAYOUT_KEY, LAYOUT)]
    layouts += filter(None, metadata.get(_INTEGER_LAYOUTS_KEY, "").split(" "))
    for layout in layouts:
        if layout not in (LAYOUT, *INTEGER_LAYOUTS.values()):
            raise CheckpointError(
                f"it packs its weights as {short(layout)}, this qvggt reads {LAYOUT!r} "
                f"and {', '.join(INTEGER_LAYOUTS.values())}: install the release that wrote it, "
                "or quantize again"
            )
    try:
        found = json.loads(metadata.get(LINEARS_KEY, "{}"))
        return {
            path: {key: int(value) for key, value in description.items() if key in _DESCRIBED}
            for path, description in found.items()
        }
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"its description of packed linears cannot be read: {short(error)}"
        ) from error


def empty_packed_linear(
    linear: nn.Linear, shapes: Mapping[str, Sequence[int]], description: Mapping[str, int]
) -> PackedLinear:
    """Return the packed layer that takes a linear's place, to be filled by its tensors.

    Args:
        linear: what it stands for.
        shapes: of the packed layer's tensors, by their own names.
        description: of the linear, see `linear_descriptions`.

    Raises:
        PackingError: the tensors and the description are of no packed layer.
    """
    extras: dict[str, Any] = {
        **description,
        "bias": linear.bias is not None,
        "input_scale": "input_scale" in shapes,
    }
    if "weight_bits" in description:
        return IntegerLinear(linear.in_features, linear.out_features, **extras)
    groups = shapes["scales"][-1] if shapes["scales"] else 0
    if groups < 1 or linear.in_features % groups:
        raise PackingError(f"{groups} groups of scales for {linear.in_features} inputs")
    return Int4Linear(
        linear.in_features,
        linear.out_features,
        group_size=linear.in_features // groups,
        zeros="zeros" in shapes,
        **extras,
    )
