"""Windows of a camera that only turns, cut from one image: rotation without parallax."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from qvggt_core.training.losses import pixel_rays
from qvggt_core.training.windows import Windows

_ZOOM = (1.4, 1.9)
_ROLL_DEGREES = 6.0


def turned(windows: Windows, rng: np.random.Generator) -> Windows:
    """Replace every frame by a turned, narrower view of its window's first image.

    All views lie inside that image, but for a corner at times, whose depth is NaN and whose colour
    is that of the border.

    Args:
        windows: whose first frames are cut up.
        rng: decides focal lengths and rotations.
    """
    batch, frames, _, height, width = windows.images.shape
    source = windows.intrinsics[:, 0].double()
    k = source.clone()
    zoom = torch.from_numpy(rng.uniform(*_ZOOM, size=batch))
    k[:, 0, 0] *= zoom
    k[:, 1, 1] *= zoom
    source_from_view = _rotations(source, k, (height, width), frames, rng)
    rays = pixel_rays(k.float(), height, width)[:, None]
    seen = torch.einsum(
        "bsij,bshwj->bshwi", source_from_view.float(), rays.expand(-1, frames, -1, -1, -1)
    )
    grid = _sampling_grid(seen, source, (height, width)).flatten(0, 1)
    images = windows.images[:, :1].expand(-1, frames, -1, -1, -1).flatten(0, 1).float()
    depth = windows.depth[:, :1].expand(-1, frames, -1, -1).flatten(0, 1)[:, None]
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # Along the source's axis; a ray with z = 1 there has another z in the view.
    along = F.grid_sample(depth, grid, mode="nearest", align_corners=False)[:, 0]
    inside = (grid.abs() <= 1.0).all(dim=-1)
    ratio = (1.0 / seen[..., 2]).flatten(0, 1)
    poses = windows.world_from_camera[:, :1].repeat(1, frames, 1, 1)
    poses[..., :3, :3] = poses[..., :3, :3] @ source_from_view
    return Windows(
        images=cut.round().clamp(0, 255).byte().unflatten(0, (batch, frames)),
        depth=torch.where(inside, along * ratio, torch.nan).unflatten(0, (batch, frames)),
        world_from_camera=poses,
        intrinsics=k[:, None].repeat(1, frames, 1, 1),
    )


def _rotations(
    source: Tensor, k: Tensor, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Tensor:
    """Return rotations source_from_view (B, S, 3, 3) that keep the views inside the source."""
    height, width = size
    room = []
    for axis, side in ((1, height), (0, width)):
        wide = torch.atan(0.5 * side / source[:, axis, axis])
        room.append((wide - torch.atan(0.5 * side / k[:, axis, axis])).numpy())
    about_x, about_y = (rng.uniform(-1, 1, (len(source), frames)) * free[:, None] for free in room)
    roll = np.radians(rng.normal(0.0, _ROLL_DEGREES, (len(source), frames)))
    vectors = np.stack([about_x, about_y, roll], axis=-1)
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return torch.from_numpy(matrices).unflatten(0, (len(source), frames))


def _sampling_grid(seen: Tensor, source: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where rays (B, S, H, W, 3) meet the source image, in grid_sample's coordinates."""
    height, width = size
    k = source.float()[:, None, None, None]
    column = seen[..., 0] / seen[..., 2] * k[..., 0, 0] + k[..., 0, 2]
    row = seen[..., 1] / seen[..., 2] * k[..., 1, 1] + k[..., 1, 2]
    # Pixels are counted from the middle of the first.
    return torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
