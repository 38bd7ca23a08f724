"""The authors' Depth Anything 3: their code from a clone, random weights of a published shape.

The clone (github.com/ByteDance-Seed/Depth-Anything-3) lies outside of this repository, with addict,
einops and omegaconf installed; it is imported, nothing of it is part of this package.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Answer = tuple[Tensor, Tensor]
"""Depth (S, H, W) and world-to-camera rotations and translations (S, 3, 4), float32."""


class Original(nn.Module):
    """The authors' network on normalised images, with what they return of depth and cameras."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (1, S, 3, H, W) to depth (1, S, H, W) and extrinsics (1, S, 3, 4).

        The reference view is the first: 16 bits may choose another one, and all poses with it.
        """
        found = self.network(images, ref_view_strategy="first")
        return found["depth"], found["extrinsics"]


def original_network(clone: Path, weights: Path) -> Original:
    """Load published weights, a folder, into the authors' code."""
    name = json.loads((weights / "config.json").read_text())["model_name"]
    network = _network(clone, name)
    state = load_file(weights / "model.safetensors")
    network.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    return Original(network.eval().requires_grad_(False))


def write_random_weights(clone: Path, name: str, folder: Path) -> None:
    """Write a folder like a published one of `name` ("da3-small") with weights drawn from names."""
    state = _network(clone, name).state_dict()
    filled = {f"model.{key}": _drawn(key, value.shape) for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(filled, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_name": name}), encoding="utf-8")


def window(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return smooth images (1, S, 3, H, W) in [0, 1] that move a little from view to view."""
    s, c, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (frames, 3, height, width)), indexing="ij"
    )
    along_x = torch.sin(0.05 * (c + 1) * x + 0.3 * s + seed)
    wave = along_x * torch.cos(0.04 * (c + 2) * y - 0.2 * s - 2 * seed)
    return (0.5 + 0.5 * wave)[None]


def normalised(images: Tensor) -> Tensor:
    """Return images as the authors' network takes them."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (images - mean) / deviation


def without_what_converters_lack() -> None:
    """Replace two operators that OpenVINO and ONNX cannot convert by others that compute the same.

    After the authors' code was imported.
    """
    import depth_anything_3.model.da3 as original

    def product(*axes: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)

    def inverse(pose: Tensor) -> Tensor:
        rotation = pose[..., :3, :3].transpose(-1, -2)
        upper = torch.cat([rotation, -rotation @ pose[..., :3, 3:]], dim=-1)
        return torch.cat([upper, pose[..., 3:, :]], dim=-2)

    torch.cartesian_prod = product
    original.affine_inverse = inverse


def deviation(found: Answer, wanted: Answer) -> dict[str, float]:
    """Return the mean relative difference of depth, and the mean angle between rotations."""
    relative = (found[0].double() / wanted[0].double() - 1.0).abs().mean()
    rotations = [pose[:, :, :3].double() for pose in (found[1], wanted[1])]
    chord = (rotations[0] - rotations[1]).flatten(1).norm(dim=1) / 8**0.5
    angle = torch.rad2deg(2 * torch.asin(chord.clamp(max=1))).mean()
    return {"depth": float(relative), "rotation_deg": float(angle)}


def _network(clone: Path, name: str) -> nn.Module:
    sys.path.insert(0, str(clone / "src"))
    from depth_anything_3.cfg import create_object, load_config
    from depth_anything_3.registry import MODEL_REGISTRY
    from depth_anything_3.utils.logger import logger

    logger.level = 0
    network: nn.Module = create_object(load_config(MODEL_REGISTRY[name]))
    return network


def _drawn(name: str, shape: torch.Size) -> Tensor:
    """Return random numbers of a size that keeps every step of the network alive."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "gamma":
        return 0.3 + 0.1 * values
    if leaf == "weight" and len(shape) < 2:
        return 1.0 + 0.1 * values
    if leaf == "bias":
        return 0.1 * values
    if leaf == "weight":
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.5 * values
