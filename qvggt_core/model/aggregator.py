"""Alternating attention: every frame on its own, then the window as a whole, block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qvggt_core.model.blocks import Block
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.encoder import Encoder, PatchEmbed
from qvggt_core.model.rope import RotaryTables

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class AggregatedTokens(NamedTuple):
    """All that the heads read of the aggregator, frame and global halves concatenated.

    Attributes:
        patches: patch tokens (B, S, P, 2C) of the four tapped blocks.
        camera: camera tokens (B, S, 2C) of the last block.
    """

    patches: tuple[Tensor, ...]
    camera: Tensor


class Aggregator(nn.Module):
    """VGGT's backbone, under its checkpoint names."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.patch_embed: Encoder | PatchEmbed
        if config.encoder is None:
            self.patch_embed = PatchEmbed(config.patch_size, dim)
        else:
            self.patch_embed = Encoder(config.encoder, config.img_size, config.patch_size)
        # Index 0 is the first frame's, which is the world; index 1 is everyone else's.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, dim))
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.rope = RotaryTables(dim // config.num_heads, config.num_special_tokens)
        for name, values in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            buffer = torch.tensor(values, device="cpu").view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def _block(self) -> Block:
        config = self.config
        return Block(
            config.embed_dim,
            config.num_heads,
            config.mlp_ratio,
            layer_scale=config.layer_scale,
            qk_norm=True,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to patch tokens (..., P, C)."""
        weight = self.camera_token
        normalised = (images - self.image_mean.to(images)) / self.image_std.to(images)
        frames = normalised.to(weight.dtype).reshape(-1, *images.shape[-3:])
        tokens = self.patch_embed(frames)
        return tokens.reshape(*images.shape[:-3], *tokens.shape[1:])

    def forward(self, tokens: Tensor, rows: int, columns: int) -> AggregatedTokens:
        """Aggregate patch tokens (B, S, rows * columns, C) over frames and window."""
        config = self.config
        start = config.num_special_tokens
        rope = self.rope(rows, columns, tokens.device)
        x = torch.cat([self._special_tokens(tokens), tokens], dim=2)
        patches: list[Tensor] = []
        camera = x[:, :, 0]
        for index, (frame_block, global_block) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            tapped = index in config.taps
            x = frame_block(x, rope)
            # Blocks overwrite their input without gradients, so what is kept is copied now.
            frame_half = x[:, :, start:].clone() if tapped else None
            frame_camera = x[:, :, 0].clone() if index == config.depth - 1 else None
            x = global_block(x, rope, across_frames=True)
            if frame_half is not None:
                patches.append(torch.cat([frame_half, x[:, :, start:]], dim=-1))
                del frame_half
            if frame_camera is not None:
                camera = torch.cat([frame_camera, x[:, :, 0]], dim=-1)
        return AggregatedTokens(tuple(patches), camera)

    def _special_tokens(self, tokens: Tensor) -> Tensor:
        batch, frames = tokens.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2).to(tokens.dtype)
        others = special[:, 1:].expand(batch, frames - 1, -1, -1)
        return torch.cat([special[:, :1].expand(batch, -1, -1, -1), others], dim=1)
