"""How large the parts of a network are in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qvggt_core.model.checkpoint import Checkpoint
from qvggt_core.model.packed_format import PACKED_EXTRAS, WEIGHTS_PER_WORD, WORDS_SUFFIX
from qvggt_core.model.published_names import is_ray_part

PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("aggregator.patch_embed.", "aggregator.cls_token", "aggregator.pos_embed"),
    "frame blocks": ("aggregator.frame_blocks.",),
    "global blocks": ("aggregator.global_blocks.",),
    "blocks": ("aggregator.blocks.", "aggregator.norm."),
    "special tokens": (
        "aggregator.camera_token",
        "aggregator.register_token",
        "aggregator.scale_token",
    ),
    "camera head": ("camera_head.",),
    "camera encoder": ("camera_encoder.",),
    "depth head": ("depth_head.",),
    "point head": ("point_head.",),
    "track head": ("track_head.",),
    "Gaussian head": ("gs_head.", "gs_adapter."),
}
"""Parts of a network and the prefixes of their entries' names; rays are recognised by name."""

RAY_BRANCH = "ray branch"


def part_of(name: str) -> str:
    """Return the part of a network to which an entry belongs, "other" if it is of none."""
    if is_ray_part(name):
        return RAY_BRANCH
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), "other")


def part_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return, per part of a network, its number of weights and its bytes in the file."""
    sizes: dict[str, tuple[int, int]] = {}
    for name in checkpoint.names():
        part = part_of(name)
        weights, stored = sizes.get(part, (0, 0))
        count, dtype = math.prod(checkpoint.shape(name)), checkpoint.dtype(name)
        stored += count * dtype.itemsize
        if name.endswith(WORDS_SUFFIX):
            weights += WEIGHTS_PER_WORD.get(dtype, 1) * count
        elif not name.endswith(PACKED_EXTRAS):
            weights += count
        sizes[part] = (weights, stored)
    order = [*PARTS, RAY_BRANCH, "other"]
    return {part: sizes[part] for part in order if part in sizes}
