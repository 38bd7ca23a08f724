"""Windows of a camera that only turns, or only moves, cut from the images of others.

In most windows image motion mixes what rotation does with what parallax does, and a young network
finds neither. Apart, each is simple.
"""

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
    k = _narrower(windows.intrinsics[:, 0], rng)
    first = Windows(**{name: part[:, :1].expand_as(part) for name, part in vars(windows).items()})
    return _cut(first, _rotations(windows, k, rng), k)


def straightened(windows: Windows, rng: np.random.Generator) -> Windows:
    """Turn every frame to the attitude of its window's first, as a narrower view of it.

    Args:
        windows: whose frames are cut up; what a view shows beyond its image is as in `turned`.
        rng: decides focal lengths.
    """
    k = _narrower(windows.intrinsics[:, 0], rng)
    attitudes = windows.world_from_camera[..., :3, :3]
    return _cut(windows, attitudes.mT @ attitudes[:, :1], k)


def _narrower(intrinsics: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pinhole matrices (B, 3, 3) with larger focal lengths."""
    k = intrinsics.double().clone()
    zoom = torch.from_numpy(rng.uniform(*_ZOOM, size=len(k)))
    k[:, 0, 0] *= zoom
    k[:, 1, 1] *= zoom
    return k


def _cut(sources: Windows, source_from_view: Tensor, k: Tensor) -> Windows:
    """Return what cameras at the sources' places see that are turned against them.

    Args:
        sources: an image for every view.
        source_from_view: (B, S, 3, 3) rotations.
        k: (B, 3, 3) pinhole matrices of the views.
    """
    batch, frames, _, height, width = sources.images.shape
    rays = pixel_rays(k, height, width)[:, None].expand(-1, frames, -1, -1, -1)
    seen = torch.einsum("bsij,bshwj->bshwi", source_from_view.float(), rays)
    grid = _sampling_grid(seen, sources.intrinsics, (height, width)).flatten(0, 1)
    images = sources.images.flatten(0, 1).float()
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    depth = sources.depth.flatten(0, 1)[:, None]
    # Along the source's axis; a ray with z = 1 in the view has another z there.
    along = F.grid_sample(depth, grid, mode="nearest", align_corners=False)[:, 0]
    depth = torch.where((grid.abs() <= 1.0).all(dim=-1), along, torch.nan)
    poses = sources.world_from_camera.clone()
    poses[..., :3, :3] = poses[..., :3, :3] @ source_from_view
    return Windows(
        images=cut.round().clamp(0, 255).byte().unflatten(0, (batch, frames)),
        depth=depth.unflatten(0, (batch, frames)) / seen[..., 2],
        world_from_camera=poses,
        intrinsics=k[:, None].repeat(1, frames, 1, 1),
    )


def _rotations(windows: Windows, k: Tensor, rng: np.random.Generator) -> Tensor:
    """Return rotations source_from_view (B, S, 3, 3) that keep views inside the first images."""
    frames, size = windows.images.shape[1], windows.images.shape[-2:]
    source = windows.intrinsics[:, 0]
    room = []
    for axis in (1, 0):
        half = 0.5 * size[1 - axis]
        wide = torch.atan(half / source[:, axis, axis])
        room.append((wide - torch.atan(half / k[:, axis, axis])).numpy())
    about_x, about_y = (rng.uniform(-1, 1, (len(source), frames)) * free[:, None] for free in room)
    roll = np.radians(rng.normal(0.0, _ROLL_DEGREES, (len(source), frames)))
    vectors = np.stack([about_x, about_y, roll], axis=-1)
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return torch.from_numpy(matrices).unflatten(0, (len(source), frames))


def _sampling_grid(seen: Tensor, source: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where rays (B, S, H, W, 3) meet the sources' images, in grid_sample's coordinates."""
    height, width = size
    k = source.float()[:, :, None, None]
    column = seen[..., 0] / seen[..., 2] * k[..., 0, 0] + k[..., 0, 2]
    row = seen[..., 1] / seen[..., 2] * k[..., 1, 1] + k[..., 1, 2]
    # Pixels are counted from the middle of the first.
    return torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
