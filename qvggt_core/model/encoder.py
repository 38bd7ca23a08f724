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
from qvggt_core.model.lru import LruCache

BLOCK_NORM_EPS = 1e-6
"""Of the norms in a block of DINOv2."""

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

    leading: Tensor  # (1, L, C): class token with its position, registers
    patches: Tensor  # (1, P, C)


class PatchEncoder(nn.Module):
    """The entrance of a DINOv2 ViT: patches, class token, registers and learned positions.

    Positions were learned on a square grid and are resampled for others, once per grid.
    """

    register_tokens: nn.Parameter | None

    def __init__(self, dim: int, side: int, patch_size: int, registers: int) -> None:
        """Prepare.

        Args:
            dim: token width C.
            side: of the grid that positions are learned on, patches.
            patch_size: pixels.
            registers: number of register tokens.
        """
        super().__init__()
        self.side = side
        self.patch_size = patch_size
        self.num_special_tokens = 1 + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2 + 1, dim))
        tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.register_parameter("register_tokens", tokens)
        self.patch_embed = PatchEmbed(patch_size, dim)
        self._tables = LruCache[_Positions]()
        self._tables_made_of: list[tuple[nn.Parameter, int]] = []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PatchEncoder:
        # A cast rounds the parameter that the tables were made of.
        self._tables.clear()
        super()._apply(fn, recurse)
        return self

    def enter(self, images: Tensor) -> Tensor:
        """Map normalised images (F, 3, H, W) to the first block's tokens (F, 1, L + P, C)."""
        frames, _, height, width = images.shape
        patches = self.patch_embed(images)
        grid = (height // self.patch_size, width // self.patch_size)
        if torch.is_grad_enabled():
            positions = self._positions(*grid, patches.dtype)
        else:
            positions = self._kept_positions(*grid, patches.dtype)
        leading = positions.leading.expand(frames, -1, -1)
        return torch.cat([leading, patches + positions.patches], dim=1)[:, None]

    def resampled(self, grid: Tensor, rows: int, columns: int) -> Tensor:
        """Resample learned positions (1, C, side, side) float32 to (1, C, rows, columns)."""
        raise NotImplementedError

    @torch.compiler.assume_constant_result
    def _kept_positions(self, rows: int, columns: int, dtype: torch.dtype) -> _Positions:
        sources = (self.pos_embed, self.cls_token, self.register_tokens)
        # Inference tensors do not count their changes.
        now = [(p, -1 if p.is_inference() else p._version) for p in sources if p is not None]
        if len(self._tables_made_of) != len(now) or any(
            was is not p or changes != before
            for (p, changes), (was, before) in zip(now, self._tables_made_of, strict=True)
        ):
            self._tables.clear()
            self._tables_made_of = now
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
            grid = self.resampled(grid, rows, columns).flatten(2).transpose(1, 2)
        leading = self.cls_token + cls_position
        if self.register_tokens is not None:
            leading = torch.cat([leading, self.register_tokens], dim=1)
        return _Positions(leading.to(dtype), grid.to(dtype))


class Encoder(PatchEncoder):
    """DINOv2's ViT with registers, under its checkpoint names; keeps the patch tokens only."""

    def __init__(self, config: EncoderConfig, img_size: int, patch_size: int) -> None:
        dim = config.embed_dim
        super().__init__(dim, img_size // patch_size, patch_size, _REGISTERS)
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, 4.0, layer_scale=1.0, norm_eps=BLOCK_NORM_EPS)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (F, 3, H, W) to tokens (F, P, C), row by row."""
        x = self.enter(images)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)

    def leave(self, x: Tensor) -> Tensor:
        """Map the last block's tokens (F, 1, 5 + P, C) to patch tokens (F, P, C)."""
        return self.norm(x[:, 0, self.num_special_tokens :])

    def resampled(self, grid: Tensor, rows: int, columns: int) -> Tensor:
        """See the base class; antialiased, as VGGT was trained."""
        return F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
