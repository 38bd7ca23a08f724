"""Patch tokens of four depths to one dense map per frame: the DPT head for depth and points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.config import ModelConfig
from qvggt_core.model.lru import RecentCache
from qvggt_core.model.settings import ComputeSettings

_POSITION_WEIGHT = 0.1
_POSITION_BASE = 100.0
HIDDEN_CHANNELS = 32
"""Channels of the convolution before the last, at full resolution."""


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions whose skip carries the rectified input, as in VGGT's checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (F, C, H, W) to the same shape."""
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class FusionStage(nn.Module):
    """Adds a finer scale to a coarser one and brings the sum to the next scale's size."""

    def __init__(self, channels: int, *, has_skip: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualConvUnit(channels) if has_skip else None
        self.resConfUnit2 = ResidualConvUnit(channels)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Fuse `x` with `skip` and resize to `size` (height, width)."""
        if self.resConfUnit1 is not None and skip is not None:
            x = x + self.resConfUnit1(skip)
        # A 1x1 convolution and a resizing whose weights add up to one may change places: first
        # the convolution, on a quarter of the pixels.
        return _resize(self.out_conv(self.resConfUnit2(x)), size)


class Scratch(nn.Module):
    """The convolutions between the four scales and the output."""

    def __init__(self, channels: tuple[int, ...], features: int, out_channels: int) -> None:
        super().__init__()
        for index, width in enumerate(channels, start=1):
            convolution = nn.Conv2d(width, features, 3, padding=1, bias=False)
            self.add_module(f"layer{index}_rn", convolution)
            self.add_module(f"refinenet{index}", FusionStage(features, has_skip=index < 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, HIDDEN_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN_CHANNELS, out_channels, 1),
        )

    def fuse(self, scales: list[Tensor]) -> Tensor:
        """Fuse four scales, finest first, into (F, features / 2, 2H1, 2W1); empties the list."""
        for index in range(len(scales)):
            scales[index] = self.get_submodule(f"layer{index + 1}_rn")(scales[index])
        x, skip = scales.pop(), None
        for index in (4, 3, 2, 1):
            height, width = scales[-1].shape[-2:] if scales else [2 * n for n in x.shape[-2:]]
            x = self.get_submodule(f"refinenet{index}")(x, skip, (height, width))
            skip = scales.pop() if scales else None
        return self.output_conv1(x)


class DenseHead(nn.Module):
    """VGGT's DPT head, under its checkpoint names; frames are independent of each other."""

    settings = ComputeSettings()

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        channels = config.dpt_out_channels
        self.patch_size = config.patch_size
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(channels, config.dpt_features, out_channels)
        # A head asks for five embeddings per grid.
        self._positions = RecentCache[tuple[Tensor, Tensor]](kept=40)

    def forward(self, patches: tuple[Tensor, ...], rows: int, columns: int) -> Tensor:
        """Map four times (B, S, P, 2C) patch tokens to raw maps (B, S, out, H, W) float32."""
        batch, frames = patches[0].shape[:2]
        flat = [tokens.flatten(0, 1) for tokens in patches]
        pixels = rows * columns * self.patch_size**2
        step = max(1, self.settings.dense_pixels // pixels)
        if torch.is_grad_enabled():
            step = batch * frames
        chunks = [
            self._decode([tokens[start : start + step] for tokens in flat], rows, columns)
            for start in range(0, batch * frames, step)
        ]
        return torch.cat(chunks).unflatten(0, (batch, frames))

    def _decode(self, patches: list[Tensor], rows: int, columns: int) -> Tensor:
        aspect = columns / rows
        scales = []
        for tokens, project, resize in zip(patches, self.projects, self.resize_layers, strict=True):
            # Tokens are already channels-last; a contiguous copy would only undo that.
            x = self.norm(tokens).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
            scales.append(resize(self._add_positions(project(x), aspect)))
        x = self.scratch.fuse(scales)
        x = _resize(x, (rows * self.patch_size, columns * self.patch_size))
        hidden, _, output = self.scratch.output_conv2
        x = F.relu(hidden(self._add_positions(x, aspect)), inplace=not torch.is_grad_enabled())
        assert isinstance(output, nn.Conv2d)
        # The exponential that follows turns rounding into relative error: stay in float32.
        return output(x.to(output.weight.dtype)).float()

    def _add_positions(self, x: Tensor, aspect: float) -> Tensor:
        """Add the embedding of the pixels' places to `x` (F, C, H, W).

        In place on `x` while no gradient is recorded.
        """
        along_u, along_v = self._tables(*x.shape[-3:], aspect, x.dtype, x.device)
        half = x.shape[1] // 2
        if torch.is_grad_enabled():
            return torch.cat([x[:, :half] + along_u, x[:, half:] + along_v], dim=1)
        # In place and broadcast: spelled out, the embedding would be as large as the widest map.
        x[:, :half].add_(along_u)
        x[:, half:].add_(along_v)
        return x

    @torch.compiler.assume_constant_result
    def _tables(
        self,
        channels: int,
        height: int,
        width: int,
        aspect: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        key = (channels, height, width, aspect, dtype, device)
        return self._positions.get(key, lambda: _position_tables(*key))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


# Tables outlive the inference mode that may have asked for them first.
@torch.inference_mode(False)
@torch.no_grad()
def _position_tables(
    channels: int,
    height: int,
    width: int,
    aspect: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return a sine-cosine embedding of a pixel's place on the unit-diagonal image plane.

    Returns:
        (C / 2, 1, W) for the first half of the channels and (C / 2, H, 1) for the second.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    extents = (aspect / diagonal * (width - 1) / width, (height - 1) / height / diagonal)
    u, v = (
        torch.linspace(-extent, extent, steps, dtype=torch.float32, device=device).double()
        for extent, steps in zip(extents, (width, height), strict=True)
    )
    order = torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4)
    along_u, along_v = (
        (_POSITION_WEIGHT * torch.cat([phase.sin(), phase.cos()])).to(dtype)
        for phase in (_POSITION_BASE ** -order[:, None] * position for position in (u, v))
    )
    return along_u[:, None], along_v[..., None]
