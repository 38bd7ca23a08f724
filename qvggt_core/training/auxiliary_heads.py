"""Linear heads that give patches a target while a network is young; dropped after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.pose_encoding import SIZE
from qvggt_core.training.losses import Targets, camera_loss
from qvggt_core.training.windows import Windows

_BEHIND = 0.02
"""Depth, in the window's unit, below which a point has no place in the first camera's image."""


class PatchHeads(nn.Module):
    """For every patch: where the window's first frame shows its point, its depth, and the point.

    And for every camera token its pose: a young camera head hands on next to no gradient.

    One head reads each tapped block but the first. None gives where in the world a patch or a
    camera is: a network must not learn a place.
    """

    def __init__(self, dim: int, taps: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(taps))
        self.layers = nn.ModuleList(nn.Linear(dim, 6) for _ in range(taps))
        self.pose = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, SIZE))

    def forward(self, patches: tuple[Tensor, ...]) -> Tensor:
        """Map four times (B, S, P, 2C) tapped tokens to (taps, B, S, P, 6)."""
        parts = zip(self.layers, self.norms, patches[1:], strict=True)
        return torch.stack([layer(norm(tokens)) for layer, norm, tokens in parts])

    def losses(
        self, patches: tuple[Tensor, ...], camera: Tensor, windows: Windows, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the losses of all heads; `windows` is not read.

        Args:
            patches: four times (B, S, P, 2C) tapped tokens.
            camera: (B, S, 2C) camera tokens.
            windows: ground truth.
            targets: ground truth in the network's gauge.
        """
        output = self(patches).float()
        depth, points = _at_patch_centres(targets, output.shape[-2])
        fov = targets.pose_encodings[:, 0, 7:]
        pose = self.pose(camera).float()
        return {
            "patches": patch_loss(output, depth, points, fov),
            "pose": camera_loss([pose], targets.pose_encodings),
        }


def patch_loss(output: Tensor, depth: Tensor, points: Tensor, fov: Tensor) -> Tensor:
    """Return the smooth L1 loss of `PatchHeads` over patches whose point the first image may show.

    Args:
        output: (taps, B, S, P, 6): place in the first image in units of half its sides, log
            depth, point in the first camera's frame.
        depth: (B, S, P) along the optical axis, in the window's unit; NaN where there is none.
        points: (B, S, P, 3) in the first camera's frame, in the window's unit.
        fov: (B, 2) vertical and horizontal field of view of the first camera, radians.
    """
    tangent = torch.tan(0.5 * fov).flip(-1)[:, None, None]
    place = points[..., :2] / points[..., 2:].clamp(min=1e-3) / tangent
    target = torch.cat([place, depth.log()[..., None], points], dim=-1)
    seen = depth.isfinite() & (points[..., 2] > _BEHIND) & (place.abs() < 2.0).all(dim=-1)
    target = target.nan_to_num().expand_as(output)
    error = F.smooth_l1_loss(output, target, reduction="none", beta=0.02).mean(dim=-1)
    return _masked_mean(error, seen.expand_as(error))


class PlaceHeads(nn.Module):
    """Depth and point of every patch, and where in a room that is always the same it all is.

    A patch of the last block gives its depth and its point in the window's world; a patch of the
    third tap, and a camera token, where they are in the room. They teach the tokens geometry long
    before the camera head has learned to read them, and tie the network to that room.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.window = nn.Linear(dim, 4)
        self.place = nn.Linear(dim, 3)
        self.pose = nn.Linear(dim, 9)

    def losses(
        self, patches: tuple[Tensor, ...], camera: Tensor, windows: Windows, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the L1 losses of the three heads at patch centres; same arguments as above."""
        window = self.window(self.norms[0](patches[-1])).float()
        place = self.place(self.norms[1](patches[2])).float()
        pose = self.pose(self.norms[2](camera)).float()
        depth, points = _at_patch_centres(targets, window.shape[-2])
        valid = depth.isfinite()
        true_window = torch.cat([depth.log()[..., None], points], dim=-1)
        return {
            "window": _masked_l1(window, true_window, valid),
            "place": _masked_l1(place, _in_room(points, windows, targets.unit), valid),
            "pose": F.l1_loss(pose, _room_pose(windows).to(pose.device)),
        }


def _in_room(points: Tensor, windows: Windows, unit: Tensor) -> Tensor:
    """Return points (B, S, P, 3) of the windows' worlds in the room, in units of 3 m."""
    world_from_first = windows.world_from_camera[:, :1].to(points.device).float()
    metric = points * unit[:, None, None, None]
    in_room = torch.einsum("bsij,btpj->btpi", world_from_first[..., :3, :3], metric)
    return (in_room + world_from_first[..., None, :3, 3]) / 3.0


def _room_pose(windows: Windows) -> Tensor:
    """Return (B, S, 9): position in the room, and the camera's right and down axes."""
    own = windows.world_from_camera.float()
    # Flights move less upwards than along, and what moves little is learned late.
    position = own[..., :3, 3] / own.new_tensor([3.0, 3.0, 1.0])
    return torch.cat([position, own[..., :3, 0], own[..., :3, 1]], dim=-1)


def _at_patch_centres(targets: Targets, patches: int) -> tuple[Tensor, Tensor]:
    """Return depth (B, S, P) and points (B, S, P, 3) at the centres of P patches."""
    height, width = targets.depth.shape[-2:]
    patch = round((height * width / patches) ** 0.5)
    depth = targets.depth[..., patch // 2 :: patch, patch // 2 :: patch].flatten(2)
    # Every second of the points, which are half a patch apart, lies in the middle of one.
    return depth, targets.points[..., 1::2, 1::2, :].flatten(2, 3)


def _masked_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return _masked_mean((prediction - target.nan_to_num()).abs().mean(dim=-1), valid)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
