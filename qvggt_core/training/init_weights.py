"""The weights that a training run starts from when it does not start at random."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from qvggt_kernels import PackedWeight, dequantize
from torch import Tensor

from qvggt_core.errors import CheckpointError, TrainingError
from qvggt_core.model import VGGT, Checkpoint, read_checkpoint

_QUANTIZED = ".qweight"
_SCALES = ".scales"


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
        network.load_state_dict(full_precision_state(checkpoint))
    except (CheckpointError, RuntimeError) as error:
        raise TrainingError(f"cannot start from {path}: {error}") from error


def full_precision_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return a checkpoint's entries in float32, 4-bit linears unpacked to plain weights."""
    state = {}
    for name in checkpoint.names():
        if name.endswith(_SCALES):
            continue
        tensor = checkpoint.tensor(name)
        if name.endswith(_QUANTIZED):
            path = name.removesuffix(_QUANTIZED)
            weight = PackedWeight(tensor, checkpoint.tensor(path + _SCALES))
            state[path + ".weight"] = dequantize(weight, torch.float32)
        else:
            state[name] = tensor.float()
    return state
