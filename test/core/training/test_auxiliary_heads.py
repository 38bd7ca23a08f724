"""Auxiliary heads against targets that are computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from qvggt_core.training.auxiliary_heads import PatchHeads, patch_loss
from qvggt_core.training.losses import window_targets
from qvggt_core.training.windows import Windows

FOV = 2.0 * math.atan(0.5)


def perfect(points: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """What heads must give for points before a camera whose image reaches half a metre a metre."""
    place = points[..., :2] / points[..., 2:] / 0.5
    return torch.cat([place, depth.log()[..., None], points], dim=-1)[None]


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 2, 6, 3, generator=generator) - 0.5
    points[..., 2] += 1.5
    return points, points[..., 2] * 0.9, torch.full((1, 2), FOV)


def test_the_true_answer_has_no_loss_and_any_other_has_some() -> None:
    points, depth, fov = scene()
    output = perfect(points, depth)
    assert patch_loss(output, depth, points, fov) < 1e-6
    for channel in range(6):
        wrong = output.clone()
        wrong[..., channel] += 0.1
        assert patch_loss(wrong, depth, points, fov) > 0.01


def test_points_without_depth_or_that_the_first_image_cannot_show_do_not_count() -> None:
    points, depth, fov = scene()
    output = perfect(points, depth)
    depth[0, 0, 0] = torch.nan
    points[0, 0, 1, 2] = -1.0
    points[0, 1, 2, 0] = 5.0
    assert patch_loss(output, depth, points, fov) < 1e-6


def test_heads_give_the_same_loss_wherever_in_the_world_a_window_lies() -> None:
    """They must not teach a place: moving a whole window through the world changes nothing."""
    torch.manual_seed(0)
    heads = PatchHeads(8)
    patches = tuple(torch.randn(1, 2, 12, 8) for _ in range(4))
    camera = torch.randn(1, 2, 8)
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 0.3
    intrinsics = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]).double().repeat(1, 2, 1, 1)
    depth = 1.0 + torch.rand(1, 2, 24, 32)
    elsewhere = torch.eye(4, dtype=torch.float64)
    elsewhere[:3, :3] = torch.linalg.matrix_exp(
        torch.tensor([[0, -0.7, 0.2], [0.7, 0, 0.1], [-0.2, -0.1, 0]], dtype=torch.float64)
    )
    elsewhere[:3, 3] = torch.tensor([10.0, -3.0, 2.0])
    losses = []
    for moved in (poses, elsewhere @ poses):
        images = torch.zeros(1, 2, 3, 24, 32, dtype=torch.uint8)
        windows = Windows(depth, moved, intrinsics, images)
        targets = window_targets(depth, moved, intrinsics, pixel_stride=4)
        terms = heads.losses(patches, camera, windows, targets)
        losses.append([float(term.detach()) for term in terms.values()])
    assert all(value > 0 for value in losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_camera_tokens_pose_is_learned_from_the_token_alone() -> None:
    torch.manual_seed(0)
    heads = PatchHeads(8)
    patches = tuple(torch.randn(1, 2, 12, 8) for _ in range(4))
    camera = torch.randn(1, 2, 8, requires_grad=True)
    depth = torch.ones(1, 2, 24, 32)
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    intrinsics = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]).double().repeat(1, 2, 1, 1)
    windows = Windows(depth, poses, intrinsics, torch.zeros(1, 2, 3, 24, 32, dtype=torch.uint8))
    targets = window_targets(depth, poses, intrinsics, pixel_stride=4)
    heads.losses(patches, camera, windows, targets)["pose"].backward()
    assert camera.grad is not None
    assert (camera.grad.abs().amax(dim=-1) > 1e-3).all()
