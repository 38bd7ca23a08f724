"""The weights that a training run starts from when it does not start at random."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from qvggt_kernels import (
    Int4Linear,
    IntegerLinear,
    PackedLinear,
    dequantize,
    hadamard_transform,
    unpack_integer,
)
from torch import Tensor

from qvggt_core.errors import CheckpointError, TrainingError
from qvggt_core.model import VGGT, load_model, read_checkpoint

_ALL_HEADS = ("camera", "depth", "points", "rays", "conditioning")


class InitialWeights(BaseModel):
    """A checkpoint that a run starts from.

    Attributes:
        file: checkpoint in 32, 16 or 4 bits; relative to the configuration's directory.
        sha256: hash of the file's bytes, so that a repeated run starts where the first one did.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def load_initial_weights(network: VGGT, weights: InitialWeights, directory: Path) -> None:
    """Copy a checkpoint's weights into a float32 network of the same sizes, in place.

    Raises:
        TrainingError: the file is missing, is another one, or holds a network of other sizes.
    """
    path = directory / weights.file
    try:
        checkpoint = read_checkpoint(path)
        found = checkpoint.sha256()
        if found != weights.sha256:
            raise TrainingError(
                f"{path} has the SHA-256 {found}, the configuration names {weights.sha256}: "
                "training from it would be another run"
            )
        start = load_model(path, dtype=torch.float32, heads=_ALL_HEADS)
        network.load_state_dict(full_precision_state(start))
    except (CheckpointError, RuntimeError) as error:
        raise TrainingError(f"cannot start from {path}: {error}") from error


def full_precision_state(network: VGGT) -> dict[str, Tensor]:
    """Return a loaded network's entries in float32, packed linears as the weights that they are.

    A packed linear multiplies its input, rotated (H) and scaled (S), by its numbers Q: the plain
    weight is Q S H, whose rows are those of Q S, rotated.
    """
    state = {name: tensor.float() for name, tensor in network.state_dict().items()}
    for path, linear in network.named_modules():
        if not isinstance(linear, PackedLinear):
            continue
        for name in linear.state_dict():
            if name != "bias":
                del state[f"{path}.{name}"]
        state[f"{path}.weight"] = _plain_weight(linear)
    return state


def _plain_weight(linear: PackedLinear) -> Tensor:
    if isinstance(linear, IntegerLinear):
        numbers = unpack_integer(linear.qweight).t().float() * linear.scales[:, None]
    else:
        assert isinstance(linear, Int4Linear)
        numbers = dequantize(linear.packed(), torch.float32)
    if linear.input_scale is not None:
        numbers = numbers * linear.input_scale
    return hadamard_transform(numbers, linear.rotation) if linear.rotation else numbers
