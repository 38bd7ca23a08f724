"""2D rotary position embedding: half of each head turns with the row, half with the column."""

from __future__ import annotations

import torch
from torch import Tensor

from qvggt_core.model.lru import LruCache

_BASE = 100.0


class RotaryTables:
    """Cosine and sine tables per patch grid, float32, computed once and kept.

    Special tokens sit at position (0, 0), where the rotation is the identity; the patch of
    row y and column x sits at (y + 1, x + 1). No frame index is encoded (VGGT).
    """

    def __init__(
        self, head_dim: int, num_special_tokens: int, *, patches_share_place: bool = False
    ) -> None:
        """Prepare.

        Args:
            head_dim: width of an attention head, a multiple of 4.
            num_special_tokens: leading tokens of a frame.
            patches_share_place: all patches sit at (1, 1), so that only special tokens are set
                apart by their place (global blocks of Depth Anything 3).
        """
        self.head_dim = head_dim
        self.num_special_tokens = num_special_tokens
        self._patches_share_place = patches_share_place
        self._tables = LruCache[tuple[Tensor, Tensor]]()

    @torch.compiler.assume_constant_result
    def __call__(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) of one frame, each (tokens, 1, head_dim) float32."""
        key = (rows, columns, device)
        return self._tables.get(key, lambda: self._build(rows, columns, device))

    # Tables outlive the inference mode that may have asked for them first.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self.head_dim // 2
        frequencies = _BASE ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
        y, x = torch.meshgrid(
            torch.arange(1, rows + 1, dtype=torch.float32),
            torch.arange(1, columns + 1, dtype=torch.float32),
            indexing="ij",
        )
        if self._patches_share_place:
            y, x = torch.ones_like(y), torch.ones_like(x)
        special = torch.zeros(self.num_special_tokens)
        angles = []
        for position in (y, x):
            angle = torch.cat([special, position.flatten()])[:, None] * frequencies
            angles += [angle, angle]
        table = torch.cat(angles, dim=-1)[:, None, :]
        return table.cos().to(device), table.sin().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` turned by the tables' angles, in the dtype of `x`.

    Args:
        x: (..., tokens, heads, head_dim) queries or keys.
        cos: (tokens, 1, head_dim) float32.
        sin: (tokens, 1, head_dim) float32.
    """
    quarters = x.unflatten(-1, (2, 2, -1))
    turned = torch.stack((-quarters[..., 1, :], quarters[..., 0, :]), dim=-2).flatten(-3)
    return (x * cos + turned * sin).to(x.dtype)
