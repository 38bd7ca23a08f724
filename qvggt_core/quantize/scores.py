"""Scores of a network on windows with known geometry, window by window.

A network is judged by what it is used for: one that was trained to match by poses, and depth, from
the matches between its views, any other by its heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.evaluate.depth import window_depth_errors
from qvggt_core.evaluate.relative_pose import (
    RelativePoseErrors,
    area_under_curve,
    relative_pose_errors,
)
from qvggt_core.evaluate.surface import surface_errors
from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.geometry.poses import inverse
from qvggt_core.model import VGGT, decode_pose
from qvggt_core.quantize.objective import unprojected
from qvggt_core.training.matching import correspondences
from qvggt_core.training.validation import solved_windows
from qvggt_core.training.windows import Windows

_SAMPLED = slice(2, None, 4)
"""Every fourth pixel per axis becomes a point: neighbours add little and cost time."""

_NORMAL_NEIGHBOURS = 12
METRICS = (
    "auc_30",
    "auc_15",
    "auc_5",
    "auc_3",
    "rotation",
    "translation",
    "abs_rel",
    "accuracy",
    "completeness",
    "normal_consistency",
    "pose_drift",
    "depth_drift",
)
"""Metrics of a window; AUC and normal consistency are better when higher, the rest when lower."""

MATCHING_METRICS = ("matched", "matches_moved")
"""Further ones of a network that was trained to match; `matched` is better when higher."""

_NEAR = 1.0
"""Patches, by rows and by columns, within which a match is the true one, or has not moved."""


@dataclass(frozen=True)
class Outputs:
    """Predictions of N windows of S frames.

    Attributes:
        camera_from_world: (N, S, 4, 4) float64, in the network's own world and unit.
        depth: (N, S, H, W) float32 along the optical axis, in the network's unit, at every pixel
            of the images.
        points: (N, S, h, w, 3) float32 of every n-th pixel, depth unprojected with the cameras.
        peak: (N, S, S, P) where patches of views are found, see `SolvedWindow`; None for a
            network that was not trained to match.
    """

    camera_from_world: NDArray[np.float64]
    depth: NDArray[np.float32]
    points: NDArray[np.float32]
    peak: NDArray[np.int64] | None = None


@torch.no_grad()
def run_windows(
    network: VGGT, windows: Windows, batch: int = 8, with_intrinsics: bool = True
) -> Outputs:
    """Run a network on windows.

    Args:
        network: with camera and depth heads, in the dtype to compute in.
        windows: to predict.
        batch: windows per forward pass, where poses are the camera head's.
        with_intrinsics: whether cameras are calibrated, where poses come from matches.
    """
    if network.config.matching:
        return _run_matching(network, windows, with_intrinsics)
    device = next(network.parameters()).device
    height, width = windows.images.shape[-2:]
    parts = []
    for images in windows.images.split(batch):
        prediction = network(images.to(device).float() / 255.0, heads=("camera", "depth"))
        encodings = prediction.pose_encodings[-1].float()
        assert prediction.depth is not None
        depth = prediction.depth.float()
        poses, _ = decode_pose(encodings, height, width)
        pose = np.tile(np.eye(4), (*poses.shape[:2], 1, 1))
        pose[:, :, :3] = poses.double().cpu().numpy()
        points = unprojected(depth, encodings)[:, :, _SAMPLED, _SAMPLED]
        parts.append((pose, depth.cpu().numpy(), points.cpu().numpy()))
    camera_from_world, depths, clouds = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Outputs(camera_from_world, depths, clouds)


def _run_matching(network: VGGT, windows: Windows, with_intrinsics: bool) -> Outputs:
    solved = list(solved_windows(network, windows, with_intrinsics))
    predictions = [each.prediction for each in solved]
    clouds = [
        _in_world(
            predicted.depth.astype(np.float64),
            predicted.intrinsics,
            inverse(predicted.camera_from_world),
        )
        for predicted in predictions
    ]
    return Outputs(
        np.stack([predicted.camera_from_world for predicted in predictions]),
        np.stack([predicted.depth for predicted in predictions]),
        np.stack(clouds).astype(np.float32),
        np.stack([each.peak for each in solved]),
    )


@dataclass(frozen=True)
class WindowScores:
    """Scores of N windows.

    Attributes:
        values: (N,) per name in `METRICS`: mean AUC of the window's pairs in percent, median
            errors of its pairs in degrees, AbsRel of its depth after one scale, point errors in
            metres after the best similarity transform between its points; and the drift from
            the full-precision network's outputs: mean over pairs of the larger of both angles
            in degrees, mean relative change of depth. For a network that was trained to match
            also per name in `MATCHING_METRICS`: the share of patches, of those that another view
            shows, that are found within a patch of the true place; and the share of them whose
            match is more than a patch from full precision's.
    """

    values: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.values["auc_30"])


def score_outputs(outputs: Outputs, windows: Windows, full: Outputs) -> WindowScores:
    """Compare outputs with the truth of their windows, and with the full-precision network's."""
    rows = [_window_scores(outputs, windows, full, index) for index in range(len(outputs.depth))]
    values = {name: np.array([row[name] for row in rows]) for name in METRICS}
    if outputs.peak is not None and full.peak is not None:
        values |= _match_scores(outputs.peak, full.peak, windows)
    return WindowScores(values)


def _window_scores(
    outputs: Outputs, windows: Windows, full: Outputs, index: int
) -> dict[str, float]:
    world_from_camera = windows.world_from_camera[index].numpy()
    pose, depth = outputs.camera_from_world[index], outputs.depth[index]
    errors = relative_pose_errors(pose, inverse(world_from_camera))
    drift = relative_pose_errors(pose, full.camera_from_world[index])
    true_depth = windows.depth[index].numpy()
    intrinsics = windows.intrinsics[index].numpy()
    return {
        **_pose_scores(errors),
        "abs_rel": window_depth_errors(depth, true_depth).abs_rel,
        **_point_scores(outputs.points[index], true_depth, world_from_camera, intrinsics),
        "pose_drift": float(drift.worst.mean()),
        "depth_drift": float(np.mean(np.abs(depth / full.depth[index] - 1.0))),
    }


def _pose_scores(errors: RelativePoseErrors) -> dict[str, float]:
    worst = errors.worst
    scores = {f"auc_{limit}": area_under_curve(worst, limit) for limit in (30, 15, 5, 3)}
    return {
        **scores,
        "rotation": float(np.median(errors.rotation)),
        "translation": float(np.median(errors.translation)),
    }


def _point_scores(
    points: NDArray, depth: NDArray, world_from_camera: NDArray, intrinsics: NDArray
) -> dict[str, float]:
    truth = _in_world(depth, intrinsics, world_from_camera)
    valid = np.isfinite(truth).all(axis=-1)
    estimate, truth = points[valid].astype(np.float64), truth[valid]
    scale, rotation, translation = align_sim3(estimate, truth)
    errors = surface_errors(
        scale * estimate @ rotation.T + translation, truth, neighbours=_NORMAL_NEIGHBOURS
    )
    return {
        "accuracy": errors.accuracy_mean,
        "completeness": errors.completeness_mean,
        "normal_consistency": errors.normal_consistency_mean,
    }


def _in_world(
    depth: NDArray, intrinsics: NDArray[np.float64], world_from_camera: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return points (S, h, w, 3) of sampled pixels of depth (S, H, W), NaN where it is."""
    frames, height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width][:, _SAMPLED, _SAMPLED]
    z = depth[:, _SAMPLED, _SAMPLED]
    pixels = np.stack([u, v, np.ones_like(u)]).reshape(3, -1).astype(float)
    rays = np.linalg.inv(intrinsics) @ pixels
    in_camera = rays.reshape(frames, 3, *z.shape[1:]) * z[:, None]
    points = np.einsum("fij,fjhw->fhwi", world_from_camera[:, :3, :3], in_camera)
    return points + world_from_camera[:, None, None, :3, 3]


def _match_scores(
    peak: NDArray[np.int64], full: NDArray[np.int64], windows: Windows
) -> dict[str, NDArray[np.float64]]:
    """Return the scores of matches (N, S, S, P), mean over ordered pairs of different views."""
    count, frames, _, patches = peak.shape
    height, width = windows.images.shape[-2:]
    patch = math.isqrt(height * width // patches)
    numbers = (torch.arange(count), torch.arange(frames), torch.arange(frames))
    pairs = torch.cartesian_prod(*numbers)
    pairs = pairs[pairs[:, 1] != pairs[:, 2]]
    true = correspondences(windows, patch, pairs)
    mine, theirs = (
        np.stack(np.divmod(each[tuple(pairs.T.numpy())], width // patch), axis=-1)
        for each in (peak, full)
    )
    visible = true.visible.numpy()
    near = np.abs(mine - true.place.numpy()).max(axis=-1) <= _NEAR
    moved = np.abs(mine - theirs).max(axis=-1) > _NEAR
    seen = visible.reshape(count, -1).sum(axis=1).clip(min=1)
    return {
        name: (values & visible).reshape(count, -1).sum(axis=1) / seen
        for name, values in zip(MATCHING_METRICS, (near, moved), strict=True)
    }
