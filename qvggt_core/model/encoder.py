"""Images to patch tokens, one frame independent of the next: a DINOv2-style ViT or one convolution.

That independence is what lets a sliding window keep a frame's tokens while the frame stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.blocks import Block
from qvggt_core.model.config import EncoderConfig
from qvggt_core.model.lru import RecentCache

_NORM_EPS = 1e-6
_REGISTERS = 4


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped to a token by one convolution."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (F, 3, H, W) to tokens (F, P, C), row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class _Positions(NamedTuple):
    """What is put before and added to the patches of a grid."""

    leading: Tensor  # (1, 5, C): class token with its position, registers
    patches: Tensor  # (1, P, C)


class Encoder(nn.Module):
    """DINOv2's ViT with registers, under its checkpoint names; keeps the patch tokens only."""

    def __init__(self, config: EncoderConfig, img_size: int, patch_size: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.side = img_size // patch_size
        self.num_special_tokens = 1 + _REGISTERS
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2 + 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, _REGISTERS, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, 4.0, layer_scale=1.0, norm_eps=_NORM_EPS)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.patch_size = patch_size
        self._tables = RecentCache[_Positions]()
        self._made_of: list[tuple[nn.Parameter, int]] = []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        # A cast rounds the parameter that the tables were made of.
        self._tables.clear()
        super()._apply(fn, recurse)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (F, 3, H, W) to tokens (F, P, C), row by row."""
        x = self.enter(images)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)

    def enter(self, images: Tensor) -> Tensor:
        """Map normalised images (F, 3, H, W) to the first block's tokens (F, 1, 5 + P, C)."""
        frames, _, height, width = images.shape
        patches = self.patch_embed(images)
        grid = (height // self.patch_size, width // self.patch_size)
        if torch.is_grad_enabled():
            positions = self._positions(*grid, patches.dtype)
        else:
            positions = self._kept_positions(*grid, patches.dtype)
        leading = positions.leading.expand(frames, -1, -1)
        return torch.cat([leading, patches + positions.patches], dim=1)[:, None]

    def leave(self, x: Tensor) -> Tensor:
        """Map the last block's tokens (F, 1, 5 + P, C) to patch tokens (F, P, C)."""
        return self.norm(x[:, 0, self.num_special_tokens :])

    @torch.compiler.assume_constant_result
    def _kept_positions(self, rows: int, columns: int, dtype: torch.dtype) -> _Positions:
        parameters = (self.pos_embed, self.cls_token, self.register_tokens)
        # Inference tensors do not count their changes.
        now = [(p, -1 if p.is_inference() else p._version) for p in parameters]
        if len(self._made_of) != len(now) or any(
            was is not p or changes != before
            for (p, changes), (was, before) in zip(now, self._made_of, strict=True)
        ):
            self._tables.clear()
            self._made_of = now
        key = (rows, columns, dtype)
        return self._tables.get(key, lambda: self._lasting_positions(rows, columns, dtype))

    # Tables outlive the inference mode that may have asked for them first.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _lasting_positions(self, rows: int, columns: int, dtype: torch.dtype) -> _Positions:
        return self._positions(rows, columns, dtype)

    def _positions(self, rows: int, columns: int, dtype: torch.dtype) -> _Positions:
        cls_position, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (rows, columns) != (self.side, self.side):
            grid = grid.float().unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
            grid = grid.flatten(2).transpose(1, 2)
        leading = torch.cat([self.cls_token + cls_position, self.register_tokens], dim=1)
        return _Positions(leading.to(dtype), grid.to(dtype))
