"""Results of a comparison: repetitions of each row, and their summary with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import QuantizationError
from qvggt_core.evaluate.bootstrap import Interval, bootstrap
from qvggt_core.measure.footprint import Footprint
from qvggt_core.quantize.scores import WindowScores
from qvggt_core.quantize.study import Row, Study
from qvggt_core.util.files import write_atomically

FULL_PRECISION = "full precision"
_MEDIANS = ("rotation", "translation", "pose_drift", "depth_drift")
"""Metrics of which the median over windows is taken: single windows are off by 90 degrees, or fall
into another solution."""

_KEPT = {
    "auc_30": 2,
    "auc_3": 2,
    "abs_rel": 5,
    "pose_drift": 3,
    "depth_drift": 5,
    "matched": 5,
    "matches_moved": 5,
}
"""Metrics that are kept window by window, and their digits."""


@dataclass
class Repetition:
    """One quantized network and its scores.

    Attributes:
        megabytes: size of the file, 10^6 bytes.
        bits_per_weight: of the whole file.
        seconds: time of quantization.
        scores: on the evaluation windows.
        footprint: memory and time of a window, where it was measured.
    """

    megabytes: float
    bits_per_weight: float
    seconds: float
    scores: WindowScores
    footprint: Footprint | None


@dataclass
class RowResult:
    """Result of one row of a study.

    Attributes:
        label: of the row.
        precision: e.g. "w4a16"; "16 bit" or "32 bit" for full precision.
        row: the row as data, None for full precision.
        repetitions: number of calibration sets.
        megabytes: size of the file, 10^6 bytes.
        bits_per_weight: of the whole file.
        seconds: mean time of quantization.
        scores: value and interval by metric.
        changes: mean difference to full precision and its interval, by metric.
        spread: lowest and highest AUC@30 over repetitions.
        footprint: memory and time of a window.
        windows: some scores of every window, means over repetitions, see `_KEPT`.
    """

    label: str
    precision: str
    row: dict[str, Any] | None
    repetitions: int
    megabytes: float
    bits_per_weight: float
    seconds: float
    scores: dict[str, Interval]
    changes: dict[str, Interval]
    spread: tuple[float, float]
    footprint: Footprint | None = None
    windows: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for JSON."""
        data = asdict(self)
        for key in ("scores", "changes"):
            data[key] = {name: Interval(*value)._asdict() for name, value in data[key].items()}
        return data


@dataclass
class StudyResult:
    """A study's table.

    Attributes:
        study: the study.
        rows: full precision first.
    """

    study: Study
    rows: list[RowResult]


def summarise_row(
    row: Row | None, repetitions: Sequence[Repetition], full: Repetition
) -> RowResult:
    """Return the means over repetitions of a row; no row stands for full precision itself."""
    names = tuple(full.scores.values)
    mean = {name: np.mean([r.scores.values[name] for r in repetitions], axis=0) for name in names}
    auc = [float(r.scores.values["auc_30"].mean()) for r in repetitions]
    return RowResult(
        label=FULL_PRECISION if row is None else row.label,
        precision=f"{full.bits_per_weight:.0f} bit" if row is None else row.precision,
        row=None if row is None else row.model_dump(),
        repetitions=len(repetitions),
        megabytes=float(np.mean([r.megabytes for r in repetitions])),
        bits_per_weight=float(np.mean([r.bits_per_weight for r in repetitions])),
        seconds=float(np.mean([r.seconds for r in repetitions])),
        scores={name: bootstrap(mean[name], statistic_of(name)) for name in names},
        changes={name: bootstrap(mean[name] - full.scores.values[name], np.mean) for name in names},
        spread=(min(auc), max(auc)),
        footprint=next((r.footprint for r in repetitions if r.footprint), None),
        windows={
            name: np.round(mean[name], digits).tolist()
            for name, digits in _KEPT.items()
            if name in mean
        },
    )


def statistic_of(name: str) -> Callable[..., NDArray]:
    """Return what sums up a metric of windows: their mean, or median."""
    return np.median if name in _MEDIANS else np.mean


def write_repetition(path: Path, identity: dict[str, Any], repetition: Repetition) -> None:
    """Write a repetition as JSON, with what identifies it."""
    data = {
        "identity": identity,
        "megabytes": repetition.megabytes,
        "bits_per_weight": repetition.bits_per_weight,
        "seconds": repetition.seconds,
        "footprint": None if repetition.footprint is None else asdict(repetition.footprint),
        "scores": {name: values.tolist() for name, values in repetition.scores.values.items()},
    }
    write_atomically(path, json.dumps(data))


def read_repetition(path: Path) -> Repetition:
    """Read a repetition.

    Raises:
        QuantizationError: the file cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Repetition(
            data["megabytes"],
            data["bits_per_weight"],
            data["seconds"],
            WindowScores({name: np.array(values) for name, values in data["scores"].items()}),
            None if data["footprint"] is None else Footprint(**data["footprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"{path} cannot be read ({error!r}): delete it, and its row is computed again"
        ) from error
