"""Least operations and bytes of a VGGT, and the peaks of a machine: the roofline.

Operations count a multiplication and an addition as two. Bytes count every operand of a linear,
an attention, a convolution and a residual step once, as if all else were fused into them: a
lower bound of what leaves the caches.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from qvggt_core.measure.timing import Clock, Run, measure
from qvggt_core.model import ModelConfig

_PROBE_SECONDS = 0.4
_BLOCK_ACTIVATIONS = 32
"""Elements per token and channel that a block reads or writes: 16 around its linears, 4 around
its attention, 8 in two residual steps with their norms, 4 in the rotation of queries and keys."""
_HIDDEN_CHANNELS = 32


class Work(NamedTuple):
    """Operations, and elements of weights and activations that pass through memory."""

    flop: float = 0.0
    weights: float = 0.0
    activations: float = 0.0

    def __add__(self, other: object) -> Work:
        assert isinstance(other, Work)
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, repeats: int) -> Work:
        """Return the work of as many such parts, each with weights of its own."""
        return Work(*(repeats * value for value in self))

    def bytes(self, weight_bytes: float, activation_bytes: float) -> float:
        """Return the bytes moved, from the bytes of one weight and of one activation."""
        return self.weights * weight_bytes + self.activations * activation_bytes


@dataclass(frozen=True)
class Shape:
    """A window: S frames of height x width pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width}"

    def patches(self, config: ModelConfig) -> int:
        """Return the number of patch tokens P of a frame."""
        return (self.height // config.patch_size) * (self.width // config.patch_size)

    def tokens(self, config: ModelConfig) -> int:
        """Return the number of tokens N of a frame, special ones included."""
        return self.patches(config) + config.num_special_tokens


def linear(rows: int, inputs: int, outputs: int) -> Work:
    """Return the work of a linear layer on (rows, inputs)."""
    return Work(2.0 * rows * inputs * outputs, inputs * outputs, rows * (inputs + outputs))


def block(dim: int, mlp_ratio: float, rows: int, sequences: int) -> Work:
    """Return the work of a transformer block on `rows` tokens in `sequences` equal sequences."""
    hidden = int(dim * mlp_ratio)
    pairs = ((dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim))
    linears = sum((linear(rows, k, n) for k, n in pairs), Work())
    attention = 4.0 * (rows / sequences) ** 2 * sequences * dim
    return Work(linears.flop + attention, linears.weights, _BLOCK_ACTIVATIONS * rows * dim)


def encoder(config: ModelConfig, shape: Shape) -> Work:
    """Return the work of the image encoder, or of the convolution in its place."""
    patches = shape.frames * shape.patches(config)
    pixels = 3 * config.patch_size**2
    if config.encoder is None:
        return linear(patches, pixels, config.embed_dim)
    dim = config.encoder.embed_dim
    rows = shape.frames * (shape.patches(config) + 5)
    blocks = block(dim, 4.0, rows, shape.frames).times(config.encoder.depth)
    return linear(patches, pixels, dim) + blocks


def frame_blocks(config: ModelConfig, shape: Shape) -> Work:
    """Return the work of all blocks that attend within frames."""
    rows = shape.frames * shape.tokens(config)
    return block(config.embed_dim, config.mlp_ratio, rows, shape.frames).times(config.depth)


def global_blocks(config: ModelConfig, shape: Shape) -> Work:
    """Return the work of all blocks that attend across the window."""
    rows = shape.frames * shape.tokens(config)
    return block(config.embed_dim, config.mlp_ratio, rows, 1).times(config.depth)


def camera_head(config: ModelConfig, shape: Shape) -> Work:
    """Return the work of the camera head; each iteration reads its weights again."""
    dim, frames = 2 * config.embed_dim, shape.frames
    trunk = block(dim, config.mlp_ratio, frames, 1).times(config.camera_trunk_depth)
    pairs = ((9, dim), (dim, 3 * dim), (dim, dim // 2), (dim // 2, 9))
    return sum((linear(frames, k, n) for k, n in pairs), trunk).times(config.camera_iterations)


def dense_head(config: ModelConfig, shape: Shape, outputs: int = 2) -> Work:
    """Return the work of a DPT head with so many output channels (depth: 2, points: 4)."""
    rows, columns = shape.height // config.patch_size, shape.width // config.patch_size
    patches, channels, features = rows * columns, config.dpt_out_channels, config.dpt_features
    half = ((rows + 1) // 2) * ((columns + 1) // 2)
    sizes = (16 * patches, 4 * patches, patches, half)
    per_frame = Work()

    def convolution(pixels: int, kernel: int, inputs: int, width: int) -> Work:
        # Every pixel is read once: neighbours come from a cache.
        moved = pixels * (inputs + width)
        return Work(2.0 * pixels * kernel * inputs * width, kernel * inputs * width, moved)

    for index, (size, width) in enumerate(zip(sizes, channels, strict=True)):
        per_frame += convolution(patches, 1, 2 * config.embed_dim, width)
        if index < 2:  # transposed, its stride as wide as its kernel
            kernel = (4 - 2 * index) ** 2
            moved = (patches + size) * width
            per_frame += Work(2.0 * patches * kernel * width**2, kernel * width**2, moved)
        elif index == 3:
            per_frame += convolution(half, 9, width, width)
        per_frame += convolution(size, 9, width, features)
        residuals = 2 if index == 3 else 4
        per_frame += convolution(size, 9, features, features).times(residuals)
        # Before the resizing, with which it commutes; the original's comes after, on more pixels.
        per_frame += convolution(size, 1, features, features)
    pixels = shape.height * shape.width
    per_frame += convolution(4 * sizes[0], 9, features, features // 2)
    per_frame += convolution(pixels, 9, features // 2, _HIDDEN_CHANNELS)
    per_frame += convolution(pixels, 1, _HIDDEN_CHANNELS, outputs)
    every = per_frame.times(shape.frames)
    return every._replace(weights=per_frame.weights)


def parts(config: ModelConfig, shape: Shape) -> dict[str, Work]:
    """Return the work of each part of a VGGT on a window."""
    work = {
        "encoder": encoder(config, shape),
        "aggregator": frame_blocks(config, shape) + global_blocks(config, shape),
        "camera head": camera_head(config, shape),
    }
    if config.depth_head:
        work["depth head"] = dense_head(config, shape, 2)
    if config.point_head:
        work["point head"] = dense_head(config, shape, 4)
    return work


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of a machine, of the same run as the figures beside them.

    Attributes:
        flops: operations per second of a large dense matrix product, by dtype.
        bytes: bytes per second of a copy, read and written, far beyond the caches.
    """

    flops: dict[str, float]
    bytes: float

    def seconds(self, work: Work, weight_bytes: float, activation_bytes: float) -> float:
        """Return the least time of some work by the roofline of the fastest dense product."""
        moved = work.bytes(weight_bytes, activation_bytes)
        return max(work.flop / max(self.flops.values()), moved / self.bytes)


def measure_peaks(device: torch.device | str, clock: Clock = "wall", size: int = 2048) -> Peaks:
    """Measure matrix products of size^3 in float32 and bfloat16, and a copy, on a device."""
    device = torch.device(device)
    runs: dict[str, Run] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        runs[str(dtype).removeprefix("torch.")] = functools.partial(F.linear, a, b)
    source = torch.ones(1 << 26 if size >= 1024 else 1 << 20, device=device)
    target = torch.empty_like(source)
    runs["copy"] = lambda: target.copy_(source)
    for run in runs.values():
        run()
    started = time.perf_counter()
    best = {name: float("inf") for name in runs}
    while time.perf_counter() - started < _PROBE_SECONDS * len(runs):
        for name, (taken, *_) in measure(runs, 1, clock).items():
            best[name] = min(best[name], taken)
    copied = 2 * source.numel() * source.element_size()
    flops = {name: 2.0 * size**3 / best[name] for name in best if name != "copy"}
    return Peaks(flops, copied / best["copy"])
