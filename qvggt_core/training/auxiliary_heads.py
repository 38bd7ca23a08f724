"""Linear read-outs that teach a young network geometry; they are dropped after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.training.losses import Targets
from qvggt_core.training.windows import Windows


class Readouts(nn.Module):
    """Linear read-outs that give every patch a target while the network is young.

    A patch of the last block says its depth and its point in the window's world; a patch of
    the third tap, and a camera token, say where they are in the room. They teach the tokens
    geometry long before the camera head has learned to read them, and are not kept.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.window = nn.Linear(dim, 4)
        self.place = nn.Linear(dim, 3)
        self.pose = nn.Linear(dim, 9)


def readout_losses(
    window: Tensor, place: Tensor, pose: Tensor, windows: Windows, targets: Targets, patch: int
) -> dict[str, Tensor]:
    """Return the L1 losses of the training read-outs at patch centres.

    Args:
        window: (B, S, P, 4): log depth and point in the window's world, in its unit.
        place: (B, S, P, 3): point in the room, in units of 3 m.
        pose: (B, S, 9): position in the room, in units of 3 m and of 1 m upwards, and the
            camera's right and down axes.
        windows: ground truth.
        targets: ground truth in the network's gauge.
        patch: side of a patch, pixels.
    """
    centre = slice(patch // 2, None, patch)
    depth = targets.depth[..., centre, centre].flatten(2)
    points = targets.points[..., 1::2, 1::2, :].flatten(2, 3)
    valid = depth.isfinite()
    world_from_first = windows.world_from_camera[:, :1].to(points.device).float()
    unit = targets.unit[:, None, None, None]
    in_room = torch.einsum("bsij,btpj->btpi", world_from_first[..., :3, :3], points * unit)
    in_room = (in_room + world_from_first[..., None, :3, 3]) / 3.0
    own = windows.world_from_camera.to(pose.device).float()
    # Flights move less upwards than along, and what moves little is learned late.
    position = own[..., :3, 3] / own.new_tensor([3.0, 3.0, 1.0])
    true_pose = torch.cat([position, own[..., :3, 0], own[..., :3, 1]], dim=-1)
    true_window = torch.cat([depth.log()[..., None], points], dim=-1)
    return {
        "window": _masked_l1(window, true_window, valid),
        "place": _masked_l1(place, in_room, valid),
        "pose": F.l1_loss(pose, true_pose),
    }


def _masked_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    error = (prediction - target.nan_to_num()).abs().mean(dim=-1)
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)
