"""The result of a reconstruction: one object, in memory or read from its directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import as_written, read_trajectory, write_tum
from qvggt_core.geometry.cloud import Cloud, empty_cloud, read_ply, write_ply
from qvggt_core.parameters import Parameters
from qvggt_core.results import layout
from qvggt_core.results.builder import ResultBuilder, main_segment
from qvggt_core.results.errors import (
    DepthErrorRow,
    PoseErrors,
    read_depth_errors,
    read_pose_errors,
    write_depth_errors,
    write_pose_errors,
)
from qvggt_core.results.samples import Samples
from qvggt_core.results.schema import AlignedAccuracy, DepthNumbers, Metrics, SegmentAccuracy
from qvggt_core.util.files import atomic_path, write_atomically

_MAX_RUN_BYTES = 1 << 27


@dataclass(frozen=True)
class Result:
    """What a reconstruction gave, and what a comparison with the truth found.

    Attributes:
        metrics: the content of metrics.json.
        run: the content of run.json.
        tracks: camera poses per segment, as trajectory.tum has them.
        pose_errors: errors pose by pose, per segment; empty without a truth.
        depth_errors: errors image by image; empty without a true depth.
        load_cloud: returns the map of a segment.
        load_samples: returns the sample frames, or None.
    """

    metrics: Metrics
    run: Mapping[str, Any]
    tracks: Mapping[int, Track]
    pose_errors: Mapping[int, PoseErrors]
    depth_errors: Sequence[DepthErrorRow]
    load_cloud: Callable[[int], Cloud]
    load_samples: Callable[[], Samples | None]

    @classmethod
    def of(cls, built: ResultBuilder, metrics: Metrics, run: Mapping[str, Any]) -> Result:
        """Return the result of a reconstruction that has ended."""
        clouds = {segment: built.cloud(segment) for segment in built.tracks}
        samples = built.samples()
        return cls(
            metrics=metrics,
            run=run,
            tracks={segment: as_written(track) for segment, track in built.tracks.items()},
            pose_errors={},
            depth_errors=(),
            load_cloud=clouds.__getitem__,
            load_samples=lambda: samples,
        )

    @classmethod
    def read(cls, directory: Path) -> Result:
        """Read a result directory; maps and samples are read late.

        Raises:
            RecordingError: it is no result, or a file of it cannot be read.
            EvaluationError: its metrics or a trajectory cannot be read.
        """
        tracks = _read_tracks(directory)
        metrics = Metrics.read(directory / layout.METRICS_FILE)
        run = _read_run(directory)
        pose_errors: dict[int, PoseErrors] = {}
        depth_errors: tuple[DepthErrorRow, ...] = ()
        if metrics.accuracy is not None:
            main = main_segment(tracks)
            errors = read_pose_errors(directory / layout.ERRORS_FILE, main)
            pose_errors = {} if errors is None else {main: errors}
            depth_errors = read_depth_errors(directory / layout.DEPTH_ERRORS_FILE)

        def cloud(segment: int) -> Cloud:
            path = directory / layout.segment_file(layout.POINTS_FILE, segment)
            return read_ply(path) if path.exists() else empty_cloud()

        return cls(
            metrics,
            run,
            tracks,
            pose_errors,
            depth_errors,
            cloud,
            lambda: Samples.read(directory / layout.SAMPLES_FILE),
        )

    def with_warning(self, warning: str) -> Result:
        """Return the result with one more warning in its metrics."""
        warnings = [*self.metrics.warnings, warning]
        return replace(self, metrics=self.metrics.model_copy(update={"warnings": warnings}))

    def write_facts(self, directory: Path) -> list[Path]:
        """Write metrics.json and run.json; return their paths."""
        files = [directory / layout.METRICS_FILE, directory / layout.RUN_FILE]
        write_atomically(files[0], self.metrics.to_json())
        write_atomically(files[1], json.dumps(self.run, indent=1) + "\n")
        return files

    def write_comparison(self, directory: Path) -> list[Path]:
        """Write metrics.json, what a comparison found, and the samples' truth.

        Returns:
            The tables that were written.
        """
        write_atomically(directory / layout.METRICS_FILE, self.metrics.to_json())
        if self.metrics.accuracy is None:
            return []
        files = [directory / layout.ERRORS_FILE]
        write_pose_errors(files[0], self.pose_errors.values())
        depth_file = directory / layout.DEPTH_ERRORS_FILE
        if not self.depth_errors:
            depth_file.unlink(missing_ok=True)  # of a former comparison
            return files
        write_depth_errors(depth_file, self.depth_errors)
        if (samples := self.load_samples()) is not None:
            samples.write(directory / layout.SAMPLES_FILE)
        return [*files, depth_file]

    @property
    def windows(self) -> list[tuple[int, int, str, float]]:
        """What the images say of each window, see `ResultBuilder.windows`."""
        return [tuple(row) for row in self.run.get("windows", [])]

    # The longest segment is what reports show.

    @property
    def segment(self) -> int:
        """Number of the longest segment."""
        return max(self.tracks, key=lambda segment: len(self.tracks[segment]))

    @property
    def track(self) -> Track:
        """Camera poses of the longest segment."""
        return self.tracks[self.segment]

    @property
    def cloud(self) -> Cloud:
        """Map of the longest segment."""
        return self.load_cloud(self.segment)

    @property
    def errors(self) -> PoseErrors | None:
        """Errors of the longest segment, or None without a truth."""
        return self.pose_errors.get(self.segment)

    def seconds(self, stamps_ns: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the times of some stamps since the first pose of the longest segment."""
        start = self.track.stamps_ns[0]
        return np.array([(int(stamp) - start) * 1e-9 for stamp in stamps_ns])

    @property
    def accuracy(self) -> SegmentAccuracy | None:
        """The longest segment against the truth."""
        found = self.metrics.accuracy
        segments = {each.segment: each for each in found.segments} if found else {}
        return segments.get(self.segment)

    @property
    def quoted(self) -> AlignedAccuracy | None:
        """The errors to quote: of the longest segment, after the alignment that is fair."""
        if self.metrics.accuracy is None or self.accuracy is None:
            return None
        return self.accuracy.alignments.get(self.metrics.accuracy.alignment)

    @property
    def path_error(self) -> float | None:
        """Rmse of the position error by the length of the true path."""
        if self.quoted is None or self.accuracy is None or not self.accuracy.truth_length:
            return None
        return self.quoted.translation.rmse / self.accuracy.truth_length

    @property
    def depth(self) -> DepthNumbers | None:
        """Depth errors to quote: in metres where the map is, else after scaling by medians."""
        found = self.metrics.accuracy and self.metrics.accuracy.depth
        if not found:
            return None
        return found.alignments.get("none") or found.alignments.get("median")


def write_reconstruction(
    directory: Path, built: ResultBuilder, parameters: Parameters
) -> list[Path]:
    """Write trajectories, maps, parameters and sample frames; return their paths."""
    files = []
    for segment, track in built.tracks.items():
        trajectory = directory / layout.segment_file(layout.TRAJECTORY_FILE, segment)
        with atomic_path(trajectory) as partial:
            write_tum(partial, track)
        points = directory / layout.segment_file(layout.POINTS_FILE, segment)
        with atomic_path(points) as partial:
            write_ply(partial, built.cloud(segment))
        files += [trajectory, points]
    files += [directory / layout.PARAMETERS_FILE, directory / layout.SAMPLES_FILE]
    write_atomically(files[-2], parameters.to_yaml())
    built.samples().write(files[-1])
    return files


def read_parameters(directory: Path) -> Parameters:
    """Return the effective parameters of a result.

    Raises:
        ParameterError: the file is not there, or a value is refused.
    """
    return Parameters.read(directory / layout.PARAMETERS_FILE)


def _read_run(directory: Path) -> dict[str, Any]:
    path = directory / layout.RUN_FILE
    try:
        if path.stat().st_size > _MAX_RUN_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError("it holds no names")
    except (OSError, ValueError, RecursionError) as error:
        raise RecordingError(
            f"{directory} is no result of this version: cannot read {path}: {error}; "
            "reconstruct again"
        ) from error
    return run


def _read_tracks(directory: Path) -> dict[int, Track]:
    tracks = {}
    for path in directory.glob("trajectory*.tum"):
        if (name := re.fullmatch(r"trajectory(?:_(\d+))?\.tum", path.name)) is not None:
            tracks[int(name[1] or 0)] = read_trajectory(path)
    if not tracks:
        raise RecordingError(
            f"{directory} is no result of a reconstruction: it has no trajectory.tum"
        )
    return dict(sorted(tracks.items()))
