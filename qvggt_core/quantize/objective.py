"""The loss of the network's heads: the task-aware objective (QVGGT, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qvggt_core.model import Prediction, decode_pose
from qvggt_core.training.losses import window_targets
from qvggt_core.training.windows import WindowTruth

_DEPTH_WEIGHT = 0.1
_POINT_WEIGHT = 0.1
"""Weights of the dense losses, from the paper's supplement; camera and geometry have 1."""


@dataclass(frozen=True)
class TaskTargets:
    """Targets of the heads for a batch of windows.

    Attributes:
        pose_encodings: (B, S, 9); None for a network of single images, which gives no cameras.
        depth: (B, S, H, W), NaN where unknown; None without a depth head.
        points: (B, S, H, W, 3), NaN where unknown; None without depth or cameras.
        matches: (B, S, S, P, P) full precision's log attention between views, see
            `BlockwiseRunner.matches`; None for a network that was not trained to match.
    """

    pose_encodings: Tensor | None
    depth: Tensor | None
    points: Tensor | None
    matches: Tensor | None = None

    def part(self, rows: slice) -> TaskTargets:
        """Return the targets of some windows."""
        return TaskTargets(
            **{name: None if part is None else part[rows] for name, part in vars(self).items()}
        )


def teacher_targets(prediction: Prediction, matches: Tensor | None = None) -> TaskTargets:
    """Return a full-precision network's own outputs as targets (self-distillation).

    Args:
        prediction: of a batch of windows.
        matches: between their views, see `TaskTargets`.
    """
    if not prediction.pose_encodings:
        return TaskTargets(None, prediction.depth, None)
    encodings = prediction.pose_encodings[-1]
    points = prediction.points
    if points is None and prediction.depth is not None:
        points = unprojected(prediction.depth, encodings)
    return TaskTargets(encodings, prediction.depth, points, matches)


def true_targets(truth: WindowTruth) -> TaskTargets:
    """Return ground truth in the network's gauge: first camera the world, mean distance 1."""
    targets = window_targets(truth.depth, truth.world_from_camera, truth.intrinsics)
    return TaskTargets(targets.pose_encodings, targets.depth, targets.points)


def unprojected(depth: Tensor, encodings: Tensor) -> Tensor:
    """Return the world points (B, S, H, W, 3) of depth (B, S, H, W) seen by predicted cameras."""
    height, width = depth.shape[-2:]
    camera_from_world, k = decode_pose(encodings.float(), height, width)
    y = torch.arange(height, device=depth.device, dtype=torch.float32)
    x = torch.arange(width, device=depth.device, dtype=torch.float32)
    rays_x = (x - k[..., None, 0, 2, None]) / k[..., None, 0, 0, None]
    rays_y = (y[:, None] - k[..., None, 1, 2, None]) / k[..., None, 1, 1, None]
    rays = torch.stack(
        [
            rays_x.expand(*depth.shape),
            rays_y.expand(*depth.shape),
            torch.ones_like(depth, dtype=torch.float32),
        ],
        dim=-1,
    )
    in_camera = rays * depth[..., None].float() - camera_from_world[..., None, None, :, 3]
    return torch.einsum("bsji,bshwj->bshwi", camera_from_world[..., :3], in_camera)


def task_loss(prediction: Prediction, targets: TaskTargets, matches: Tensor | None = None) -> float:
    """Return L_camera + 0.1 L_depth + 0.1 L_point + L_geo + L_match of a batch.

    L_camera is the Huber loss of the last iteration's encodings; dense losses are absolute
    errors weighted by the predicted confidence over its mean; L_geo is the distance between
    the point head's points and the depth head's, unprojected with the predicted camera. A
    network without a point head is compared with the target's points instead, by L_geo alone, and
    one without cameras with the depth alone. L_match is ours, for networks whose poses come from
    matches: see `matching_divergence`; it is left out where `matches` are None.
    """
    if targets.pose_encodings is None:
        assert prediction.depth is not None
        assert targets.depth is not None
        return float((prediction.depth - targets.depth.to(prediction.depth)).abs().nanmean())
    encodings = prediction.pose_encodings[-1].float()
    loss = F.huber_loss(encodings, targets.pose_encodings.to(encodings), delta=0.1)
    if matches is not None and targets.matches is not None:
        loss = loss + matching_divergence(matches, targets.matches)
    if prediction.depth is None or targets.depth is None or prediction.depth_confidence is None:
        return float(loss)
    error = (prediction.depth - targets.depth.to(prediction.depth)).abs()
    loss = loss + _DEPTH_WEIGHT * _weighted(error, prediction.depth_confidence)
    from_depth = unprojected(prediction.depth, encodings)
    assert targets.points is not None
    wanted = targets.points.to(from_depth)
    if prediction.points is not None and prediction.points_confidence is not None:
        wrong = (prediction.points - wanted).abs().sum(dim=-1)
        loss = loss + _POINT_WEIGHT * _weighted(wrong, prediction.points_confidence)
        wanted = prediction.points
    distance = torch.linalg.vector_norm(from_depth - wanted, dim=-1)
    return float(loss + distance[distance.isfinite()].mean())


def matching_divergence(matches: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean KL divergence, in nats, of attention from the wanted one.

    Both are log attention (B, S, S, P, P); each patch's over another view is a distribution, and
    views on themselves do not count.
    """
    return _between_views((wanted.exp() * (wanted - matches)).sum(dim=-1))


def attention_moved(matches: Tensor, wanted: Tensor) -> Tensor:
    """Return the share of attention between views that is elsewhere than wanted, 0 to 1.

    It is the mean total variation distance between the same distributions.
    """
    return _between_views(0.5 * (matches.exp() - wanted.exp()).abs().sum(dim=-1))


def _between_views(values: Tensor) -> Tensor:
    """Return the mean of (B, S, S, P) over pairs of different views; 0 for a single view."""
    views = values.shape[1]
    others = ~torch.eye(views, dtype=torch.bool, device=values.device)
    return values[:, others].mean() if views > 1 else values.new_zeros(())


def _weighted(error: Tensor, confidence: Tensor) -> Tensor:
    valid = error.isfinite()
    weights = confidence[valid]
    return (error[valid] * weights).sum() / weights.sum().clamp_min(1e-12)
