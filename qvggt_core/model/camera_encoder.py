"""Known cameras to tokens that condition the network (Depth Anything 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qvggt_core.model.blocks import Block, Mlp
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.pose_encoding import SIZE, encode_pose, invert_pose

MIN_DISTANCE = 0.1
"""Smallest length that camera centres are divided by, in the unit in which they are given."""


class NormalisedCameras(NamedTuple):
    """Cameras as the camera encoder reads them.

    Attributes:
        camera_from_world: (..., S, 3, 4); the first camera is the world, and lengths are in
            `unit`.
        unit: (...,) length of one unit in the unit of the given cameras.
    """

    camera_from_world: Tensor
    unit: Tensor


def normalise_cameras(camera_from_world: Tensor) -> NormalisedCameras:
    """Bring cameras to the gauge of the network's training.

    The first camera becomes the world. The unit becomes the median distance of all centres from
    the first, its own zero included, but at least 0.1.

    Args:
        camera_from_world: (..., S, 3, 4) or (..., S, 4, 4), rigid, optical axes.
    """
    rotation, translation = camera_from_world[..., :3, :3], camera_from_world[..., :3, 3]
    first, origin = rotation[..., :1, :, :], translation[..., :1, :]
    relative = rotation @ first.transpose(-1, -2)
    moved = translation - (relative @ origin[..., None])[..., 0]
    # A rotation leaves lengths: |centre| = |-R^T t| = |t|.
    unit = moved.norm(dim=-1).median(dim=-1).values.clamp_min(MIN_DISTANCE)
    moved = moved / unit[..., None, None]
    return NormalisedCameras(torch.cat([relative, moved[..., None]], dim=-1), unit)


class CameraEncoder(nn.Module):
    """Depth Anything 3's camera encoder, under its checkpoint names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pose_branch = Mlp(SIZE, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(
            Block(dim, config.camera_num_heads, config.mlp_ratio, layer_scale=config.layer_scale)
            for _ in range(config.camera_trunk_depth)
        )
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(
        self, camera_from_world: Tensor, intrinsics: Tensor, height: int, width: int
    ) -> Tensor:
        """Return the camera tokens (B, S, C) of known cameras.

        Args:
            camera_from_world: (B, S, 3, 4) as `normalise_cameras` gives them.
            intrinsics: (B, S, 3, 3) in pixels.
            height: of the images, pixels.
            width: of the images, pixels.
        """
        encoding = invert_pose(encode_pose(camera_from_world, intrinsics, height, width))
        dtype = self.token_norm.weight.dtype
        x = self.token_norm(self.pose_branch(encoding.to(dtype)))[:, None]
        for block in self.trunk:
            x = block(x)
        return self.trunk_norm(x[:, 0])
