"""One DINOv2 ViT whose later blocks alternate between frame and window (Depth Anything 3).

Encoder and aggregator are one stack. The blocks before the alternation see one view alone: what
they give is kept while the view stays in a sliding window. From the alternation on, even blocks
attend within a view and odd ones across the window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.aggregator import (
    AggregatedTokens,
    BlockPlace,
    ImageNormaliser,
    Part,
    WindowState,
)
from qvggt_core.model.blocks import Block, RotaryTable
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.encoder import BLOCK_NORM_EPS, PatchEncoder
from qvggt_core.model.reference_view import choose_reference
from qvggt_core.model.rope import RotaryTables
from qvggt_core.model.settings import ComputeSettings

_POSITION_OFFSET = 0.1
"""Patches by which DINOv2 enlarges the wanted grid when it resamples its position embedding."""


class InterleavedAggregator(PatchEncoder):
    """Depth Anything 3's backbone, under its checkpoint names.

    An encoded view has one token more than it has patches. It comes first and is the view's class
    token as it enters the last block that sees the view alone: the reference view is chosen by it,
    after which the alternation puts camera tokens in its place. A network for single images
    encodes a view as its embedded patches behind its class token, and runs all blocks on them.
    """

    settings = ComputeSettings()

    camera_token: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        assert config.stack is not None
        dim = config.embed_dim
        super().__init__(dim, config.position_grid, config.patch_size, registers=0)
        self.config = config
        self.start_block = config.stack.alternate_from
        # Index 0 is the reference view's, index 1 everyone else's.
        token = None if self.start_block is None else nn.Parameter(torch.zeros(1, 2, dim))
        self.register_parameter("camera_token", token)
        self.blocks = nn.ModuleList(self._block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.normaliser = ImageNormaliser()
        head_dim = dim // config.num_heads
        self.rope = RotaryTables(head_dim, self.num_special_tokens)
        self.global_rope = RotaryTables(head_dim, self.num_special_tokens, patches_share_place=True)

    def _block(self, config: ModelConfig, index: int) -> Block:
        assert config.stack is not None
        return Block(
            config.embed_dim,
            config.num_heads,
            config.mlp_ratio,
            layer_scale=1.0,
            qk_norm=self.start_block is not None and index >= self.start_block,
            norm_eps=BLOCK_NORM_EPS,
            gated=config.stack.feed_forward == "swiglu",
        )

    @property
    def own_blocks(self) -> int:
        """Number of blocks that `encode` runs."""
        return self.start_block or 0

    def encode(self, images: Tensor) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to tokens (..., 1 + P, C), see the class."""
        x = super().enter(self.normaliser(images, self.cls_token.dtype))
        for index in range(self.own_blocks):
            x = self._own_block(x, index)
        return x[:, 0].reshape(*images.shape[:-3], *x.shape[2:])

    def _own_block(self, x: Tensor, index: int) -> Tensor:
        if index < self.own_blocks - 1:
            return self.blocks[index](x)
        # Blocks overwrite their input without gradients, so what is kept is copied now.
        entering = x[:, :, :1].clone()
        return torch.cat([entering, self.blocks[index](x)[:, :, 1:]], dim=2)

    def forward(
        self,
        tokens: Tensor,
        rows: int,
        columns: int,
        newest: int | None = None,
        conditioned: bool = False,
    ) -> AggregatedTokens:
        """Aggregate encoded views (B, S, 1 + rows * columns, C) over frames and window.

        Args:
            tokens: what `encode` gave; conditioned, with camera tokens in the first places.
            rows: of the patch grid.
            columns: of the patch grid.
            newest: number of last frames whose patch tokens are left for the heads; None for all.
            conditioned: whether the cameras are known.
        """
        state = self.window(tokens, newest, conditioned)
        for place in self.places()[self.own_blocks :]:
            state = self.step(state, place, rows, columns)
        return AggregatedTokens(state.patches, state.camera)

    def window(
        self, tokens: Tensor, newest: int | None = None, conditioned: bool = False
    ) -> WindowState:
        """Return encoded views (B, S, 1 + P, C) as they enter the alternation."""
        if self.camera_token is None or conditioned:
            return WindowState(tokens.clone(), newest=newest)
        reference = choose_reference(tokens[:, :, 0], self.settings.reference_view)
        views = torch.arange(tokens.shape[1], device=tokens.device)
        is_other = (views != reference[:, None]).long()
        # The views keep their order: nothing but this token sets them apart.
        leading = self.camera_token[0].to(tokens.dtype)[is_other]
        return WindowState(torch.cat([leading[:, :, None], tokens[:, :, 1:]], 2), newest=newest)

    def places(self) -> list[BlockPlace]:
        """See `Aggregator.places`."""
        found = []
        for index in range(self.config.depth):
            is_global = index >= self.own_blocks > 0 and index % 2 == 1
            part: Part = "global" if is_global else "frame"
            if index < self.own_blocks:
                part = "encoder"
            found.append(BlockPlace(f"blocks.{index}", part, index, self.num_special_tokens))
        return found

    def start(self, images: Tensor) -> WindowState:
        """See `Aggregator.start`."""
        x = super().enter(self.normaliser(images, self.cls_token.dtype))
        tokens = x[:, 0].unflatten(0, images.shape[:2])
        return WindowState(tokens) if self.own_blocks else self.window(tokens)

    def rope_at(
        self, place: BlockPlace, rows: int, columns: int, device: torch.device
    ) -> RotaryTable | None:
        """See `Aggregator.rope_at`."""
        if self.start_block is None or place.part == "encoder":
            return None
        tables = self.global_rope if place.part == "global" else self.rope
        return tables(rows, columns, device)

    def step(self, state: WindowState, place: BlockPlace, rows: int, columns: int) -> WindowState:
        """See `Aggregator.step`."""
        if place.part == "encoder":
            x = self._own_block(state.x, place.number)
            last = place.number == self.own_blocks - 1
            return self.window(x, state.newest) if last else WindowState(x, newest=state.newest)
        rope = self.rope_at(place, rows, columns, state.x.device)
        is_global = place.part == "global"
        x = self.blocks[place.number](state.x, rope, across_frames=is_global)
        state = state._replace(x=x)
        if self.start_block is None:
            if place.number not in self.config.taps:
                return state
            return state._replace(patches=(*state.patches, self.norm(self._read(state))))
        if is_global:
            return self._after_global(state)
        following, config = place.number + 1, self.config
        half = self._read(state).clone() if following in config.taps else None
        camera = x[:, :, 0].clone() if following == config.depth - 1 else None
        return state._replace(frame_half=half, camera=camera)

    def _after_global(self, state: WindowState) -> WindowState:
        camera = state.camera
        if camera is not None:
            camera = torch.cat([camera, state.x[:, :, 0]], dim=-1)
        patches = state.patches
        if state.frame_half is not None:
            # The frame half is left as it is, the window's half is normed.
            tap = torch.cat([state.frame_half, self.norm(self._read(state))], dim=-1)
            patches = (*patches, tap)
        return WindowState(state.x, patches, None, camera, state.newest)

    def _read(self, state: WindowState) -> Tensor:
        """Return the patch tokens of the frames that the dense heads read."""
        frames = state.x.shape[1]
        first = 0 if state.newest is None else max(0, frames - state.newest)
        return state.x[:, first:, self.num_special_tokens :]

    def resampled(self, grid: Tensor, rows: int, columns: int) -> Tensor:
        """See the base class; by a scale that is a tenth of a patch too large, not antialiased."""
        scale = tuple((wanted + _POSITION_OFFSET) / self.side for wanted in (rows, columns))
        return F.interpolate(grid, scale_factor=scale, mode="bicubic")
