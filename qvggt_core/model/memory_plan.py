"""How much memory a window takes, from sizes alone, and how to stay within a budget.

The estimate is the sum of what is alive at the worst moment of a run: the weights, one unpacked
weight, and the larger of two moments, inside a block of the aggregator or inside a dense head.
It counts tensors; what libraries and the interpreter take comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from qvggt_kernels import PackedLinear, is_one_pass

from qvggt_core.errors import ParameterError
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.dense_head import HIDDEN_CHANNELS, frames_at_once
from qvggt_core.model.settings import ComputeSettings
from qvggt_core.model.vggt import VGGT

_MB = 10**6

_MIN_MLP_ROWS = 256
"""Rows below which a GEMM spends its time on reading the weight."""

_FLOAT32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run takes at its worst moment.

    Attributes:
        weights: parameters and buffers.
        unpacked: the scratch that packed weights are unpacked into.
        kept: encoder tokens of the window, and what the taps keep for the dense heads.
        working: the larger of a block's and a dense head's own tensors.
    """

    weights: int
    unpacked: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.unpacked + self.kept + self.working


@dataclass(frozen=True)
class MemoryPlan:
    """How to run within a budget.

    Attributes:
        window_size: views of a window.
        settings: slices and chunks.
        estimate: what that takes.
    """

    window_size: int
    settings: ComputeSettings
    estimate: MemoryEstimate


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of a network's weights, and of the largest that is unpacked to be used; where."""

    stored: int
    unpacked: int
    device: str = "cpu"


def weight_memory(model: VGGT) -> WeightMemory:
    """Return what the weights of a loaded network take."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    scratch: dict[torch.dtype, int] = {}
    for module in model.modules():
        if isinstance(module, PackedLinear):
            dtype = torch.float32 if module.bias is None else module.bias.dtype
            size = module.in_features * module.out_features * dtype.itemsize
            scratch[dtype] = max(scratch.get(dtype, 0), size)
    stored = sum(t.numel() * t.element_size() for t in tensors.values())
    devices = {t.device.type for t in tensors.values()}
    return WeightMemory(stored, sum(scratch.values()), max(devices, default="cpu"))


def estimate_memory(
    config: ModelConfig,
    weights: WeightMemory,
    frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    settings: ComputeSettings | None = None,
    dense_frames: int | None = None,
) -> MemoryEstimate:
    """Return what a window takes at its worst moment.

    Args:
        config: sizes of the network; a head that it has runs.
        weights: of the network.
        frames: views of the window.
        height: of the images, pixels.
        width: of the images, pixels.
        dtype: that the network computes in.
        settings: how it computes; None for the defaults.
        dense_frames: views that the dense heads run for; None for all.
    """
    settings = settings or ComputeSettings()
    dense_frames = frames if dense_frames is None else min(dense_frames, frames)
    size, dim = dtype.itemsize, config.embed_dim
    patches = (height // config.patch_size) * (width // config.patch_size)
    per_frame = (patches + config.num_special_tokens) * dim
    # Held by the stream for its cache, and stacked to a window.
    encoded = 2 * frames * (patches + config.encoded_extra_tokens) * dim * size
    taps = len(config.taps) * dense_frames * patches * config.tap_width * size
    hidden = dim + int(dim * config.mlp_ratio)
    block = max(
        # Input, normed input, qkv, attention's output, its projection.
        7 * frames * per_frame * size,
        # Rotating one frame of queries in float32.
        5 * frames * per_frame * size + per_frame * (4 * _FLOAT32 + size),
        # Input, attention's branch, normed input, and one slice of the MLP.
        3 * frames * per_frame * size
        + min(settings.mlp_rows, frames * per_frame // dim) * hidden * size,
    )
    dense, maps = 0, dense_frames * height * width * _FLOAT32
    in_bands = weights.device == "cpu" and is_one_pass(config.dpt_features // 2, dtype)
    chunk = min(dense_frames, frames_at_once(settings.dense_pixels, height * width, in_bands))
    at_once = chunk * _dense_bytes_per_frame(config, height, width, size, in_bands)
    # What a head gives, and the most that it has of it when it activates that.
    for exists, channels, activating in ((config.depth_head, 2, 5), (config.point_head, 4, 10)):
        if exists:
            before = 2 if dense and channels == 4 else 0
            dense = max(dense, (before + channels) * maps + at_once, (before + activating) * maps)
    return MemoryEstimate(weights.stored, weights.unpacked, encoded + taps, max(block, dense))


def _dense_bytes_per_frame(
    config: ModelConfig, height: int, width: int, size: int, in_bands: bool
) -> int:
    """Return what the widest moment of a dense head takes: from its last resizing on.

    Where a kernel does all that in bands, it is the convolution before.
    """
    pixels = height * width
    half = config.dpt_features // 2
    # The finest scale has 8 by 8 pixels per patch.
    fused = 64 * pixels // config.patch_size**2
    if in_bands:
        return (config.dpt_features + half) * fused * size
    in_float32 = _FLOAT32 if size != _FLOAT32 else 0
    return max(
        half * (pixels + fused) * size,
        (half + HIDDEN_CHANNELS) * pixels * size,
        HIDDEN_CHANNELS * pixels * (size + in_float32),
    )


def plan_memory(
    budget_mb: int,
    config: ModelConfig,
    weights: WeightMemory,
    window_size: int,
    min_window_size: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> MemoryPlan:
    """Return the largest window that stays within a budget, and the widest slices for it.

    Slices and chunks give way first, since they cost hardly any time, then the window.

    Args:
        budget_mb: megabytes that weights and a window may take.
        config: see `estimate_memory`.
        weights: see `estimate_memory`.
        window_size: views that are wanted in a window.
        min_window_size: fewest views of a window.
        height: see `estimate_memory`.
        width: see `estimate_memory`.
        dtype: see `estimate_memory`.

    Raises:
        ParameterError: even the smallest window takes more.
    """
    plan = None
    for frames in range(window_size, min_window_size - 1, -1):
        for settings in narrower(ComputeSettings(), height * width):
            estimate = estimate_memory(config, weights, frames, height, width, dtype, settings)
            plan = MemoryPlan(frames, settings, estimate)
            if estimate.total <= budget_mb * _MB:
                return plan
    assert plan is not None, "there is at least one window"
    smallest = plan.estimate
    raise ParameterError(
        f"memory_budget_mb {budget_mb} is too little: the weights take "
        f"{smallest.weights / _MB:.0f} MB and the smallest window, {min_window_size} views of "
        f"{width}x{height}, another "
        f"{(smallest.total - smallest.weights) / _MB:.0f} MB; give at least "
        f"{-(-smallest.total // _MB)} MB, or choose a smaller image_width or a smaller checkpoint"
    )


def narrower(settings: ComputeSettings, pixels: int) -> Iterable[ComputeSettings]:
    """Yield the settings, then ever narrower slices and chunks down to one image."""
    yield settings
    # Where a head decodes two frames at once, half a frame's pixels leave one.
    pixels //= 2
    while settings.mlp_rows > _MIN_MLP_ROWS or settings.dense_pixels > pixels:
        settings = replace(
            settings,
            mlp_rows=max(_MIN_MLP_ROWS, settings.mlp_rows // 2),
            dense_pixels=max(pixels, settings.dense_pixels // 2),
        )
        yield settings
