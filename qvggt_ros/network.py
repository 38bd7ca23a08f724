"""Loads the network that the parameters name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import fastest_dtype

from qvggt_core.errors import ParameterError
from qvggt_core.model import HEADS, load_model, read_checkpoint, shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream import TorchNetwork

_SAID = ("base_model", "recipe", "group_size", "licence", "note")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to run.

    Attributes:
        network: the network.
        parameters: the given ones, with what was left to choose filled in: with these, another
            run computes the same on the same kind of machine.
        facts: for reports: `file`, `megabytes`, and what the file says of itself.
    """

    network: TorchNetwork
    parameters: Parameters
    facts: dict[str, Any]


def load_network(parameters: Parameters, with_points: bool = False) -> LoadedNetwork:
    """Load the network that the parameters name, or the one that ships.

    Args:
        parameters: which file, and how it computes.
        with_points: whether its point head is loaded too.

    Raises:
        CheckpointError: the file is missing or does not fit.
        ParameterError: the device is not there.
    """
    path = Path(parameters.checkpoint) if parameters.checkpoint else shipped_checkpoint()
    device = _device(parameters.device)
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    dtype = (
        fastest_dtype(device)
        if parameters.compute_dtype == "auto"
        else getattr(torch, parameters.compute_dtype)
    )
    heads = HEADS if with_points else ("camera", "depth")
    model = load_model(path, device=device, dtype=dtype, heads=heads)
    network = TorchNetwork(model, device, parameters.image_width, with_points)
    effective = parameters.with_values(
        checkpoint=str(path),
        device=device,
        compute_dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        image_width=network.image_width,
    )
    metadata = read_checkpoint(path).metadata
    facts: dict[str, Any] = {
        "file": path.name,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        **{name: metadata[name] for name in _SAID if name in metadata},
    }
    return LoadedNetwork(network, effective, facts)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError(f"there is no {name}: PyTorch sees no GPU; choose auto or cpu")
    return name
