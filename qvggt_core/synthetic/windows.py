"""Windows of frames drawn from a pool: for training at random, for evaluation always the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.errors import TrainingError
from qvggt_core.geometry import inverse, unproject
from qvggt_core.synthetic.pool import Pool

_ATTEMPTS = 20
# Overlap is judged on a coarse grid of pixels.
_OVERLAP_STRIDE = 8


@dataclass(frozen=True)
class Windows:
    """B windows of S frames with their ground truth.

    Attributes:
        images: (B, S, 3, H, W) uint8.
        depth: (B, S, H, W) float32 metres along the optical axis; NaN where there is none.
        world_from_camera: (B, S, 4, 4) float64.
        intrinsics: (B, S, 3, 3) float64 pixels.
    """

    images: Tensor
    depth: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor


def draw_windows(
    pool: Pool,
    overlap: NDArray,
    count: int,
    frames: int,
    max_gap: int,
    min_overlap: float,
    rng: np.random.Generator,
) -> Windows:
    """Draw windows at random; half of them in the order of time, half shuffled.

    Args:
        pool: where the clips come from.
        overlap: (N, F, F), see `view_overlap`; clips beyond N are not drawn.
        count: B.
        frames: S.
        max_gap: largest distance, in frames of the clip, between neighbours in a window.
        min_overlap: least overlap between neighbours; refused windows are drawn again.
        rng: decides everything.

    Raises:
        TrainingError: the clips are too short, or hardly any window overlaps enough.
    """
    length = pool.config.frames
    largest_gap = min(max_gap, (length - 1) // max(frames - 1, 1))
    if largest_gap < 1:
        raise TrainingError(f"clips of {length} frames hold no window of {frames}")
    rows: list[tuple[int, list[int]]] = []
    for _ in range(_ATTEMPTS * count):
        clip = int(rng.integers(len(overlap)))
        gap = int(rng.integers(1, largest_gap + 1))
        start = int(rng.integers(length - gap * (frames - 1)))
        chosen = list(range(start, start + gap * (frames - 1) + 1, gap))
        if min(overlap[clip, a, b] for a, b in pairwise(chosen)) < min_overlap:
            continue
        order = rng.permutation(frames) if rng.random() < 0.5 else np.arange(frames)
        rows.append((clip, [chosen[i] for i in order]))
        if len(rows) == count:
            return gather(pool, rows)
    raise TrainingError(
        f"only {len(rows)} of {count} windows of {frames} frames overlap by {min_overlap}: lower "
        "the overlap or the gap"
    )


def evaluation_windows(pool: Pool, frames: int, gaps: tuple[int, ...] = (1, 2)) -> Windows:
    """Return the same windows of every clip each time, one per gap that fits, starting at 0."""
    length = pool.config.frames
    fitting = [gap for gap in gaps if gap * (frames - 1) < length]
    if not fitting:
        raise TrainingError(f"clips of {length} frames hold no window of {frames}")
    rows = [
        (clip, list(range(0, gap * (frames - 1) + 1, gap)))
        for clip in range(len(pool))
        for gap in fitting
    ]
    return gather(pool, rows)


def gather(pool: Pool, rows: list[tuple[int, list[int]]]) -> Windows:
    """Return the windows that (clip, frames) pairs name."""
    images = np.stack([pool.images[clip][frames] for clip, frames in rows])
    depth = np.stack([pool.depth[clip][frames] for clip, frames in rows])
    poses = np.stack([pool.world_from_camera[clip][frames] for clip, frames in rows])
    intrinsics = np.stack([np.stack([pool.intrinsics[clip]] * len(f)) for clip, f in rows])
    return Windows(
        images=torch.from_numpy(images).movedim(-1, -3).contiguous(),
        depth=torch.from_numpy(depth).float(),
        world_from_camera=torch.from_numpy(poses),
        intrinsics=torch.from_numpy(intrinsics),
    )


def view_overlap(pool: Pool, clips: int) -> NDArray[np.float32]:
    """Return how much of each frame the others see, for the first clips: (clips, F, F).

    Entry [n, a, b] is the share of pixels of frame a whose points project into frame b,
    whether or not something hides them there.
    """
    stride = _OVERLAP_STRIDE
    length = pool.config.frames
    height, width = pool.config.height, pool.config.width
    result = np.zeros((clips, length, length), dtype=np.float32)
    for clip in range(clips):
        k = pool.intrinsics[clip]
        # Row i of the subsampled image is row stride * i of the image.
        small_k = k.copy()
        small_k[:2] /= stride
        depth = np.asarray(pool.depth[clip][:, ::stride, ::stride], dtype=np.float32)
        poses = pool.world_from_camera[clip]
        camera_from_world = inverse(poses)
        for a in range(length):
            points = unproject(depth[a], small_k).reshape(-1, 3)
            points = points[np.isfinite(points[:, 2])]
            if not len(points):
                continue
            b_from_a = camera_from_world @ poses[a]
            seen = np.einsum("bij,nj->bni", b_from_a[:, :3, :3], points)
            seen += b_from_a[:, None, :3, 3]
            z = np.where(seen[..., 2] > 0.05, seen[..., 2], np.inf)
            u = seen[..., 0] / z * k[0, 0] + k[0, 2]
            v = seen[..., 1] / z * k[1, 1] + k[1, 2]
            # Pixels reach half a pixel around their centres.
            across = (u >= -0.5) & (u < width - 0.5)
            inside = np.isfinite(z) & across & (v >= -0.5) & (v < height - 0.5)
            result[clip, a] = inside.mean(axis=1)
    return result
