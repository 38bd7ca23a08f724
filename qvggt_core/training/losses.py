"""VGGT's training losses and its normalisation of a window (Wang et al., CVPR 2025, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qvggt_core.model import decode_pose, encode_pose

_CONFIDENCE_WEIGHT = 0.2
_FOV_WEIGHT = 0.5
# A degree of rotation and 5 % of a baseline count alike.
_ROTATION_WEIGHT = 3.0


@dataclass(frozen=True)
class Targets:
    """The true outputs for B windows of S frames.

    The world is the first frame's camera; the mean distance of all valid points from its
    origin is 1.

    Attributes:
        pose_encodings: (B, S, 9).
        depth: (B, S, H, W) along the optical axis; NaN where there is none.
        points: (B, S, H', W', 3) of every n-th pixel per axis, in the window's world; NaN where
            there is none.
        unit: (B,) metres per unit of length.
    """

    pose_encodings: Tensor
    depth: Tensor
    points: Tensor
    unit: Tensor


def window_targets(
    depth: Tensor, world_from_camera: Tensor, intrinsics: Tensor, pixel_stride: int = 1
) -> Targets:
    """Bring ground truth into the network's gauge.

    Args:
        depth: (B, S, H, W) metres; NaN where there is none.
        world_from_camera: (B, S, 4, 4) float64.
        intrinsics: (B, S, 3, 3) pixels.
        pixel_stride: n of the points, from which the unit is computed too.
    """
    height, width = depth.shape[-2:]
    # Double precision: a world's origin may be far from the window.
    camera_from_world = torch.linalg.inv(world_from_camera.double())
    camera_from_first = camera_from_world @ world_from_camera[:, :1].double()
    first_from_camera = torch.linalg.inv(camera_from_first).float()
    rays = pixel_rays(intrinsics, height, width, pixel_stride)
    in_camera = rays * depth[..., ::pixel_stride, ::pixel_stride, None].float()
    rotation, translation = first_from_camera[..., :3, :3], first_from_camera[..., :3, 3]
    points = torch.einsum("bsij,bshwj->bshwi", rotation, in_camera) + translation[:, :, None, None]
    unit = torch.linalg.vector_norm(points, dim=-1).flatten(1).nanmean(dim=1)
    pose = camera_from_first[..., :3, :].float()
    pose[..., 3] = pose[..., 3] / unit[:, None, None]
    return Targets(
        pose_encodings=encode_pose(pose, intrinsics.float(), height, width),
        depth=depth.float() / unit[:, None, None, None],
        points=points / unit[:, None, None, None, None],
        unit=unit,
    )


def pixel_rays(intrinsics: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """Return rays with z = 1, (..., H, W, 3), of pinhole matrices (..., 3, 3)."""
    y = torch.arange(0, height, stride, device=intrinsics.device, dtype=torch.float32)
    x = torch.arange(0, width, stride, device=intrinsics.device, dtype=torch.float32)
    k = intrinsics.float()[..., None, None]
    x_ray = (x - k[..., 0, 2, :, :]) / k[..., 0, 0, :, :]
    y_ray = (y[:, None] - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :]
    x_ray, y_ray = torch.broadcast_tensors(x_ray, y_ray)
    return torch.stack([x_ray, y_ray, torch.ones_like(x_ray)], dim=-1)


def camera_loss(
    pose_encodings: Sequence[Tensor], target: Tensor, discount: float = 0.6, delta: float = 0.02
) -> Tensor:
    """Return the Huber loss of all refinement iterations; earlier ones count less.

    Args:
        pose_encodings: (B, S, 9) per iteration, the last is the result.
        target: (B, S, 9).
        discount: weight of an iteration over that of the next.
        delta: error from which the loss grows linearly, with slope 1.
    """
    total = target.new_zeros(())
    weights = 0.0
    for index, encoding in enumerate(reversed(pose_encodings)):
        error = F.huber_loss(encoding, target, reduction="none", delta=delta) / delta
        parts = error[..., :3].mean() + error[..., 3:7].mean() + _FOV_WEIGHT * error[..., 7:].mean()
        total = total + discount**index * parts
        weights += discount**index
    return total / weights


def relative_pose_loss(
    pose_encodings: Sequence[Tensor],
    target: Tensor,
    discount: float = 0.6,
    short_baseline: float = 0.02,
) -> Tensor:
    """Return the error of the motion between all pairs of frames, per length of the baseline.

    The camera loss measures where each camera is in the first one's frame; for neighbours, which
    lie close together, an error that is small there is a large one in the direction of their
    motion. Wang et al., "pi^3: Permutation-Equivariant Visual Geometry Learning", 2025, supervise
    pairs likewise.

    Args:
        pose_encodings: (B, S, 9) per iteration, the last is the result.
        target: (B, S, 9).
        discount: weight of an iteration over that of the next.
        short_baseline: share of the scene below which a baseline has no direction worth learning.
    """
    iterations = torch.stack(list(pose_encodings))
    frames = target.shape[1]
    first, second = torch.triu_indices(frames, frames, offset=1, device=target.device)
    rotation, translation = _relative_poses(iterations, first, second)
    true_rotation, true_translation = _relative_poses(target[None], first, second)
    angle = _norm((rotation - true_rotation).flatten(-2)) / 2**0.5
    baseline = (true_translation.square().sum(dim=-1) + short_baseline**2).sqrt()
    # Axis by axis: else the axis along which cameras move least is learned last, or never.
    motion = (translation - true_translation).abs().sum(dim=-1) / baseline
    loss = (_ROTATION_WEIGHT * angle + motion).flatten(1).mean(dim=1)
    powers = torch.arange(len(loss) - 1, -1, -1, device=loss.device)
    weights = discount**powers
    return (weights * loss).sum() / weights.sum()


def _relative_poses(encodings: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotations (..., P, 3, 3) and translations (..., P, 3) of second_from_first."""
    pose, _ = decode_pose(encodings, 1, 1)
    rotation, translation = pose[..., :3], pose[..., 3]
    between = rotation[..., second, :, :] @ rotation[..., first, :, :].mT
    moved = (between @ translation[..., first, :, None])[..., 0]
    return between, translation[..., second, :] - moved


def _norm(x: Tensor) -> Tensor:
    # Without the small number the gradient at zero, where first frames start, is not finite.
    return (x.square().sum(dim=-1) + 1e-8).sqrt()


def depth_loss(depth: Tensor, confidence: Tensor, target: Tensor) -> Tensor:
    """Return conf * |error| + conf * |gradient error| - alpha * log conf, over valid pixels.

    Args:
        depth: (..., H, W).
        confidence: (..., H, W), above 1.
        target: (..., H, W); NaN where there is none.
    """
    return dense_loss(depth[..., None], confidence, target[..., None])


def dense_loss(prediction: Tensor, confidence: Tensor, target: Tensor) -> Tensor:
    """Return the same loss for maps of vectors: (..., H, W, D), confidence (..., H, W)."""
    valid = target.isfinite().all(dim=-1)
    error = prediction - target.nan_to_num()
    distance = torch.linalg.vector_norm(error, dim=-1)
    value = confidence * distance - _CONFIDENCE_WEIGHT * confidence.log()
    loss = _masked_mean(value, valid)
    for axis in (-3, -2):
        step = torch.linalg.vector_norm(error.diff(dim=axis), dim=-1)
        # Axis -3 of the maps is axis -2 of masks and confidences.
        both, lower = _neighbours(valid, axis + 1), _lower(confidence, axis + 1)
        loss = loss + _masked_mean(lower * step, both)
    return loss


def _neighbours(valid: Tensor, axis: int) -> Tensor:
    count = valid.shape[axis] - 1
    return valid.narrow(axis, 0, count) & valid.narrow(axis, 1, count)


def _lower(confidence: Tensor, axis: int) -> Tensor:
    count = confidence.shape[axis] - 1
    return torch.minimum(confidence.narrow(axis, 0, count), confidence.narrow(axis, 1, count))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
