"""Alternating attention: every frame on its own, then the window as a whole, block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qvggt_core.model.blocks import Block, RotaryTable
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.encoder import Encoder, PatchEmbed
from qvggt_core.model.rope import RotaryTables

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class AggregatedTokens(NamedTuple):
    """All that the heads read of the aggregator, frame and global halves concatenated.

    Attributes:
        patches: patch tokens (B, D, P, 2C) of the four tapped blocks, for the last D frames.
        camera: camera tokens (B, S, 2C) of the last block.
    """

    patches: tuple[Tensor, ...]
    camera: Tensor


class Passage(NamedTuple):
    """Where a window stands between two blocks.

    Attributes:
        x: all tokens (B, S, N, C).
        patches: what the tapped blocks so far have left for the heads, (B, D, P, 2C) each.
        frame_half: patch tokens (B, D, P, C) of a tapped frame block whose global block is next.
        camera: camera tokens (B, S, C) of the last frame block, (B, S, 2C) after the last block.
        newest: number D of last frames whose patch tokens are left for the heads; None for all.
    """

    x: Tensor
    patches: tuple[Tensor, ...] = ()
    frame_half: Tensor | None = None
    camera: Tensor | None = None
    newest: int | None = None


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
        tokens = self.patch_embed(self.normalise(images))
        return tokens.reshape(*images.shape[:-3], *tokens.shape[1:])

    def normalise(self, images: Tensor) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to what the patch embedding reads, (F, ...)."""
        normalised = (images - self.image_mean.to(images)) / self.image_std.to(images)
        return normalised.to(self.camera_token.dtype).reshape(-1, *images.shape[-3:])

    def forward(
        self, tokens: Tensor, rows: int, columns: int, newest: int | None = None
    ) -> AggregatedTokens:
        """Aggregate patch tokens (B, S, rows * columns, C) over frames and window.

        Patch tokens are left for the heads for the last `newest` frames, or for all.
        """
        rope = self.rope(rows, columns, tokens.device)
        passage = self.enter(tokens, newest)
        for index in range(self.config.depth):
            passage = self.frame_step(passage, index, rope)
            passage = self.global_step(passage, index, rope)
        assert passage.camera is not None
        return AggregatedTokens(passage.patches, passage.camera)

    def enter(self, tokens: Tensor, newest: int | None = None) -> Passage:
        """Put the special tokens before the patch tokens (B, S, P, C) of every frame."""
        x = torch.cat([self._special_tokens(tokens), tokens], dim=2)
        return Passage(x, newest=newest)

    def frame_step(self, passage: Passage, index: int, rope: RotaryTable) -> Passage:
        """Run a frame block; without gradients it overwrites the tokens that it is given."""
        x = self.frame_blocks[index](passage.x, rope)
        # Blocks overwrite their input without gradients, so what is kept is copied now.
        half = self._read(x, passage).clone() if index in self.config.taps else None
        camera = x[:, :, 0].clone() if index == self.config.depth - 1 else None
        return passage._replace(x=x, frame_half=half, camera=camera)

    def global_step(self, passage: Passage, index: int, rope: RotaryTable) -> Passage:
        """Run a global block and keep what heads read of the pair of blocks."""
        x = self.global_blocks[index](passage.x, rope, across_frames=True)
        patches, half, camera = passage.patches, passage.frame_half, passage.camera
        if half is not None:
            patches = (*patches, torch.cat([half, self._read(x, passage)], dim=-1))
        if camera is not None:
            camera = torch.cat([camera, x[:, :, 0]], dim=-1)
        return Passage(x, patches, None, camera, passage.newest)

    def _read(self, x: Tensor, passage: Passage) -> Tensor:
        """Return the patch tokens of the frames that the dense heads read."""
        first = 0 if passage.newest is None else max(0, x.shape[1] - passage.newest)
        return x[:, first:, self.config.num_special_tokens :]

    def _special_tokens(self, tokens: Tensor) -> Tensor:
        batch, frames = tokens.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2).to(tokens.dtype)
        others = special[:, 1:].expand(batch, frames - 1, -1, -1)
        return torch.cat([special[:, :1].expand(batch, -1, -1, -1), others], dim=1)
