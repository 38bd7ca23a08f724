"""Sizes of published networks: Depth Anything 3 (Lin et al., 2025), LingBot-Map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qvggt_core.model.config import ModelConfig, StackConfig

_TRAINED_WIDTH = 504
"""Longest side in pixels of the images that the authors give to it."""


def _any_view(
    embed_dim: int,
    depth: int,
    alternate_from: int,
    taps: tuple[int, int, int, int],
    features: int,
    channels: tuple[int, int, int, int],
    feed_forward: Literal["gelu", "swiglu"] = "gelu",
) -> ModelConfig:
    return ModelConfig(
        img_size=_TRAINED_WIDTH,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // 64,
        num_register_tokens=0,
        encoder=None,
        stack=StackConfig(alternate_from, feed_forward),
        camera_head="decoder",
        camera_encoder=True,
        camera_to_world=True,
        dpt_features=features,
        dpt_out_channels=channels,
        taps=taps,
        point_head=False,
        ray_head=True,
    )


_WIDE = (256, 512, 1024, 1024)

DEPTH_ANYTHING_3: Mapping[str, ModelConfig] = {
    "da3-small": _any_view(384, 12, 4, (5, 7, 9, 11), 64, (48, 96, 192, 384)),
    "da3-base": _any_view(768, 12, 4, (5, 7, 9, 11), 128, (96, 192, 384, 768)),
    "da3-large": _any_view(1024, 24, 8, (11, 15, 19, 23), 256, _WIDE),
    "da3-giant": _any_view(1536, 40, 13, (19, 27, 33, 39), 256, _WIDE, "swiglu"),
    "da3metric-large": ModelConfig(
        img_size=_TRAINED_WIDTH,
        num_register_tokens=0,
        encoder=None,
        stack=StackConfig(alternate_from=None),
        camera_head="none",
        point_head=False,
        sky_head=True,
    ),
}
"""By the authors' names, with every part that the published files have."""

LINGBOT_MAP_STAGE1 = ModelConfig(scale_token=True, camera_to_world=True, point_head=False)
"""VGGT-1B with a scale token and camera-to-world poses, before it was trained to stream."""
