"""Trajectories on TUM RGB-D and EuRoC: the stream as a robot would run it, and its ATE."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets import Dataset, PosedScene
from qvggt_core.errors import EvaluationError, ParameterError
from qvggt_core.evaluate.trajectory import absolute_trajectory_error
from qvggt_core.parameters import Parameters
from qvggt_core.protocols.benchmark import Column, mean_over_scenes
from qvggt_core.stream import Frame, Network, Reconstructor


@dataclass(frozen=True)
class StreamedTrajectory:
    """All images of a sequence through the `Reconstructor`, in the order of time.

    The longest map segment is judged: its poses at images with a true pose are
    aligned by Sim(3), and the absolute trajectory error is the root mean square of what is left.
    `coverage` is the share of the images with truth that this segment has.

    Attributes:
        dataset: opens the data set in a directory.
        every: every n-th image is given to the stream.
    """

    dataset: Callable[[Path], Dataset] = field(repr=False)
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ParameterError(f"every {self.every}-th frame: it must be at least 1")

    @property
    def columns(self) -> tuple[Column, ...]:
        """The error in metres and as a share of the path, and how much of the images it covers."""
        return (
            Column("ate_rmse", "ATE RMSE, m", 3, False),
            Column("ate_percent", "ATE, % of path", 2, False),
            Column("coverage", "coverage", 3, True),
            Column("segments", "segments", 1, False),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All choices as plain data; the stream's own are its parameters."""
        return {"every": self.every, "alignment": "sim3", "segment": "longest"}

    def open(self, root: Path) -> Dataset:
        """Return the data set in a directory."""
        return self.dataset(root)

    def judge(self, scene: PosedScene, network: Network, parameters: Parameters) -> dict[str, Any]:
        """Return the errors in metres, and what the stream did."""
        chosen = list(range(0, len(scene.frames), self.every))
        scene.require_images(chosen)
        truth = {
            scene.frames[i].stamp_ns: pose
            for i in chosen
            if (pose := scene.frames[i].world_from_camera) is not None
        }
        if len(truth) < 2:
            raise EvaluationError(
                f"scene {scene.name}: {len(truth)} of {len(chosen)} images have a true pose, a "
                "trajectory needs at least 2: do the stamps of images and truth overlap?"
            )
        stream = _streamed(scene, chosen, Reconstructor(network, parameters))
        stamps, estimate = stream.longest_segment(truth)
        if len(stamps) < 2:
            poses = sum(map(len, stream.segments.values()))
            raise EvaluationError(
                f"scene {scene.name}: of {len(chosen)} images, {poses} got a pose and no segment "
                "has 2 with a true one"
            )
        error = absolute_trajectory_error(
            estimate, np.stack([truth[stamp] for stamp in stamps]), "sim3"
        )
        return {
            "images": len(chosen),
            "with_truth": len(truth),
            "judged": len(stamps),
            "coverage": len(stamps) / len(truth),
            "segments": len(stream.segments),
            "path_length": error.path_length,
            "scale": error.scale,
            "ate_rmse": error.rmse,
            "ate_mean": error.mean,
            "ate_median": error.median,
            "ate_max": error.maximum,
            "ate_percent": 100.0 * error.rmse / max(error.path_length, 1e-9),
            "events": stream.events,
            "seconds": stream.seconds,
        }

    def summarise(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Return the mean over sequences of each number."""
        return mean_over_scenes(self.columns, results)


@dataclass
class _Stream:
    """Output of a stream: poses (4, 4) by segment and stamp, events, and seconds of work."""

    segments: dict[int, dict[int, NDArray[np.float64]]]
    events: list[str]
    seconds: float

    def longest_segment(self, truth: Container[int]) -> tuple[list[int], NDArray[np.float64]]:
        """Return stamps and poses (N, 4, 4) of the segment with most stamps among the true ones."""
        with_truth = {
            segment: [stamp for stamp in poses if stamp in truth]
            for segment, poses in self.segments.items()
        }
        longest = max(with_truth, key=lambda segment: len(with_truth[segment]), default=None)
        if longest is None:
            return [], np.empty((0, 4, 4))
        stamps = with_truth[longest]
        poses = [self.segments[longest][stamp] for stamp in stamps]
        return stamps, np.array(poses).reshape(-1, 4, 4)


def _streamed(scene: PosedScene, chosen: Sequence[int], reconstructor: Reconstructor) -> _Stream:
    segments: dict[int, dict[int, NDArray[np.float64]]] = defaultdict(dict)
    seconds = 0.0
    events: list[str] = []
    for index in [*chosen, None]:
        frame = None if index is None else scene.frames[index]
        image = None if frame is None else Frame(frame.stamp_ns, frame.image(), frame.camera)
        start = time.perf_counter()
        results = reconstructor.flush() if image is None else reconstructor.add(image)
        seconds += time.perf_counter() - start
        for result in results:
            events += result.events
            for geometry in result.frames:
                segments[result.segment][geometry.view.stamp_ns] = geometry.map_from_camera
    return _Stream(segments, events, seconds)
