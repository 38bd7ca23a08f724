"""Camera pose on CO3Dv2 and RealEstate10K: AUC over all pairs of ten random frames a scene."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.datasets import Dataset, PosedScene, group_of
from qvggt_core.errors import EvaluationError, ParameterError
from qvggt_core.evaluate.relative_pose import area_under_curve, relative_pose_errors
from qvggt_core.geometry.poses import inverse
from qvggt_core.parameters import Parameters
from qvggt_core.protocols.benchmark import Column
from qvggt_core.protocols.window import predict_window
from qvggt_core.stream import Network

THRESHOLDS = (30, 15, 5, 3)


@dataclass(frozen=True)
class CameraPose:
    """Random frames of a scene, seen at once; errors of all pairs of their cameras.

    Rotation errors are angles; translation errors are angles between directions, where opposite
    directions count as the same; a pair's error is the larger one. AUC@T is the mean over whole
    degrees 1...T of the share of pairs below it. It is taken over all pairs of a group (a CO3D
    category) and the groups' AUCs are averaged, as VGGT's evaluation does.

    Attributes:
        dataset: opens the data set in a directory.
        frames: frames drawn from a scene, without replacement, in the order that they are drawn;
            the first one is the network's reference.
        seed: with the scene's name, decides the draw.
    """

    dataset: Callable[[Path], Dataset] = field(repr=False)
    frames: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ParameterError(f"{self.frames} frame(s) make no pair: draw at least 2")

    @property
    def columns(self) -> tuple[Column, ...]:
        """AUC at each threshold, and the median errors."""
        areas = tuple(Column(f"auc_{t}", f"AUC@{t}", 1, True) for t in THRESHOLDS)
        return (
            *areas,
            Column("rotation", "rotation °", 2, False),
            Column("translation", "direction °", 2, False),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All choices as plain data."""
        return {"frames": self.frames, "seed": self.seed, "thresholds": list(THRESHOLDS)}

    def open(self, root: Path) -> Dataset:
        """Return the data set in a directory."""
        return self.dataset(root)

    def draw(self, scene: PosedScene) -> list[int]:
        """Return the numbers of the frames that are judged.

        A scene's draw depends on its name and the seed alone, not on which scenes came before.

        Raises:
            EvaluationError: the scene has fewer frames with a pose.
        """
        posed = [i for i, frame in enumerate(scene.frames) if frame.world_from_camera is not None]
        if len(posed) < self.frames:
            raise EvaluationError(
                f"scene {scene.name} has {len(posed)} frames with a pose, {self.frames} are drawn"
            )
        # A hash orders the frames: generators may change between releases of NumPy, and with them
        # would every published number.
        shuffled = sorted(posed, key=lambda i: _hash(f"{self.seed}:{scene.name}:{i}"))
        return shuffled[: self.frames]

    def judge(self, scene: PosedScene, network: Network, parameters: Parameters) -> dict[str, Any]:
        """Return the drawn frames and the errors of all pairs in degrees."""
        chosen = self.draw(scene)
        scene.require_images(chosen)
        frames = [scene.frames[i] for i in chosen]
        window = predict_window(network, frames, parameters.poses_from)
        truth = inverse(scene.poses(chosen))
        # VGGT's evaluation takes the later camera of a pair in the earlier one's frame.
        errors = relative_pose_errors(
            window.prediction.camera_from_world[::-1], truth[::-1], fold_direction=True
        )
        pairs = self.frames * (self.frames - 1) // 2
        if len(errors.rotation) == 0:
            raise EvaluationError(
                f"scene {scene.name}: none of the {pairs} pairs has a baseline: the true cameras "
                "are all at one place, and directions of translation are not defined"
            )
        return {
            "frames": chosen,
            "pairs_without_baseline": pairs - len(errors.rotation),
            "rotation_deg": errors.rotation.tolist(),
            "translation_deg": errors.translation.tolist(),
            **{f"auc_{t}": area_under_curve(errors.worst, t) for t in THRESHOLDS},
            "seconds": window.seconds,
        }

    def summarise(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Return the AUCs over the pairs of each group, averaged over groups, and the medians."""
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for name, result in results.items():
            groups[group_of(name) if "/" in name else ""].append(result)
        areas = {
            f"auc_{t}": float(
                np.mean([area_under_curve(_worst(members), t) for members in groups.values()])
            )
            for t in THRESHOLDS
        }
        medians = {
            name: float(np.median(np.concatenate([r[f"{name}_deg"] for r in results.values()])))
            for name in ("rotation", "translation")
        }
        return areas | medians


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _worst(results: list[Mapping[str, Any]]) -> np.ndarray:
    return np.concatenate(
        [np.maximum(result["rotation_deg"], result["translation_deg"]) for result in results]
    )
