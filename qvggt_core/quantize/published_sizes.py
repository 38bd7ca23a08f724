"""How large published networks are, in full and in 4 bits, from their sizes alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from qvggt_core.model import VGGT, ModelConfig
from qvggt_core.model.load import with_heads
from qvggt_core.quantize.plan import PRESETS
from qvggt_core.quantize.stored_size import planned_sizes


def parameters_of(config: ModelConfig) -> int:
    """Return the number of weights that the network can use, every part of it."""
    return sum(_elements(shape) for shape in _shapes(config).values())


def int4_megabytes(config: ModelConfig) -> float:
    """Return the size of its 4-bit file, plan uniform, with cameras and depth alone."""
    kept = with_heads(replace(config, ray_head=False), ("camera", "depth"))
    sizes = planned_sizes(PRESETS["uniform"], _shapes(kept))
    return sum(size.nbytes for size in sizes.values()) / 1e6


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        entries = VGGT(config).state_dict()
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
