"""Losses and targets against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import inverse, unproject
from qvggt_core.model import (
    decode_pose,
    encode_pose,
)
from qvggt_core.training.losses import (
    camera_loss,
    depth_loss,
    relative_pose_loss,
    window_targets,
)
from qvggt_core.training.pool import Pool
from qvggt_core.training.windows import (
    gather,
)


def test_camera_loss_by_hand() -> None:
    target = torch.zeros(1, 1, 9)
    first, last = target.clone(), target.clone()
    first[..., 0] = 0.5  # linear part: 0.5 - delta / 2, on one of three
    last[..., 3] = 0.01  # quadratic part: 0.01^2 / (2 delta), on one of four
    last[..., 8] = 0.3  # half weight, on one of two
    last_loss = 0.01**2 / (2 * 0.02) / 4 + 0.5 * (0.3 - 0.01) / 2
    first_loss = (0.5 - 0.01) / 3
    expected = (last_loss + 0.6 * first_loss) / 1.6
    assert camera_loss([first, last], target).item() == pytest.approx(expected, rel=1e-5)


def test_relative_pose_loss_is_the_error_of_motions_per_baseline() -> None:
    rng = np.random.default_rng(3)

    def cameras() -> np.ndarray:
        turns = Rotation.from_rotvec(0.4 * rng.standard_normal((6, 3))).as_matrix()
        poses = np.tile(np.eye(4), (2, 3, 1, 1))
        poses[..., :3, :3] = turns.reshape(2, 3, 3, 3)
        poses[..., :3, 3] = rng.standard_normal((2, 3, 3))
        return poses

    def encode(poses: np.ndarray) -> torch.Tensor:
        pinhole = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).expand(2, 3, 3, 3)
        return encode_pose(torch.from_numpy(poses[..., :3, :]).float(), pinhole, 48, 64)

    def error(estimate: np.ndarray, truth: np.ndarray) -> float:
        total = 0.0
        for b in range(2):
            for i, j in ((0, 1), (0, 2), (1, 2)):
                mine, true = (p[b, j] @ np.linalg.inv(p[b, i]) for p in (estimate, truth))
                chord = np.linalg.norm(mine[:3, :3] - true[:3, :3]) / np.sqrt(2)
                off = np.abs(mine[:3, 3] - true[:3, 3]).sum()
                total += 3 * chord + off / np.hypot(np.linalg.norm(true[:3, 3]), 0.02)
        return total / 6

    truth, first, last = cameras(), cameras(), cameras()
    found = relative_pose_loss([encode(first), encode(last)], encode(truth)).item()
    expected = (error(last, truth) + 0.6 * error(first, truth)) / 1.6
    assert found == pytest.approx(expected, rel=1e-3)
    # Another world frame is none of its business.
    assert relative_pose_loss([encode(truth @ first[:, :1])], encode(truth)).item() < 2e-3


def test_depth_loss_by_hand() -> None:
    target = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    depth = torch.tensor([[1.5, 2.0], [9.0, 3.0]])
    confidence = torch.tensor([[2.0, 3.0], [5.0, 4.0]])
    values = (2 * 0.5 - 0.2 * np.log(2)) + (-0.2 * np.log(3)) + (4 * 1.0 - 0.2 * np.log(4))
    # Errors are 0.5, 0, -, -1: one valid pair down (|-1 - 0|, confidence 3) and one across.
    expected = values / 3 + 3 * 1.0 + 2 * 0.5
    assert depth_loss(depth, confidence, target).item() == pytest.approx(expected, rel=1e-5)


def test_pixels_without_depth_carry_no_gradient() -> None:
    target = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    depth = torch.ones(2, 2, requires_grad=True)
    confidence = torch.full((2, 2), 2.0, requires_grad=True)
    depth_loss(depth, confidence, target).backward()
    assert depth.grad is not None
    assert confidence.grad is not None
    assert torch.isfinite(depth.grad).all()
    assert depth.grad[0, 1] == 0
    assert confidence.grad[0, 1] == 0


def test_targets_are_in_the_first_cameras_gauge(pool: Pool) -> None:
    windows = gather(pool, [[(0, 2), (0, 0), (0, 3)], [(1, 1), (1, 2), (1, 3)]])
    targets = window_targets(windows.depth, windows.world_from_camera, windows.intrinsics)
    identity = torch.tensor([0.0, 0, 0, 0, 0, 0, 1])
    torch.testing.assert_close(targets.pose_encodings[:, 0, :7], identity.expand(2, 7))
    lengths = torch.linalg.vector_norm(targets.points, dim=-1).flatten(1).mean(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2))
    # Unprojecting with the encoded cameras gives the same points, by the host's own geometry.
    camera_from_first, intrinsics = decode_pose(targets.pose_encodings, 24, 32)
    for b in range(2):
        for s in range(3):
            matrix = np.eye(4)
            matrix[:3] = camera_from_first[b, s].numpy()
            in_camera = unproject(targets.depth[b, s].numpy(), intrinsics[b, s].numpy())
            first_from_camera = inverse(matrix)
            points = in_camera @ first_from_camera[:3, :3].T + first_from_camera[:3, 3]
            np.testing.assert_allclose(points, targets.points[b, s].numpy(), atol=1e-4)
