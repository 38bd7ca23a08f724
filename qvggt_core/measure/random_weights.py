"""Weights to measure with: a random 4-bit checkpoint, and any 4-bit checkpoint made dense again.

Speed and memory do not depend on the weights' values, as long as nothing overflows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from qvggt_kernels import Int4Linear, PackedLinear, dequantize, hadamard_transform
from torch import Tensor

from qvggt_core.errors import BenchmarkError
from qvggt_core.model import VGGT, Checkpoint, ModelConfig, load_model, save_checkpoint
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


def dense_state(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield a network's tensors in float32 under its full-precision names, one at a time.

    Packed weights are unpacked, and their inputs' scale and rotation folded in: the dense network
    computes what the packed one does.

    Raises:
        BenchmarkError: a linear has integer activations, so that no dense one equals it.
    """
    with torch.device("meta"):
        names = list(VGGT(config).state_dict())
    packed = None
    for name in names:
        if name in checkpoint:
            yield name, checkpoint.tensor(name).to(torch.float32, copy=True)
            continue
        if packed is None:
            wanted = [head for head in ("depth", "point") if getattr(config, f"{head}_head")]
            heads = ("camera", *(head if head == "depth" else "points" for head in wanted))
            packed = load_model(checkpoint.path, "cpu", torch.float32, heads)
        yield name, dense_weight(packed.get_submodule(name.removesuffix(".weight")))


def dense_weight(linear: torch.nn.Module) -> Tensor:
    """Return the float32 weight (N, K) of the dense linear that equals a 4-bit one.

    Raises:
        BenchmarkError: the layer is no 4-bit one with floating activations.
    """
    if not isinstance(linear, Int4Linear):
        kind = "multiplies integers" if isinstance(linear, PackedLinear) else "is not packed"
        raise BenchmarkError(
            f"a {type(linear).__name__} {kind}: the full-precision and 16-bit networks are made "
            "from a checkpoint of precision w4a16, choose one"
        )
    weight = dequantize(linear.packed(), torch.float32)
    if linear.input_scale is not None:
        weight *= linear.input_scale
    return hadamard_transform(weight, linear.rotation) if linear.rotation else weight


def available_heads(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the heads that a network of this configuration has."""
    has = {"camera": True, "depth": config.depth_head, "points": config.point_head}
    return tuple(head for head, there in has.items() if there)


def with_heads(config: ModelConfig, heads: tuple[str, ...]) -> ModelConfig:
    """Return the configuration with no other dense heads than these."""
    return replace(config, depth_head="depth" in heads, point_head="points" in heads)
