"""The dense network that equals a 4-bit one: its weights in float32, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from qvggt_kernels import Int4Linear, PackedLinear, dequantize, hadamard_transform
from torch import Tensor

from qvggt_core.errors import BenchmarkError
from qvggt_core.model import VGGT, Checkpoint, ModelConfig, load_model


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
