"""How well a network does on windows with known geometry, window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.evaluate.relative_pose import RelativePoseErrors, relative_pose_errors
from qvggt_core.evaluate.surface import surface_errors
from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.geometry import inverse
from qvggt_core.model import VGGT, decode_pose
from qvggt_core.quantize.task import unprojected
from qvggt_core.synthetic.windows import Windows

_POINT_STRIDE = 4
"""Every n-th pixel per axis becomes a point: neighbours say the same and cost time."""

_NORMAL_NEIGHBOURS = 12
METRICS = (
    "auc_30",
    "auc_15",
    "auc_5",
    "rotation",
    "translation",
    "abs_rel",
    "accuracy",
    "completeness",
    "normal_consistency",
)
"""What is measured; the first three and the last are better when higher."""


@dataclass(frozen=True)
class WindowScores:
    """Scores of N windows.

    Attributes:
        values: (N,) per name in `METRICS`: mean AUC of the window's pairs in percent, median
            errors of its pairs in degrees, AbsRel of its depth after one scale, and point
            errors in metres after the best similarity transform between its points.
    """

    values: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.values["auc_30"])


@torch.no_grad()
def score_windows(network: VGGT, windows: Windows, batch: int = 8) -> WindowScores:
    """Run a network on windows and compare it with the truth.

    Points are the depth head's, unprojected with the predicted cameras.

    Args:
        network: with camera and depth heads, in the dtype that it shall compute in.
        windows: what to reconstruct, with ground truth.
        batch: windows per forward pass.
    """
    device = next(network.parameters()).device
    rows: list[dict[str, float]] = []
    height, width = windows.images.shape[-2:]
    for start in range(0, len(windows.images), batch):
        images = windows.images[start : start + batch].to(device).float() / 255.0
        said = network(images, heads=("camera", "depth"))
        encodings = said.pose_encodings[-1].float()
        assert said.depth is not None
        depth = said.depth.float()
        poses, _ = decode_pose(encodings, height, width)
        points = unprojected(depth, encodings)
        for index in range(len(images)):
            rows.append(
                _window_scores(
                    poses[index].double().cpu().numpy(),
                    depth[index].cpu().numpy(),
                    points[index].cpu().numpy(),
                    windows,
                    start + index,
                )
            )
    return WindowScores({name: np.array([row[name] for row in rows]) for name in METRICS})


def _window_scores(
    pose: NDArray, depth: NDArray, points: NDArray, windows: Windows, index: int
) -> dict[str, float]:
    camera_from_world = np.tile(np.eye(4), (len(pose), 1, 1))
    camera_from_world[:, :3] = pose
    world_from_camera = windows.world_from_camera[index].numpy()
    errors = relative_pose_errors(camera_from_world, inverse(world_from_camera))
    true_depth = windows.depth[index].numpy()
    return {
        **_pose_scores(errors),
        "abs_rel": _relative_depth_error(depth, true_depth),
        **_point_scores(points, true_depth, world_from_camera, windows.intrinsics[index].numpy()),
    }


def _pose_scores(errors: RelativePoseErrors) -> dict[str, float]:
    worst = errors.worst
    scores = {
        f"auc_{limit}": 100.0 * float(np.mean([(worst < t).mean() for t in range(1, limit + 1)]))
        for limit in (30, 15, 5)
    }
    return {
        **scores,
        "rotation": float(np.median(errors.rotation)),
        "translation": float(np.median(errors.translation)),
    }


def _relative_depth_error(depth: NDArray, truth: NDArray) -> float:
    valid = np.isfinite(truth)
    scale = np.median(truth[valid]) / np.median(depth[valid])
    return float(np.mean(np.abs(scale * depth[valid] - truth[valid]) / truth[valid]))


def _point_scores(
    points: NDArray, depth: NDArray, world_from_camera: NDArray, intrinsics: NDArray
) -> dict[str, float]:
    stride = slice(_POINT_STRIDE // 2, None, _POINT_STRIDE)
    frames, height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width][:, stride, stride]
    z = depth[:, stride, stride]
    rays = np.linalg.inv(intrinsics) @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1).astype(
        float
    )
    in_camera = rays.reshape(frames, 3, *z.shape[1:]) * z[:, None]
    truth = np.einsum("fij,fjhw->fhwi", world_from_camera[:, :3, :3], in_camera)
    truth = truth + world_from_camera[:, None, None, :3, 3]
    valid = np.isfinite(z)
    estimate, truth = points[:, stride, stride][valid].astype(np.float64), truth[valid]
    scale, rotation, translation = align_sim3(estimate, truth)
    errors = surface_errors(
        scale * estimate @ rotation.T + translation, truth, neighbours=_NORMAL_NEIGHBOURS
    )
    return {
        "accuracy": errors.accuracy_mean,
        "completeness": errors.completeness_mean,
        "normal_consistency": errors.normal_consistency_mean,
    }
