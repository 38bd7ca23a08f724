"""Alternating attention: every frame on its own, then the window as a whole, block by block."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from qvggt_core.model.blocks import Block, RotaryTable
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.encoder import Encoder, PatchEmbed
from qvggt_core.model.rope import RotaryTables

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

SCALE_REFERENCE_VIEWS = 8
"""First views of a window that take LingBot-Map's first scale token, later ones the second."""


class AggregatedTokens(NamedTuple):
    """All that the heads read of the aggregator, frame and global halves concatenated.

    Attributes:
        patches: patch tokens (B, D, P, 2C) of the four tapped blocks, for the last D frames; of
            width C in a network for single images.
        camera: camera tokens (B, S, 2C) of the last block; None in a network for single images.
        entering: patch tokens (B, S, P, C) that enter the first global block; None unless the
            network was trained to match, see `patch_similarity`.
    """

    patches: tuple[Tensor, ...]
    camera: Tensor | None
    entering: Tensor | None = None


class WindowState(NamedTuple):
    """The tokens of a window between two blocks.

    Attributes:
        x: all tokens (B, S, N, C).
        patches: what the tapped blocks so far have left for the heads, (B, D, P, 2C) each.
        frame_half: patch tokens (B, D, P, C) of the last frame block if the global block that is
            next is tapped.
        camera: camera tokens (B, S, C) of the last frame block, (B, S, 2C) after the last block.
        newest: number D of last frames whose patch tokens are left for the heads; None for all.
        entering: see `AggregatedTokens`.
    """

    x: Tensor
    patches: tuple[Tensor, ...] = ()
    frame_half: Tensor | None = None
    camera: Tensor | None = None
    newest: int | None = None
    entering: Tensor | None = None


Part = Literal["encoder", "frame", "global"]


class BlockPlace(NamedTuple):
    """Where a block stands in an aggregator.

    Attributes:
        path: of the block in the aggregator, e.g. "frame_blocks.3".
        part: "encoder" for what depends on one image alone, "frame" for attention within frames
            behind the first global block, "global" for attention across the window.
        number: of the block among those of its list.
        special_tokens: leading tokens of each frame that are no patch tokens.
    """

    path: str
    part: Part
    number: int
    special_tokens: int


class ImageNormaliser(nn.Module):
    """ImageNet's mean and deviation, which every DINOv2 was trained with."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            buffer = torch.tensor(values, device="cpu").view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to normalised ones (F, 3, H, W) in `dtype`."""
        normalised = (images - self.image_mean.to(images)) / self.image_std.to(images)
        return normalised.to(dtype).reshape(-1, *images.shape[-3:])


class Aggregator(nn.Module):
    """VGGT's backbone, under its checkpoint names."""

    scale_token: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.normaliser = ImageNormaliser()
        self.patch_embed: Encoder | PatchEmbed
        if config.encoder is None:
            self.patch_embed = PatchEmbed(config.patch_size, dim)
        else:
            self.patch_embed = Encoder(config.encoder, config.img_size, config.patch_size)
        # Index 0 is the first frame's, which is the world; index 1 is everyone else's.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, dim))
        scale = nn.Parameter(torch.zeros(1, 2, 1, dim)) if config.scale_token else None
        self.register_parameter("scale_token", scale)
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.rope = RotaryTables(dim // config.num_heads, config.num_special_tokens)

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
        return self.normaliser(images, self.camera_token.dtype)

    def forward(
        self, tokens: Tensor, rows: int, columns: int, newest: int | None = None
    ) -> AggregatedTokens:
        """Aggregate patch tokens (B, S, rows * columns, C) over frames and window.

        Patch tokens are left for the heads for the last `newest` frames, or for all.
        """
        rope = self.rope(rows, columns, tokens.device)
        state = self.enter(tokens, newest)
        for index in range(self.config.depth):
            state = self.frame_step(state, index, rope)
            state = self.global_step(state, index, rope)
        assert state.camera is not None
        return AggregatedTokens(state.patches, state.camera, state.entering)

    def enter(self, tokens: Tensor, newest: int | None = None) -> WindowState:
        """Put the special tokens before the patch tokens (B, S, P, C) of every frame."""
        x = torch.cat([self._special_tokens(tokens), tokens], dim=2)
        return WindowState(x, newest=newest)

    def frame_step(self, state: WindowState, index: int, rope: RotaryTable) -> WindowState:
        """Run a frame block; without gradients it overwrites the tokens that it is given."""
        x = self.frame_blocks[index](state.x, rope)
        # Blocks overwrite their input without gradients, so what is kept is copied now.
        half = self._read(x, state).clone() if index in self.config.taps else None
        camera = x[:, :, 0].clone() if index == self.config.depth - 1 else None
        state = state._replace(x=x, frame_half=half, camera=camera)
        if index > 0 or not self.config.matching:
            return state
        return state._replace(entering=x[:, :, self.config.num_special_tokens :].clone())

    def global_step(self, state: WindowState, index: int, rope: RotaryTable) -> WindowState:
        """Run a global block and keep what heads read of the pair of blocks."""
        x = self.global_blocks[index](state.x, rope, across_frames=True)
        patches, half, camera = state.patches, state.frame_half, state.camera
        if half is not None:
            patches = (*patches, torch.cat([half, self._read(x, state)], dim=-1))
        if camera is not None:
            camera = torch.cat([camera, x[:, :, 0]], dim=-1)
        return WindowState(x, patches, None, camera, state.newest, state.entering)

    def places(self) -> list[BlockPlace]:
        """Return the blocks in the order in which they run, encoder included."""
        special, encoder = self.config.num_special_tokens, self.patch_embed
        found: list[BlockPlace] = []
        if isinstance(encoder, Encoder):
            found += [
                BlockPlace(f"patch_embed.blocks.{i}", "encoder", i, encoder.num_special_tokens)
                for i in range(len(encoder.blocks))
            ]
        for index in range(self.config.depth):
            found.append(BlockPlace(f"frame_blocks.{index}", "frame", index, special))
            found.append(BlockPlace(f"global_blocks.{index}", "global", index, special))
        return found

    def start(self, images: Tensor) -> WindowState:
        """Return the tokens of windows (B, S, 3, H, W) before the first of `places`."""
        if not isinstance(self.patch_embed, Encoder):
            return self.enter(self.encode(images))
        x = self.patch_embed.enter(self.normalise(images))
        return WindowState(x[:, 0].unflatten(0, images.shape[:2]))

    def rope_at(
        self, place: BlockPlace, rows: int, columns: int, device: torch.device
    ) -> RotaryTable | None:
        """Return the rotary tables that the block at a place reads, see `RotaryTables`."""
        return None if place.part == "encoder" else self.rope(rows, columns, device)

    def step(self, state: WindowState, place: BlockPlace, rows: int, columns: int) -> WindowState:
        """Run the block at a place; without gradients it overwrites the tokens that it is given."""
        if place.part != "encoder":
            run = self.frame_step if place.part == "frame" else self.global_step
            return run(state, place.number, self.rope(rows, columns, state.x.device))
        encoder = self.patch_embed
        assert isinstance(encoder, Encoder)
        x = encoder.blocks[place.number](state.x)
        if place.number + 1 < len(encoder.blocks):
            return WindowState(x)
        tokens = encoder.leave(x.flatten(0, 1)[:, None])
        return self.enter(tokens.unflatten(0, x.shape[:2]))

    def _read(self, x: Tensor, state: WindowState) -> Tensor:
        """Return the patch tokens of the frames that the dense heads read."""
        first = 0 if state.newest is None else max(0, x.shape[1] - state.newest)
        return x[:, first:, self.config.num_special_tokens :]

    def _special_tokens(self, tokens: Tensor) -> Tensor:
        batch, frames = tokens.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2).to(tokens.dtype)
        others = special[:, 1:].expand(batch, frames - 1, -1, -1)
        leading = torch.cat([special[:, :1].expand(batch, -1, -1, -1), others], dim=1)
        if self.scale_token is None:
            return leading
        later = torch.arange(frames, device=tokens.device) >= SCALE_REFERENCE_VIEWS
        scale = self.scale_token[0, later.long()].to(tokens.dtype)
        return torch.cat([leading, scale.expand(batch, -1, -1, -1)], dim=2)
