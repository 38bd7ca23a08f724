"""Reconstruction on 7-Scenes and NRGBD: accuracy, completeness and normal consistency.

The alignment, the keyframes and the thresholds are those of CUT3R's evaluation (Wang et al., CVPR
2025); docs/benchmarks.md writes every choice down, with the three places where ours differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets import Dataset, PosedScene
from qvggt_core.errors import EvaluationError, ParameterError
from qvggt_core.evaluate.surface import NORMAL_NEIGHBOURS, icp, median_alignment, surface_errors
from qvggt_core.geometry.poses import inverse, unproject
from qvggt_core.parameters import Parameters
from qvggt_core.protocols.benchmark import Column, mean_over_scenes
from qvggt_core.protocols.window import PredictedWindow, predict_window, sampled_depth
from qvggt_core.stream import Network

# CUT3R compares the middle 224x224 pixels of images of 512x384.
_CROP_SHARE = 224 / 384
_KEYS = (
    ("accuracy", "Acc"),
    ("completeness", "Comp"),
    ("normal_consistency", "NC"),
)


@dataclass(frozen=True)
class SurfaceReconstruction:
    """Keyframes of a sequence, seen at once; their points against the unprojected true depth.

    Attributes:
        dataset: opens the data set in a directory.
        every: every n-th frame is a keyframe, from the first on.
        at_least_two: whether short sequences still give two keyframes (CUT3R's rule for NRGBD).
        icp_distance: metres beyond which points are not paired in the final alignment.
        normal_neighbours: nearest points that a normal is fitted to.
        points: "depth" unprojects depth with the predicted cameras, "head" takes the point head.
    """

    dataset: Callable[[Path], Dataset] = field(repr=False)
    every: int = 200
    at_least_two: bool = False
    icp_distance: float = 0.1
    normal_neighbours: int = NORMAL_NEIGHBOURS
    points: Literal["depth", "head"] = "depth"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ParameterError(
                f"every {self.every}-th frame: the keyframes' distance must be at least 1"
            )
        if self.points not in ("depth", "head"):
            raise ParameterError(f"there are no points {self.points!r}; known: depth, head")

    @property
    def columns(self) -> tuple[Column, ...]:
        """Mean and median of the three metrics."""
        return tuple(
            Column(f"{key}_{kind}", f"{name} {kind}{unit}", 3, key == "normal_consistency")
            for key, name in _KEYS
            for kind in ("mean", "median")
            for unit in (["" if key == "normal_consistency" else ", m"])
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All choices as plain data."""
        return {
            "every": self.every,
            "at_least_two": self.at_least_two,
            "icp_distance": self.icp_distance,
            "normal_neighbours": self.normal_neighbours,
            "points": self.points,
        }

    def open(self, root: Path) -> Dataset:
        """Return the data set in a directory."""
        return self.dataset(root)

    def keyframes(self, scene: PosedScene) -> list[int]:
        """Return the numbers of the keyframes; those whose pose is unknown are left out."""
        count = len(scene.frames)
        every = self.every
        if self.at_least_two:
            every = max(1, min(every, count // 2))
        return [i for i in range(0, count, every) if scene.frames[i].world_from_camera is not None]

    def judge(self, scene: PosedScene, network: Network, parameters: Parameters) -> dict[str, Any]:
        """Return the keyframes, what the alignment did, and the metrics in metres."""
        chosen = self.keyframes(scene)
        if not chosen:
            raise EvaluationError(
                f"scene {scene.name}: none of the keyframes of its {len(scene.frames)} frames has "
                "a pose"
            )
        scene.require_images(chosen)
        frames = [scene.frames[i] for i in chosen]
        window = predict_window(network, frames, parameters.poses_from)
        depths = [
            sampled_depth(frame.depth(), frame.camera, view)
            for frame, view in zip(frames, window.views, strict=True)
        ]
        poses = scene.poses(chosen)
        truth = np.stack(
            [
                _moved(unproject(depth, _intrinsics(view.intrinsics)), camera_from_camera)
                for depth, view, camera_from_camera in zip(
                    depths, window.views, inverse(poses[0]) @ poses, strict=True
                )
            ]
        )
        valid = np.asarray(np.isfinite(truth).all(axis=-1))
        if not valid.any():
            raise EvaluationError(
                f"scene {scene.name}: the true depth is invalid in all {len(chosen)} keyframes"
            )
        return {
            "frames": chosen,
            **self.compare(self._estimate(window), truth, valid),
            "seconds": window.seconds,
        }

    def compare(self, estimate: NDArray, truth: NDArray, valid: NDArray) -> dict[str, Any]:
        """Align estimated points to true ones and return the metrics.

        Args:
            estimate: (S, H, W, 3) in the network's world, which is the first view's camera.
            truth: (S, H, W, 3) metres in the first camera.
            valid: (S, H, W) bool, pixels that have a true point.

        Raises:
            EvaluationError: a cloud is empty, not finite, or without extent.
        """
        coarse = median_alignment(estimate[valid], truth[valid])
        middle = valid & _middle(valid.shape[1:])
        aligned, target = coarse.apply(estimate[middle]), truth[middle].astype(np.float64)
        fine = icp(aligned, target, self.icp_distance)
        aligned = aligned @ fine.transform[:3, :3].T + fine.transform[:3, 3]
        return {
            "points": int(np.count_nonzero(middle)),
            "scale": coarse.scale,
            "icp_fitness": fine.fitness,
            "icp_rmse": fine.inlier_rmse,
            **asdict(surface_errors(aligned, target, self.normal_neighbours)),
        }

    def summarise(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Return the mean over sequences of each number."""
        return mean_over_scenes(self.columns, results)

    def _estimate(self, window: PredictedWindow) -> NDArray[np.float32]:
        prediction = window.prediction
        if self.points == "head":
            if prediction.world_points is None:
                raise EvaluationError(
                    "the network gave no points of its own: it has no point head, take the points "
                    "from its depth"
                )
            return prediction.world_points
        world_from_camera = inverse(prediction.camera_from_world)
        return np.stack(
            [
                _moved(unproject(depth, intrinsics), pose)
                for depth, intrinsics, pose in zip(
                    prediction.depth, prediction.intrinsics, world_from_camera, strict=True
                )
            ]
        )


def _middle(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    height, width = shape
    side = min(width, round(_CROP_SHARE * height))
    top, left = height // 2 - side // 2, width // 2 - side // 2
    middle = np.zeros(shape, dtype=bool)
    middle[top : top + side, left : left + side] = True
    return middle


def _moved(points: NDArray, target_from_source: NDArray) -> NDArray[np.float32]:
    moved = points @ target_from_source[:3, :3].T + target_from_source[:3, 3]
    return moved.astype(np.float32)


def _intrinsics(intrinsics: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert intrinsics is not None, "data sets' frames have calibrated cameras"
    return intrinsics
