"""Small networks with random weights whose blocks matter, for the tests of quantization."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qvggt_core.model import VGGT, EncoderConfig, ModelConfig, StackConfig

TINY = ModelConfig(
    img_size=56,
    embed_dim=64,
    depth=4,
    num_heads=2,
    encoder=None,
    camera_trunk_depth=1,
    camera_num_heads=4,
    camera_iterations=2,
    dpt_features=16,
    dpt_out_channels=(16, 16, 16, 16),
    taps=(0, 1, 2, 3),
    point_head=False,
)

ENCODED = replace(
    TINY,
    encoder=EncoderConfig(64, 2, 2),
    camera_trunk_depth=4,
    camera_num_heads=2,
    camera_iterations=4,
    dpt_out_channels=(8, 8, 16, 16),
    point_head=True,
)
"""With an encoder and both dense heads."""


def open_state(config: ModelConfig = TINY) -> dict[str, Tensor]:
    """Return initial weights with open LayerScales, which start small enough to hide a block."""
    torch.manual_seed(0)
    state = VGGT(config).initialise().state_dict()
    return {k: torch.full_like(v, 0.5) if k.endswith("gamma") else v for k, v in state.items()}


STACK = ModelConfig(
    img_size=56,
    embed_dim=64,
    depth=10,
    num_heads=1,
    num_register_tokens=0,
    encoder=None,
    stack=StackConfig(alternate_from=2),
    position_grid=4,
    camera_head="decoder",
    camera_encoder=True,
    camera_num_heads=16,
    camera_to_world=True,
    dpt_features=16,
    dpt_out_channels=(16, 16, 16, 16),
    taps=(3, 5, 7, 9),
    point_head=False,
    ray_head=True,
)
"""Depth Anything 3 as a toy: two blocks that see one view alone, then eight that alternate."""

SINGLE_VIEW_STACK = replace(
    STACK,
    stack=StackConfig(alternate_from=None),
    camera_head="none",
    camera_encoder=False,
    camera_to_world=False,
    ray_head=False,
    sky_head=True,
)
"""Its metric relative for single images."""
