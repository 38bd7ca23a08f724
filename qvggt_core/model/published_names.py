"""How published checkpoints call what this network has under names of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from qvggt_core.errors import CheckpointError

_TRUNK = "backbone.pretrained."
_DEPTH_ANYTHING_3 = (
    (_TRUNK, "aggregator."),
    ("head.", "depth_head."),
    ("cam_dec.", "camera_head."),
    ("cam_enc.", "camera_encoder."),
)
_PUBLISHED_PREFIX = "model."
# The gated linears of DINOv2-g: see `GatedMlp`.
_GATED = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
_GAUSSIANS = ("gs_head.", "gs_adapter.")

_RAY_PART = re.compile(r"^depth_head\.scratch\.(refinenet\d|output_conv\d)_aux\.")
UNUSED_PREFIXES = ("track_head.", *_GAUSSIANS)
"""Entries of published files that no part of this network has."""


def own_names(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return, by our names, the names that a file has.

    What wrappers put before every name (`module.`, `model.`, `_orig_mod.`) is taken off.

    Args:
        path: of the file, for errors.
        names: of its entries.

    Raises:
        CheckpointError: the file holds two networks.
    """
    found = list(names)
    prefix = _common_prefix(path, found)
    bare = {name.removeprefix(prefix): name for name in found}
    if not any(name.startswith(_TRUNK) for name in bare):
        return bare
    return {_from_depth_anything_3(name): theirs for name, theirs in bare.items()}


def depth_anything_3_names(names: Iterable[str]) -> dict[str, str]:
    """Return, by our names, how Depth Anything 3's published files call the same entries."""
    published = {}
    for name in names:
        theirs = name
        for their_part, our_part in _DEPTH_ANYTHING_3:
            if name.startswith(our_part):
                theirs = _PUBLISHED_PREFIX + their_part + name.removeprefix(our_part)
        published[name] = theirs
    return published


def is_ray_part(name: str) -> bool:
    """Return whether an entry, by our name, belongs to the depth head's ray branch."""
    return bool(_RAY_PART.match(name))


def _common_prefix(path: Path, names: list[str]) -> str:
    """Return what stands before the trunk's names."""
    prefixes = {
        name[: name.index(marker)]
        for marker in ("aggregator.", _TRUNK)
        for name in names
        if name.startswith(marker) or f".{marker}" in name
    }
    if len(prefixes) > 1:
        listed = ", ".join(sorted(prefix or "none" for prefix in prefixes))
        raise CheckpointError(
            f"{path} holds {len(prefixes)} networks, under the prefixes {listed}: take the "
            "any-view network and the metric network as two files"
        )
    return prefixes.pop() if prefixes else ""


def _from_depth_anything_3(name: str) -> str:
    for theirs, ours in _DEPTH_ANYTHING_3:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _GATED:
        name = name.replace(theirs, ours)
    return name
