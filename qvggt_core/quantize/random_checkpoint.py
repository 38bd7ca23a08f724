"""A 4-bit checkpoint of random weights, for measurements of speed and memory.

Speed and memory do not depend on the weights' values, as long as nothing overflows.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor

from qvggt_core.model import VGGT, ModelConfig, save_checkpoint
from qvggt_core.quantize.plan import PRESETS

_DEVIATION_OF_Q = 4.6
"""Of whole numbers drawn evenly from -8 to 7."""
_GAIN = 0.1
"""LayerScale of random networks: residuals grow slowly, as in trained ones."""


def write_random_checkpoint(path: Path, config: ModelConfig) -> None:
    """Write a 4-bit checkpoint with a network's names and shapes and random weights.

    It is as large as the real one, in memory while it is made and on disk.
    """
    with torch.device("meta"):
        entries = VGGT(config).state_dict()
    plan = PRESETS["uniform"]
    state: dict[str, Tensor] = {}
    for name, entry in entries.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        precision = plan.precision(name, entry.shape)
        if precision.quantized:
            rows, columns = entry.shape
            shape = (rows, columns // precision.group_size, precision.group_size // 4)
            words = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator)
            scale = 1 / (_DEVIATION_OF_Q * columns**0.5)
            path_of_linear = name.removesuffix(".weight")
            state[f"{path_of_linear}.qweight"] = words
            state[f"{path_of_linear}.scales"] = torch.full(shape[:2], scale, dtype=torch.bfloat16)
            continue
        dtype = torch.float32 if precision.bits == 32 else torch.bfloat16
        state[name] = _drawn(name, entry.shape, generator).to(dtype)
    save_checkpoint(path, state, config, {"licence": "random weights"})


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith(".gamma"):
        return torch.full(shape, _GAIN)
    if len(shape) == 1:
        is_gain = "norm" in name and name.endswith(".weight")
        return torch.ones(shape) if is_gain else torch.zeros(shape)
    fan_in = shape[1:].numel() if "resize_layers" not in name else shape[0]
    return torch.randn(shape, generator=generator) / fan_in**0.5
