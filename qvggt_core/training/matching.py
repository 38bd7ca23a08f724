"""Correspondence as a training signal: where a patch of one frame is seen in another.

Queries and keys of global blocks are trained directly to find each other, as descriptors are
(InfoNCE; van den Oord et al. 2018), with the true place as a soft target between the four nearest
patches (as in LoFTR's coarse matching; Sun et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvggt_core.model import VGGT
from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.matching import patch_attention
from qvggt_core.training.losses import pixel_rays
from qvggt_core.training.windows import Windows

_DEPTH_TOLERANCE = 0.05
"""Relative difference from which a point counts as hidden."""


@dataclass(frozen=True)
class Correspondences:
    """Where patch centres of N frames are seen in as many other frames.

    Attributes:
        window: (N,) number of the window.
        first: (N,) frame of the window that the patches are of.
        second: (N,) frame of the window that they are seen in.
        place: (N, P, 2) row and column on the grid of patches of the second frame; whole numbers
            are centres of patches.
        visible: (N, P) whether the point is inside the second image and not hidden.
    """

    window: Tensor
    first: Tensor
    second: Tensor
    place: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> Correspondences:
        """Return the same on a device."""
        return Correspondences(**{name: part.to(device) for name, part in vars(self).items()})


def correspondences(windows: Windows, patch: int, pairs: Tensor) -> Correspondences:
    """Project patch centres from frame to frame.

    Args:
        windows: ground truth.
        patch: side of a patch, pixels.
        pairs: (N, 3) window, first and second frame.
    """
    window, first, second = pairs.unbind(dim=1)
    height, width = windows.depth.shape[-2:]
    start = patch // 2
    rays = pixel_rays(windows.intrinsics[window, first], height, width)
    depth = windows.depth[window, first][:, start::patch, start::patch]
    points = (rays[:, start::patch, start::patch] * depth[..., None]).flatten(1, 2)
    poses = windows.world_from_camera
    second_from_first = (torch.linalg.inv(poses[window, second]) @ poses[window, first]).float()
    points = points @ second_from_first[:, :3, :3].mT + second_from_first[:, None, :3, 3]
    k = windows.intrinsics[window, second].float()
    z = points[..., 2].clamp(min=1e-3)
    column = points[..., 0] / z * k[:, None, 0, 0] + k[:, None, 0, 2]
    row = points[..., 1] / z * k[:, None, 1, 1] + k[:, None, 1, 2]
    inside = (column > -0.5) & (column < width - 0.5) & (row > -0.5) & (row < height - 0.5)
    visible = inside & points.isfinite().all(dim=-1) & (points[..., 2] > 1e-3)
    nearest = (
        row.nan_to_num().round().clamp(0, height - 1) * width
        + column.nan_to_num().round().clamp(0, width - 1)
    ).long()
    seen = windows.depth[window, second].flatten(1).gather(1, nearest)
    visible &= (seen - z).abs() < _DEPTH_TOLERANCE * seen
    place = (torch.stack([row, column], dim=-1) + 0.5) / patch - 0.5
    return Correspondences(window, first, second, place, visible)


def draw_pairs(batch: int, frames: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw at most `count` ordered pairs of frames (N, 3): window, first and second frame.

    Half of them, where there are as many, look into the first frame of their window.
    """
    grid = torch.cartesian_prod(torch.arange(batch), torch.arange(frames), torch.arange(frames))
    grid = grid[grid[:, 1] != grid[:, 2]]
    grid = grid[torch.randperm(len(grid), generator=generator)]
    into_world = grid[:, 2] == 0
    world, between = grid[into_world], grid[~into_world]
    world = world[: max(count // 2, count - len(between))]
    return torch.cat([world, between[: count - len(world)]])


def log_attention(
    network: VGGT, block: int, tokens: Tensor, rows: int, columns: int, found: Correspondences
) -> Tensor:
    """Return the log attention (N, H, P, P) between patches of pairs of frames in a global block.

    Where the second frame is the first of its window, attention is shared between the patches of
    all frames, else between those of the second frame. So later frames learn to look into the
    frame that is the world: else a patch finds itself before it finds its like.

    Args:
        network: whose block it is.
        block: number of the global block.
        tokens: (B, S, P, C) patch tokens that enter it.
        rows: of patches.
        columns: of patches.
        found: the pairs of frames.
    """
    query, key = patch_attention(network, block, tokens, rows, columns)
    query = query[found.window, found.first].transpose(1, 2) * query.shape[-1] ** -0.5
    result = query @ key[found.window, found.second].transpose(1, 2).mT
    total = result.float().logsumexp(dim=-1, keepdim=True)
    into_world = found.second == 0
    if into_world.any():
        everywhere = key.flatten(1, 2)[found.window[into_world]].transpose(1, 2)
        shared = (query[into_world] @ everywhere.mT).float().logsumexp(dim=-1, keepdim=True)
        total = total.index_put((into_world.nonzero()[:, 0],), shared)
    return result.float() - total


def matching_loss(log_shares: Tensor, found: Correspondences, rows: int, columns: int) -> Tensor:
    """Return the cross-entropy of the true places, mean over heads and visible patches.

    Args:
        log_shares: (N, H, P, P) log attention, rows of the first frame's patches.
        found: the true places.
        rows: of patches.
        columns: of patches.
    """
    log_shares = log_shares.mean(dim=1)
    total = torch.zeros_like(found.place[..., 0])
    place = torch.stack(
        [
            found.place[..., 0].nan_to_num().clamp(0, rows - 1),
            found.place[..., 1].nan_to_num().clamp(0, columns - 1),
        ],
        dim=-1,
    )
    low = place.floor()
    part = place - low
    for down in (0, 1):
        for right in (0, 1):
            row = (low[..., 0] + down).clamp(max=rows - 1)
            column = (low[..., 1] + right).clamp(max=columns - 1)
            weight = (part[..., 0] if down else 1 - part[..., 0]) * (
                part[..., 1] if right else 1 - part[..., 1]
            )
            index = (row * columns + column).long()
            total = total - weight * log_shares.gather(2, index[..., None])[..., 0]
    return torch.where(found.visible, total, 0.0).sum() / found.visible.sum().clamp(min=1)


@torch.no_grad()
def matched_share(network: VGGT, windows: Windows, heads: int = 2) -> float:
    """Return the share of visible patches that the first global block finds in another frame.

    Found means that the mean attention of the first heads peaks at most one patch away, by rows and
    by columns, from the true place; pairs are each window's first frame and each later one.

    Args:
        network: with taps that begin at block 0, as `start_matching` trains them.
        windows: with ground truth.
        heads: how many of the block's heads count.
    """
    patch = network.config.patch_size
    rows, columns = (side // patch for side in windows.images.shape[-2:])
    batch, frames = windows.images.shape[:2]
    pairs = torch.cartesian_prod(torch.arange(batch), torch.tensor([0]), torch.arange(1, frames))
    found = correspondences(windows, patch, pairs)
    aggregator = network.aggregator
    assert isinstance(aggregator, Aggregator)
    tokens = network.encode(windows.images.float() / 255.0)
    state = aggregator.enter(tokens)
    x = aggregator.frame_step(state, 0, aggregator.rope(rows, columns, tokens.device)).x
    entering = x[:, :, network.config.num_special_tokens :]
    shares = log_attention(network, 0, entering, rows, columns, found)[:, :heads].exp()
    peak = shares.mean(dim=1).argmax(dim=-1)
    place = torch.stack([peak // columns, peak % columns], dim=-1)
    near = (place - found.place).abs().amax(dim=-1) <= 1.0
    return float((near & found.visible).sum() / found.visible.sum().clamp(min=1))
