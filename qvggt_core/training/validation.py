"""How well a network reconstructs windows with known geometry, beside the trivial answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.evaluate.depth import window_depth_errors
from qvggt_core.evaluate.relative_pose import (
    RelativePoseErrors,
    area_under_curve,
    concatenate,
    relative_pose_errors,
)
from qvggt_core.geometry.poses import inverse
from qvggt_core.model import VGGT, decode_pose
from qvggt_core.stream.frame import View, WindowPrediction
from qvggt_core.stream.network import TorchNetwork
from qvggt_core.stream.poses_from_matches import PosesFromMatches
from qvggt_core.training.windows import Windows


@dataclass(frozen=True)
class WindowMetrics:
    """Errors over windows.

    Attributes:
        auc_30: AUC@30 of the larger of rotation and translation-direction error, all pairs.
        auc_15: AUC@15.
        auc_5: AUC@5.
        auc_3: AUC@3.
        rotation: median over pairs, degrees.
        translation: median error of the direction of translation, degrees.
        abs_rel: mean |d - d*| / d* after one scale per window (ratio of medians).
        delta: share of pixels with max(d / d*, d* / d) < 1.25 after that scale.
        windows: number of windows.
        pairs: number of pairs.
    """

    auc_30: float
    auc_15: float
    auc_5: float
    auc_3: float
    rotation: float
    translation: float
    abs_rel: float
    delta: float
    windows: int
    pairs: int

    def to_dict(self) -> dict[str, float]:
        """Return the numbers as plain data."""
        return asdict(self)


@torch.no_grad()
def evaluate_windows(network: VGGT, windows: Windows, batch: int = 8) -> WindowMetrics:
    """Evaluate the camera and depth heads of a network.

    Args:
        network: in evaluation or training mode alike; run in its parameters' device and dtype.
        windows: what to reconstruct, with ground truth.
        batch: windows per forward pass.
    """
    device = next(network.parameters()).device
    poses, depths = [], []
    height, width = windows.images.shape[-2:]
    for images in windows.images.split(batch):
        prediction = network(images.to(device).float() / 255.0, heads=("camera", "depth"))
        camera_from_world, _ = decode_pose(prediction.pose_encodings[-1].float(), height, width)
        assert prediction.depth is not None
        poses.append(camera_from_world.double().cpu().numpy())
        depths.append(prediction.depth.float().cpu().numpy())
    pose = np.concatenate(poses)
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*pose.shape[:2], 1, 4))
    return summarise(np.concatenate([pose, bottom], axis=2), np.concatenate(depths), windows)


def evaluate_matches(
    network: VGGT, windows: Windows, with_intrinsics: bool = False
) -> WindowMetrics:
    """Evaluate poses from matches, and the depth that agrees with them, see `solve_window`.

    Args:
        network: that was trained to match.
        windows: what to reconstruct, with ground truth.
        with_intrinsics: whether the cameras are calibrated; else they are as predicted.
    """
    solved = [each.prediction for each in solved_windows(network, windows, with_intrinsics)]
    poses = np.stack([each.camera_from_world for each in solved])
    return summarise(poses, np.stack([each.depth for each in solved]), windows)


class SolvedWindow(NamedTuple):
    """A window of S views of P patches, solved by the matches between them.

    Attributes:
        prediction: with the poses that the matches show, and depth that agrees with them.
        peak: (S, S, P) at [i, j, p] the patch of view j that patch p of view i attends to most.
    """

    prediction: WindowPrediction
    peak: NDArray[np.int64]


def solved_windows(
    network: VGGT, windows: Windows, with_intrinsics: bool = False
) -> Iterator[SolvedWindow]:
    """Solve windows one after the other, as the stream does, see `solve_window`.

    Args:
        network: that was trained to match.
        windows: to solve.
        with_intrinsics: whether the cameras are calibrated; else they are as predicted.
    """
    running = TorchNetwork(network, str(next(network.parameters()).device))
    matches = PosesFromMatches(running)
    for images, intrinsics in zip(windows.images.numpy(), windows.intrinsics.numpy(), strict=True):
        views = [
            View(0, np.ascontiguousarray(image.transpose(1, 2, 0)), known)
            for image, known in zip(
                images, intrinsics if with_intrinsics else [None] * len(images), strict=True
            )
        ]
        tokens = [running.encode(view.image) for view in views]
        predicted = running.predict(tokens, *images.shape[-2:])
        assert predicted.similarity is not None, "the network finds matches"
        peak = predicted.similarity.argmax(axis=-1)
        yield SolvedWindow(matches.solved(predicted, views), peak)


def trivial_metrics(windows: Windows) -> WindowMetrics:
    """Evaluate the answer that needs no image: no rotation, the mean direction, one depth."""
    count, frames = windows.images.shape[:2]
    camera_from_world = inverse(windows.world_from_camera.numpy())
    steps = camera_from_world[:, 1:] @ inverse(camera_from_world[:, :-1])
    direction = steps[..., :3, 3].reshape(-1, 3)
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True).clip(min=1e-9)
    estimate = np.tile(np.eye(4), (count, frames, 1, 1))
    estimate[:, :, :3, 3] = np.arange(frames)[:, None] * direction.mean(axis=0)
    return summarise(estimate, np.ones(tuple(windows.depth.shape), np.float32), windows)


def summarise(camera_from_world: NDArray, depth: NDArray, windows: Windows) -> WindowMetrics:
    """Compare poses (B, S, 4, 4) and depth (B, S, H, W) with the truth of their windows."""
    truth = inverse(windows.world_from_camera.numpy())
    errors = concatenate(
        [
            relative_pose_errors(mine, true)
            for mine, true in zip(camera_from_world, truth, strict=True)
        ]
    )
    relative, close = _depth_errors(depth, windows.depth.numpy())
    return WindowMetrics(
        **_pose_numbers(errors),
        abs_rel=relative,
        delta=close,
        windows=len(depth),
        pairs=len(errors.rotation),
    )


def _pose_numbers(errors: RelativePoseErrors) -> dict[str, float]:
    worst = errors.worst
    return {
        "auc_30": area_under_curve(worst, 30),
        "auc_15": area_under_curve(worst, 15),
        "auc_5": area_under_curve(worst, 5),
        "auc_3": area_under_curve(worst, 3),
        "rotation": float(np.median(errors.rotation)),
        "translation": float(np.median(errors.translation)),
    }


def _depth_errors(depth: NDArray, truth: NDArray) -> tuple[float, float]:
    relative, close = [], []
    for mine, true in zip(depth, truth, strict=True):
        if not np.isfinite(true).any():
            continue
        errors = window_depth_errors(mine, true)
        relative.append(errors.abs_rel)
        close.append(errors.delta_1)
    return float(np.mean(relative)), float(np.mean(close))
