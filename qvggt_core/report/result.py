"""A result directory, read for a report."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud, empty_cloud, read_ply
from qvggt_core.results.reconstruction import Samples, read_tracks, segment_file
from qvggt_core.results.schema import AlignedAccuracy, DepthNumbers, Metrics
from qvggt_ros.evaluation import (
    DEPTH_ERRORS_FILE,
    ERRORS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    read_run,
)


@dataclass(frozen=True)
class Errors:
    """Errors along the path of the longest segment.

    Attributes:
        seconds: (M,) since its first pose.
        positions: (M, 3) estimated, in the map.
        truth: (M, 3) true, in the map.
        translation: (M,) in the truth's unit.
        rotation: (M,) degrees.
        scale_ratio: (M,) local scale by global scale, NaN where it is not defined.
    """

    seconds: NDArray[np.float64]
    positions: NDArray[np.float64]
    truth: NDArray[np.float64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    scale_ratio: NDArray[np.float64]


@dataclass(frozen=True)
class ResultView:
    """What a report shows of a result.

    Attributes:
        directory: where it is.
        metrics: metrics.json.
        run: run.json.
        segment: number of the longest segment; what follows is of this one.
        track: camera poses.
        errors: errors along the path, or None without a truth.
        depth_errors: (seconds, AbsRel) per frame, after scaling by medians.
    """

    directory: Path
    metrics: Metrics
    run: dict[str, Any]
    segment: int
    track: Track
    errors: Errors | None
    depth_errors: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    @classmethod
    def read(cls, directory: Path) -> ResultView:
        """Read a result.

        Raises:
            RecordingError: it is no result, or a file of it cannot be read.
            EvaluationError: its metrics or trajectory cannot be read.
        """
        tracks = read_tracks(directory)
        segment = max(tracks, key=lambda number: len(tracks[number]))
        start = tracks[segment].stamps_ns[0]
        metrics = Metrics.read(directory / METRICS_FILE)
        return cls(
            directory=directory,
            metrics=metrics,
            run=read_run(directory),
            segment=segment,
            track=tracks[segment],
            errors=_errors(directory / ERRORS_FILE, segment, start) if metrics.accuracy else None,
            depth_errors=_depth(directory / DEPTH_ERRORS_FILE, start) if metrics.accuracy else None,
        )

    @property
    def cloud(self) -> Cloud:
        """The map."""
        path = self.directory / segment_file("points.ply", self.segment)
        return read_ply(path) if path.exists() else empty_cloud()

    @property
    def samples(self) -> Samples | None:
        """Sample frames."""
        return Samples.read(self.directory / SAMPLES_FILE)

    @property
    def quoted(self) -> AlignedAccuracy | None:
        """The errors to quote: of the longest segment, after the alignment that is fair."""
        accuracy = self.metrics.accuracy
        if accuracy is None:
            return None
        of_segment = {found.segment: found for found in accuracy.segments}
        found = of_segment.get(self.segment)
        return None if found is None else found.alignments.get(accuracy.alignment)

    @property
    def truth_length(self) -> float | None:
        """Length of the true path beside the longest segment."""
        accuracy = self.metrics.accuracy
        lengths = {s.segment: s.truth_length for s in accuracy.segments} if accuracy else {}
        return lengths.get(self.segment)

    @property
    def path_error(self) -> float | None:
        """Rmse of the position error by the length of the true path."""
        if self.quoted is None or not self.truth_length:
            return None
        return self.quoted.translation.rmse / self.truth_length

    @property
    def depth(self) -> DepthNumbers | None:
        """Depth errors to quote: in metres where the map is, else after scaling by medians."""
        found = self.metrics.accuracy and self.metrics.accuracy.depth
        if not found:
            return None
        return found.alignments.get("none") or found.alignments.get("median")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="ascii") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"cannot read {path}: {error}; evaluate again") from error


def _column(path: Path, rows: list[dict[str, str]], *names: str) -> NDArray[np.float64]:
    try:
        values = [[float(row[name] or "nan") for name in names] for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise RecordingError(f"{path} is not as it was written: {error}; evaluate again") from error
    array = np.array(values, dtype=np.float64).reshape(len(rows), len(names))
    return array[:, 0] if len(names) == 1 else array


def _seconds(path: Path, rows: list[dict[str, str]], start: int) -> NDArray[np.float64]:
    try:
        return np.array([(int(row["stamp_ns"]) - start) * 1e-9 for row in rows])
    except (KeyError, ValueError, TypeError) as error:
        raise RecordingError(f"{path} is not as it was written: {error}; evaluate again") from error


def _errors(path: Path, segment: int, start: int) -> Errors | None:
    rows = [row for row in _rows(path) if row.get("segment") == str(segment)]
    if not rows:
        return None
    return Errors(
        seconds=_seconds(path, rows, start),
        positions=_column(path, rows, "x", "y", "z"),
        truth=_column(path, rows, "truth_x", "truth_y", "truth_z"),
        translation=_column(path, rows, "translation_error"),
        rotation=_column(path, rows, "rotation_error_deg"),
        scale_ratio=_column(path, rows, "scale_ratio"),
    )


def _depth(path: Path, start: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if not path.exists():
        return None
    rows = [row for row in _rows(path) if row.get("scaled_by") == "median"]
    return (_seconds(path, rows, start), _column(path, rows, "abs_rel")) if rows else None
