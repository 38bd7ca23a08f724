"""The networks that are compared: the original VGGT, and qvggt at each precision, on equal weights.

Dense contenders share one float32 copy of the weights, which is made of the 4-bit file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.dense_weights import available_heads, dense_state
from qvggt_core.measure.graphed_forward import GraphedForward
from qvggt_core.measure.original import load_original, prediction_of
from qvggt_core.model import VGGT, ModelConfig, load_model, read_checkpoint
from qvggt_core.model.load import with_heads
from qvggt_core.model.settings import ComputeSettings
from qvggt_core.stream.graphs import graphed

ORIGINAL_FLOAT32 = "original float32"
ORIGINAL_BFLOAT16 = "original bfloat16 autocast"
FLOAT32 = "qvggt float32"
BFLOAT16 = "qvggt bfloat16"
INT4 = "qvggt INT4"
INT4_INTEGERS = "qvggt INT4, 8-bit products"
INT4_FP8 = "qvggt INT4, 8-bit float products"
GRAPH = ", CUDA graph"
"""What the name of a contender ends with whose whole forward pass is replayed as one CUDA graph."""

CONTENDERS = (
    ORIGINAL_FLOAT32,
    ORIGINAL_BFLOAT16 + GRAPH,
    ORIGINAL_BFLOAT16,
    FLOAT32,
    BFLOAT16 + GRAPH,
    BFLOAT16,
    INT4 + GRAPH,
    INT4,
    INT4_INTEGERS + GRAPH,
    INT4_INTEGERS,
    INT4_FP8 + GRAPH,
    INT4_FP8,
)
"""Every contender; the first one that takes part is the baseline of the others."""

_PACKED = {INT4: "float", INT4_INTEGERS: "int8", INT4_FP8: "fp8"}
"""How the packed contenders multiply, see `ComputeSettings`."""

_INT4_BYTES = 0.5 + 2 / 128
"""A number, and its share of a 16-bit scale per group of 128."""

Forward = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Contender:
    """One network, ready to run.

    Attributes:
        name: one of `CONTENDERS`.
        model: the network.
        forward: maps images (1, S, 3, H, W) in [0, 1] and names of heads to "depth" (1, S, H, W)
            and "pose" (1, S, 9); the original always runs all of its heads.
        dtype: what it computes in.
        weight_bytes: bytes per weight of its linears, as stored in memory.
    """

    name: str
    model: nn.Module
    forward: Forward
    dtype: torch.dtype
    weight_bytes: float

    @property
    def is_original(self) -> bool:
        """Whether it is the original VGGT, whose heads cannot be chosen."""
        return _base(self.name) in (ORIGINAL_FLOAT32, ORIGINAL_BFLOAT16)

    @property
    def multiplies_8_bits(self) -> bool:
        """Whether its linears are products of 8-bit numbers, whose peak is not measured."""
        return _base(self.name) in (INT4_INTEGERS, INT4_FP8)


def only_on_a_gpu(name: str) -> str:
    """Return why a contender takes no part without a CUDA device; nothing if it does."""
    if name.endswith(GRAPH):
        return "CUDA graphs need a CUDA device"
    return "only GPUs multiply 8-bit floats" if name == INT4_FP8 else ""


def _base(name: str) -> str:
    return name.removesuffix(GRAPH)


def build(
    names: Sequence[str],
    checkpoint: Path,
    heads: Sequence[str],
    device: torch.device,
    original: Path | None = None,
) -> list[Contender]:
    """Return the named contenders with the weights of a 4-bit checkpoint.

    Args:
        names: of `CONTENDERS`.
        checkpoint: 4-bit file of precision w4a16.
        heads: that ours have; the original has all.
        device: where they run.
        original: the original's clone; needed by its contenders.

    Raises:
        BenchmarkError: a name is unknown, the original is not there, or dense networks cannot be
            made of the checkpoint.
    """
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        raise BenchmarkError(f"unknown contenders {unknown}: choose from {', '.join(CONTENDERS)}")
    bases = [name for name in CONTENDERS if name in {_base(each) for each in names}]
    file = read_checkpoint(checkpoint)
    everything = file.config
    config = with_heads(everything, tuple(heads))
    originals = [name for name in bases if name in (ORIGINAL_FLOAT32, ORIGINAL_BFLOAT16)]
    built = list[Contender]()
    if set(bases) - set(_PACKED):
        full = everything if originals else config
        state = {name: tensor.to(device) for name, tensor in dense_state(file, full)}
        if originals:
            built += _originals(originals, original, everything, state)
        built += _dense_contenders(bases, config, state, device)
        del state
    del file
    for name, linears in _PACKED.items():
        if name in bases:
            settings = ComputeSettings(linears=linears)  # type: ignore[arg-type]
            packed = load_model(checkpoint, device, heads=heads).configure(settings)
            compute = next(packed.aggregator.parameters()).dtype
            built.append(Contender(name, packed, _forward(packed), compute, _INT4_BYTES))
    gc.collect()
    found = [each for each in built if each.name in names]
    found += [_graphed(each, device) for each in built if each.name + GRAPH in names]
    return sorted(found, key=lambda contender: CONTENDERS.index(contender.name))


def _originals(
    names: Sequence[str], original: Path | None, config: ModelConfig, state: Mapping[str, Tensor]
) -> Iterator[Contender]:
    if original is None:
        raise BenchmarkError(f"{names[0]!r} needs the directory of the original VGGT's clone")
    device = next(iter(state.values())).device
    model = load_original(original, config, state).to(device)
    for name in names:
        mixed = name == ORIGINAL_BFLOAT16
        yield Contender(name, model, _original_forward(model, mixed), _dtype(mixed), 4.0)


def _dense_contenders(
    names: Sequence[str], config: ModelConfig, state: Mapping[str, Tensor], device: torch.device
) -> Iterator[Contender]:
    for name in (FLOAT32, BFLOAT16):
        if name in names:
            dtype = _dtype(name == BFLOAT16)
            dense = _dense(config, state, dtype, device)
            yield Contender(name, dense, _forward(dense), dtype, float(dtype.itemsize))


def _graphed(contender: Contender, device: torch.device) -> Contender:
    if device.type != "cuda":
        raise BenchmarkError(f"{contender.name + GRAPH!r}: CUDA graphs need a CUDA device")
    forward = GraphedForward(contender.forward, partial(graphed, device=device))
    return replace(contender, name=contender.name + GRAPH, forward=forward)


def _dtype(is_16_bit: bool) -> torch.dtype:
    return torch.bfloat16 if is_16_bit else torch.float32


def _dense(
    config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> VGGT:
    with torch.device("meta"):
        model = VGGT(config).to_compute(dtype)
    wanted = {
        name: state[name].to(entry.dtype, memory_format=_format(entry))
        for name, entry in model.state_dict().items()
    }
    model.load_state_dict(wanted, assign=True)
    return model.to_compute(dtype).to(device).eval().requires_grad_(False)


def _format(entry: Tensor) -> torch.memory_format:
    if entry.dim() == 4 and entry.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _forward(model: VGGT) -> Forward:
    def forward(images: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
        wanted = [head for head in heads if head in available_heads(model.config)]
        prediction = model(images, heads=wanted)
        found: dict[str, Any] = {"depth": prediction.depth}
        found["pose"] = prediction.pose_encodings[-1] if prediction.pose_encodings else None
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    return forward


def _original_forward(model: nn.Module, is_mixed: bool) -> Forward:
    def forward(images: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
        with autocast(images.device) if is_mixed else nullcontext():
            return prediction_of(model(images))

    return forward


def autocast(device: torch.device) -> Any:
    """Return the context in which the original is run in 16 bits, as its authors show."""
    return torch.autocast(device.type, dtype=torch.bfloat16)
