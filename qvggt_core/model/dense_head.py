"""Patch tokens of four depths to one dense map per frame: the DPT head for depth and points."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from qvggt_kernels import Affine, add_places, convolution3x3, dense_output, is_one_pass
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.config import ModelConfig
from qvggt_core.model.lru import LruCache
from qvggt_core.model.settings import ComputeSettings

_POSITION_WEIGHT = 0.1
_POSITION_BASE = 100.0
HIDDEN_CHANNELS = 32
"""Channels of the convolution before the last, at full resolution."""
RAY_CHANNELS = 7
"""Origin, direction, confidence."""
RAY_LEVEL = "3"
"""Of the ray branch's outputs, one a fusion stage in the checkpoint, the one that is read."""


_Grid = tuple[int, int, int, float, torch.dtype, torch.device]
"""Channels, height, width, aspect, dtype and device of a map that gets a position embedding."""


class Convolution3x3(nn.Conv2d):
    """A convolution of 3x3 pixels with zeros around the map."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, *, rectified: bool = False, total: Tensor | None = None) -> Tensor:
        """Map (F, C, H, W), or max of it and 0 if `rectified`; the result is added to `total`."""
        return convolution3x3(x, self.weight, self.bias, rectified=rectified, total=total)


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions whose skip carries the input, rectified in VGGT's checkpoints."""

    def __init__(self, channels: int, *, rectified_skip: bool) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        self.conv1 = Convolution3x3(channels, channels)
        self.conv2 = Convolution3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (F, C, H, W) to the same shape."""
        if self.rectified_skip:
            x = F.relu(x)
        hidden = self.conv1(x, rectified=not self.rectified_skip)
        return self.conv2(hidden, rectified=True, total=x)


class FusionStage(nn.Module):
    """Adds a finer scale to a coarser one and brings the sum to the next scale's size."""

    def __init__(self, channels: int, *, has_skip: bool, rectified_skip: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = (
            ResidualConvUnit(channels, rectified_skip=rectified_skip) if has_skip else None
        )
        self.resConfUnit2 = ResidualConvUnit(channels, rectified_skip=rectified_skip)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Fuse `x` with `skip` and resize to `size` (height, width)."""
        if self.resConfUnit1 is not None and skip is not None:
            x = x + self.resConfUnit1(skip)
        # A 1x1 convolution and a resizing whose weights add up to one may change places: first
        # the convolution, on a quarter of the pixels.
        x = self.out_conv(self.resConfUnit2(x))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _output_convolutions(features: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution3x3(features // 2, HIDDEN_CHANNELS),
        nn.ReLU(),
        nn.Conv2d(HIDDEN_CHANNELS, out_channels, 1),
    )


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (F, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Scratch(nn.Module):
    """The convolutions between the four scales and the output."""

    def __init__(self, config: ModelConfig, out_channels: int, *, rays: bool) -> None:
        super().__init__()
        features = config.dpt_features
        for index, width in enumerate(config.dpt_out_channels, start=1):
            convolution = Convolution3x3(width, features, bias=False)
            self.add_module(f"layer{index}_rn", convolution)
            for branch in ("", "_aux") if rays else ("",):
                stage = FusionStage(
                    features, has_skip=index < 4, rectified_skip=config.stack is None
                )
                self.add_module(f"refinenet{index}{branch}", stage)
        self.output_conv1 = Convolution3x3(features, features // 2)
        self.output_conv2 = _output_convolutions(features, out_channels)
        self.sky_output_conv2 = _output_convolutions(features, 1) if config.sky_head else None
        if rays:
            self._add_ray_branch(features)

    def _add_ray_branch(self, features: int) -> None:
        half = features // 2
        widths = (features, half, features, half, features, half)
        convolutions = [Convolution3x3(inputs, outputs) for inputs, outputs in pairwise(widths)]
        output = {
            "0": Convolution3x3(half, HIDDEN_CHANNELS),
            "2": _ChannelNorm(HIDDEN_CHANNELS),
            "5": nn.Conv2d(HIDDEN_CHANNELS, RAY_CHANNELS, 1),
        }
        # Published networks have four of them and read the last alone.
        self.output_conv1_aux = nn.ModuleDict({RAY_LEVEL: nn.Sequential(*convolutions)})
        self.output_conv2_aux = nn.ModuleDict({RAY_LEVEL: nn.ModuleDict(output)})

    def outputs(self) -> list[nn.Sequential]:
        """Return the last convolutions of each output, that of the sky last."""
        found = [self.output_conv2]
        return found if self.sky_output_conv2 is None else [*found, self.sky_output_conv2]

    def output_weights(self) -> list[tuple[Affine, Affine]]:
        """Return weights and biases of `outputs`, as `dense_output` takes them."""
        found = []
        for branch in self.outputs():
            first, last = branch[0], branch[2]
            assert isinstance(first, nn.Conv2d)
            assert isinstance(last, nn.Conv2d)
            assert first.bias is not None
            assert last.bias is not None
            found.append(((first.weight, first.bias), (last.weight, last.bias)))
        return found

    def float_outputs(self) -> None:
        """Bring the very last convolutions to float32, in place."""
        for branch in self.outputs():
            branch[2].float()

    def project(self, scales: list[Tensor]) -> list[Tensor]:
        """Bring four scales, finest first, to the width of the fusion stages; empties the list."""
        projected = []
        for index in (1, 2, 3, 4):
            projected.append(self.get_submodule(f"layer{index}_rn")(scales.pop(0)))
        return projected

    def fuse(self, scales: list[Tensor], branch: str = "") -> Tensor:
        """Fuse four projected scales, finest first, into (F, features, 2H1, 2W1).

        Empties the list.
        """
        x, skip = scales.pop(), None
        for index in (4, 3, 2, 1):
            height, width = scales[-1].shape[-2:] if scales else [2 * n for n in x.shape[-2:]]
            x = self.get_submodule(f"refinenet{index}{branch}")(x, skip, (height, width))
            skip = scales.pop() if scales else None
        return x

    def rays(self, x: Tensor, add_positions: Callable[[Tensor], Tensor]) -> Tensor:
        """Map what the ray branch has fused to raw rays (F, 7, 2H1, 2W1) float32."""
        x = add_positions(self.output_conv1_aux[RAY_LEVEL](x))
        output = self.output_conv2_aux[RAY_LEVEL]
        assert isinstance(output, nn.ModuleDict)
        x = F.relu(output["2"](output["0"](x)))
        return output["5"](x).float()


def frames_at_once(dense_pixels: int, pixels: int, in_bands: bool) -> int:
    """Return how many frames of `pixels` a dense head decodes at once.

    Twice as many where no map exists at full resolution (`is_one_pass`): as much memory.
    """
    return max(1, (2 if in_bands else 1) * dense_pixels // pixels)


class DenseMaps(NamedTuple):
    """Raw outputs of a dense head.

    Attributes:
        values: (B, S, out, H, W) float32; a sky branch adds a last channel.
        rays: (B, S, 7, 8H/p, 8W/p) float32 with p pixels a patch; None without a ray branch.
    """

    values: Tensor
    rays: Tensor | None = None


class DenseHead(nn.Module):
    """The DPT head of VGGT and Depth Anything 3, under its checkpoint names.

    Frames are independent of each other.
    """

    settings = ComputeSettings()

    def __init__(self, config: ModelConfig, out_channels: int, *, rays: bool = False) -> None:
        super().__init__()
        dim, channels = config.tap_width, config.dpt_out_channels
        self.patch_size = config.patch_size
        self.has_rays = rays
        # Networks for single images have neither norm nor positions here.
        self.has_positions = not config.is_single_view
        self.norm = nn.Identity() if config.is_single_view else nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config, out_channels, rays=rays)
        # A head needs six embeddings per grid.
        self._positions = LruCache[tuple[Tensor, Tensor]](size=48)

    def forward(self, patches: tuple[Tensor, ...], rows: int, columns: int) -> DenseMaps:
        """Map the patch tokens of four taps, (B, S, P, 2C) each, to raw maps."""
        batch, frames = patches[0].shape[:2]
        flat = [tokens.flatten(0, 1) for tokens in patches]
        pixels = rows * columns * self.patch_size**2
        in_bands = flat[0].is_cpu and self._in_bands(flat[0].dtype)
        step = frames_at_once(self.settings.dense_pixels, pixels, in_bands)
        if torch.is_grad_enabled():
            step = batch * frames
        chunks = [
            self._decode([tokens[start : start + step] for tokens in flat], rows, columns)
            for start in range(0, batch * frames, step)
        ]
        values, rays = zip(*chunks, strict=True)
        return DenseMaps(
            torch.cat(values).unflatten(0, (batch, frames)),
            torch.cat(rays).unflatten(0, (batch, frames)) if self.has_rays else None,
        )

    def _decode(
        self, patches: list[Tensor], rows: int, columns: int
    ) -> tuple[Tensor, Tensor | None]:
        aspect = columns / rows
        scales = []
        for tokens, project, resize in zip(patches, self.projects, self.resize_layers, strict=True):
            # Tokens are already channels-last; a contiguous copy would only undo that.
            x = self.norm(tokens).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
            scales.append(resize(self._add_positions(project(x), aspect)))
        scales = self.scratch.project(scales)
        rays = None
        if self.has_rays:
            fused = self.scratch.fuse(list(scales), "_aux")
            rays = self.scratch.rays(fused, lambda ray: self._add_positions(ray, aspect))
        x = self.scratch.output_conv1(self.scratch.fuse(scales))
        size = (rows * self.patch_size, columns * self.patch_size)
        places = self._places(x, size, aspect)
        return dense_output(x, size, places, self.scratch.output_weights()), rays

    def _add_positions(self, x: Tensor, aspect: float) -> Tensor:
        """Add the embedding of the pixels' places to `x` (F, C, H, W).

        In place on `x` while no gradient is recorded.
        """
        height, width = x.shape[-2:]
        return add_places(x, self._places(x, (height, width), aspect))

    def _places(
        self, x: Tensor, size: tuple[int, int], aspect: float
    ) -> tuple[Tensor, Tensor] | None:
        """Return the embedding of places in `x` (F, C, h, w), brought to a height and a width."""
        if not self.has_positions:
            return None
        return self._tables((x.shape[1], *size, aspect, x.dtype, x.device))

    @torch.compiler.assume_constant_result
    def _in_bands(self, dtype: torch.dtype) -> bool:
        return is_one_pass(self.scratch.output_conv1.out_channels, dtype)

    @torch.compiler.assume_constant_result
    def _tables(self, grid: _Grid) -> tuple[Tensor, Tensor]:
        return self._positions.get(grid, lambda: _position_tables(grid))


# Tables outlive the inference mode that may have asked for them first.
@torch.inference_mode(False)
@torch.no_grad()
def _position_tables(grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return a sine-cosine embedding of a pixel's place on the unit-diagonal image plane.

    Returns:
        (C / 2, 1, W) for the first half of the channels and (C / 2, H, 1) for the second.
    """
    channels, height, width, aspect, dtype, device = grid
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
