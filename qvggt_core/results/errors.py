"""Errors pose by pose and image by image, as tables and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.depth import DepthErrors
from qvggt_core.util.files import atomic_path

_COLUMNS = (
    "segment",
    "stamp_ns",
    "x",
    "y",
    "z",
    "truth_x",
    "truth_y",
    "truth_z",
    "translation_error",
    "rotation_error_deg",
    "scale_ratio",
)
_DEPTH_COLUMNS = ("stamp_ns", "scaled_by", *(each.name for each in fields(DepthErrors)))


@dataclass(frozen=True)
class PoseErrors:
    """Errors of M poses of one segment after the alignment that is quoted.

    Attributes:
        segment: number of the segment.
        stamps_ns: (M,) capture times.
        positions: (M, 3) estimated, in the map.
        truth: (M, 3) true, in the map.
        translation: (M,) in the truth's unit.
        rotation: (M,) degrees.
        scale_ratio: (M,) local scale by global scale, NaN where it is not defined.
    """

    segment: int
    stamps_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    truth: NDArray[np.float64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    scale_ratio: NDArray[np.float64]

    def rows(self) -> Iterator[list[Any]]:
        """Yield a row per pose, in the order of the file's columns."""
        for i, stamp in enumerate(self.stamps_ns):
            ratio = float(self.scale_ratio[i])
            yield [
                self.segment,
                int(stamp),
                *map(float, self.positions[i]),
                *map(float, self.truth[i]),
                float(self.translation[i]),
                float(self.rotation[i]),
                "" if np.isnan(ratio) else ratio,
            ]


@dataclass(frozen=True)
class DepthErrorRow:
    """Errors of one depth image after one scaling."""

    stamp_ns: int
    scaled_by: str
    errors: DepthErrors


def write_pose_errors(path: Path, errors: Iterable[PoseErrors]) -> None:
    """Write a line per compared pose: positions in the map, errors in the truth's unit."""
    _write(path, _COLUMNS, (row for segment in errors for row in segment.rows()))


def read_pose_errors(path: Path, segment: int) -> PoseErrors | None:
    """Return the errors of one segment, or None if none of its poses was compared.

    Raises:
        RecordingError: the file is not as it was written.
    """
    rows = [row for row in _read(path) if row.get("segment") == str(segment)]
    if not rows:
        return None
    try:
        values = np.array([[float(row[name] or "nan") for name in _COLUMNS[2:]] for row in rows])
        stamps = np.array([int(row["stamp_ns"]) for row in rows], dtype=np.int64)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise _changed(path, error) from error
    return PoseErrors(
        segment, stamps, values[:, 0:3], values[:, 3:6], values[:, 6], values[:, 7], values[:, 8]
    )


def write_depth_errors(path: Path, rows: Sequence[DepthErrorRow]) -> None:
    """Write a line per depth image and scaling."""
    _write(
        path,
        _DEPTH_COLUMNS,
        ([row.stamp_ns, row.scaled_by, *vars(row.errors).values()] for row in rows),
    )


def read_depth_errors(path: Path) -> tuple[DepthErrorRow, ...]:
    """Return the errors of the depth images; empty if there is no such file.

    Raises:
        RecordingError: the file is not as it was written.
    """
    if not path.exists():
        return ()
    try:
        return tuple(
            DepthErrorRow(
                int(row["stamp_ns"]),
                row["scaled_by"],
                DepthErrors(**{name: float(row[name]) for name in _DEPTH_COLUMNS[2:]}),
            )
            for row in _read(path)
        )
    except (KeyError, ValueError, TypeError) as error:
        raise _changed(path, error) from error


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        atomic_path(path) as partial,
        partial.open("w", newline="", encoding="ascii") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="ascii") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"cannot read {path}: {error}; evaluate again") from error


def _changed(path: Path, error: Exception) -> RecordingError:
    return RecordingError(f"{path} is not as it was written: {error}; evaluate again")
