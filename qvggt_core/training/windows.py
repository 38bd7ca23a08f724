"""Windows of frames drawn from a pool: for training at random, for evaluation always the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from qvggt_core.errors import TrainingError
from qvggt_core.geometry.poses import inverse, unproject
from qvggt_core.training.config import Stage
from qvggt_core.training.pool import Pool

_ATTEMPTS = 20
# Overlap is judged on a coarse grid of pixels.
_OVERLAP_STRIDE = 8


@dataclass(frozen=True)
class WindowTruth:
    """What is known of B windows of S frames beyond their images.

    Attributes:
        depth: (B, S, H, W) float32 metres along the optical axis; NaN where there is none.
        world_from_camera: (B, S, 4, 4) float64.
        intrinsics: (B, S, 3, 3) float64 pixels.
    """

    depth: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor


@dataclass(frozen=True)
class Windows(WindowTruth):
    """B windows of S frames with their ground truth.

    Attributes:
        images: (B, S, 3, H, W) uint8.
    """

    images: Tensor


def draw_windows(
    pool: Pool,
    overlap: NDArray,
    count: int,
    frames: int,
    *,
    max_gap: int,
    min_overlap: float,
    shuffled: float,
    rng: np.random.Generator,
) -> Windows:
    """Draw windows at random.

    Args:
        pool: where the clips come from.
        overlap: (N, F, F), see `view_overlap`; clips beyond N are not drawn.
        count: B.
        frames: S.
        max_gap: largest distance, in frames of the clip, between neighbours in a window.
        min_overlap: least overlap between neighbours; refused windows are drawn again.
        shuffled: share of the windows whose frames are not in the order of time.
        rng: decides everything.

    Raises:
        TrainingError: the clips are too short, or hardly any window overlaps enough.
    """
    length = pool.config.frames
    largest_gap = min(max_gap, (length - 1) // max(frames - 1, 1))
    if largest_gap < 1:
        raise TrainingError(f"clips of {length} frames hold no window of {frames}")
    rows: list[list[tuple[int, int]]] = []
    for _ in range(_ATTEMPTS * count):
        clip = int(rng.integers(len(overlap)))
        gap = int(rng.integers(1, largest_gap + 1))
        start = int(rng.integers(length - gap * (frames - 1)))
        chosen = list(range(start, start + gap * (frames - 1) + 1, gap))
        if min(overlap[clip, a, b] for a, b in pairwise(chosen)) < min_overlap:
            continue
        order = rng.permutation(frames) if rng.random() < shuffled else np.arange(frames)
        rows.append([(clip, chosen[i]) for i in order])
        if len(rows) == count:
            return gather(pool, rows)
    raise TrainingError(
        f"only {len(rows)} of {count} windows of {frames} frames overlap by {min_overlap}: lower "
        "the overlap or the gap"
    )


def draw_scattered_windows(
    pool: Pool, places: Places, count: int, frames: int, rng: np.random.Generator
) -> Windows:
    """Draw windows whose frames come from any clips, but look at the same part of the world.

    Flights mostly keep their height; between flights, cameras lie apart in all directions.

    Args:
        pool: clips that were all made in one world.
        places: where the cameras of the pool are.
        count: B.
        frames: S.
        rng: decides everything.

    Raises:
        TrainingError: hardly any frame has enough others near it.
    """
    rows: list[list[int]] = []
    for _ in range(_ATTEMPTS * count):
        first = int(rng.integers(len(places)))
        near = places.near(first)
        if len(near) >= frames - 1:
            rows.append([first, *rng.choice(near, frames - 1, replace=False).tolist()])
        if len(rows) == count:
            length = pool.config.frames
            return gather(pool, [[divmod(frame, length) for frame in row] for row in rows])
    raise TrainingError(
        f"only {len(rows)} of {count} frames have {frames - 1} others near them that look the same "
        "way: render more clips"
    )


class Places:
    """Where the cameras of a pool's frames are, and which look at the same part of the world."""

    def __init__(self, pool: Pool, clips: int, reach: float = 0.8, angle: float = 30.0) -> None:
        """Take the first clips' cameras.

        Args:
            pool: clips that were all made in one world.
            clips: how many to take.
            reach: largest distance in metres between frames of a window and its first.
            angle: largest angle in degrees between their optical axes.

        Raises:
            TrainingError: the clips were made in several worlds.
        """
        if pool.config.layouts != 1 or len(set(pool.config.worlds)) != 1:
            raise TrainingError(
                "the pool's clips were made in several worlds: frames of different clips cannot "
                "share a window"
            )
        poses = pool.world_from_camera[:clips].reshape(-1, 4, 4)
        self._positions, self._axes = poses[:, :3, 3], poses[:, :3, 2]
        self._tree = cKDTree(self._positions)
        self._reach, self._cosine = reach, np.cos(np.radians(angle))

    def __len__(self) -> int:
        """Return the number of frames; frame f of clip c is number c * frames + f."""
        return len(self._positions)

    def near(self, frame: int) -> NDArray[np.int64]:
        """Return the numbers of the frames near one, without itself."""
        found = np.sort(self._tree.query_ball_point(self._positions[frame], self._reach))
        agree = self._axes[found] @ self._axes[frame] >= self._cosine
        return found[agree & (found != frame)]


class WindowSampler:
    """Draws the windows of a stage of a run from its clips."""

    def __init__(self, pool: Pool, stage: Stage) -> None:
        clips = stage.clips or len(pool)
        self.stage = stage
        self._pool = pool
        self._overlap = view_overlap(pool, clips)
        self._places = Places(pool, clips) if stage.scattered else None

    def draw(self, min_overlap: float, rng: np.random.Generator) -> Windows:
        """Draw the windows of a step."""
        stage = self.stage
        frames = int(rng.choice(stage.frames))
        count = max(1, stage.images // frames)
        if self._places is not None and rng.random() < stage.scattered:
            return draw_scattered_windows(self._pool, self._places, count, frames, rng)
        return draw_windows(
            self._pool,
            self._overlap,
            count,
            frames,
            max_gap=stage.max_gap,
            min_overlap=min_overlap,
            shuffled=stage.shuffled,
            rng=rng,
        )


def evaluation_windows(pool: Pool, frames: int, gaps: tuple[int, ...] = (1, 2)) -> Windows:
    """Return the same windows of every clip each time, one per gap that fits, starting at 0."""
    length = pool.config.frames
    fitting = [gap for gap in gaps if gap * (frames - 1) < length]
    if not fitting:
        raise TrainingError(f"clips of {length} frames hold no window of {frames}")
    rows = [
        [(clip, frame) for frame in range(0, gap * (frames - 1) + 1, gap)]
        for clip in range(len(pool))
        for gap in fitting
    ]
    return gather(pool, rows)


def gather(pool: Pool, rows: list[list[tuple[int, int]]]) -> Windows:
    """Return windows that are given as (clip, frame) pairs, as many in each."""

    def stack(array: NDArray) -> NDArray:
        return np.stack([np.stack([array[clip, frame] for clip, frame in row]) for row in rows])

    images, depth, poses = (
        stack(array) for array in (pool.images, pool.depth, pool.world_from_camera)
    )
    intrinsics = np.stack([np.stack([pool.intrinsics[clip] for clip, _ in row]) for row in rows])
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
