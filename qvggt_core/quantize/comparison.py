"""One protocol for all recipes: quantize, run on held-out windows, measure, with intervals.

Calibration windows come from the training split of the synthetic worlds, evaluation windows
from the evaluation split, which no seed shares. Every way to quantize is repeated with other
calibration windows; its score of a window is the mean over repetitions, intervals are
bootstrapped over windows, and differences to full precision are taken window by window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.errors import QuantizationError
from qvggt_core.evaluate.bootstrap import Interval, bootstrap
from qvggt_core.measure.footprint import Footprint, measure_footprint
from qvggt_core.model import VGGT, Checkpoint, load_model
from qvggt_core.quantize.calibrate import CalibrationOptions
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.pipeline import quantize_checkpoint
from qvggt_core.quantize.plan import PRESETS, Plan, load_plan
from qvggt_core.quantize.sampling import choose_windows
from qvggt_core.quantize.scores import (
    METRICS,
    Outputs,
    WindowScores,
    run_windows,
    score_outputs,
)
from qvggt_core.quantize.sensitivity import auto_plan, sweep_sensitivity
from qvggt_core.quantize.study import AUTO, Row, Study
from qvggt_core.training.windows import Windows

logger = logging.getLogger(__name__)

FULL_PRECISION = "full precision"
_MEDIANS = ("rotation", "translation")
_SWEEP_WINDOWS = 8


@dataclass(frozen=True)
class Protocol:
    """What all rows of a comparison share.

    Attributes:
        calibration: windows to choose calibration sets from.
        evaluation: held-out windows with ground truth.
        seeds: of the choice; one repetition each. Recipes without calibration run once.
        images: calibration images where a row names no number.
        options: how calibration runs.
        device: where the networks run when they are judged.
    """

    calibration: CalibrationSet
    evaluation: Windows
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 128
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    device: str = "cpu"

    def describe(self) -> dict[str, Any]:
        """Return the protocol as plain data."""
        windows, frames, _, height, width = self.evaluation.images.shape
        return {
            "calibration": self.calibration.describe(),
            "calibration_images": self.images,
            "evaluation_windows": windows,
            "evaluation_frames": frames,
            "size": f"{width}x{height}",
            "evaluation_sha256": hashlib.sha256(
                self.evaluation.images.contiguous().numpy().tobytes()
            ).hexdigest(),
            "seeds": list(self.seeds),
            "judged_images": self.options.judged_images,
        }


@dataclass
class RowResult:
    """What one row of a study came to.

    Attributes:
        label: of the row.
        precision: e.g. "w4a16"; "32 bit" for full precision.
        row: the row as data, None for full precision.
        repetitions: number of calibration sets.
        megabytes: size of the file, 10^6 bytes.
        bits_per_weight: of the whole file.
        seconds: mean time of quantization.
        scores: value and interval by metric.
        changes: mean difference to full precision and its interval, by metric.
        spread: lowest and highest AUC@30 over repetitions.
        footprint: memory and time of a window.
        windows: AUC@30 and AbsRel of every window, means over repetitions.
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


def run_studies(
    checkpoint: Checkpoint,
    studies: Sequence[Study],
    protocol: Protocol,
    workspace: Path,
    *,
    footprint: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[StudyResult]:
    """Run studies, or go on with what of them is in the workspace.

    Args:
        checkpoint: full precision.
        studies: what to compare.
        protocol: how.
        workspace: directory of results by row and repetition; whatever is there of the same
            network, protocol and row is not computed again.
        footprint: whether memory and time are measured.
        progress: called before each repetition with how many are done, how many there are, and
            what is next.

    Raises:
        QuantizationError: a row cannot be quantized.
    """
    runner = _Runner(checkpoint, protocol, workspace, footprint)
    jobs = [
        (study, row, seed) for study in studies for row in study.rows for seed in runner.seeds(row)
    ]
    results: dict[tuple[str, int], list[_Repetition]] = {}
    for number, (study, row, seed) in enumerate(jobs):
        if progress:
            progress(number, len(jobs), f"{study.name}: {row.label} {row.precision}, seed {seed}")
        key = (study.name, study.rows.index(row))
        results.setdefault(key, []).append(runner.repetition(study, row, seed))
    full = runner.full_precision()
    return [
        StudyResult(
            study,
            [
                _summary(None, [full], full),
                *(
                    _summary(row, results[study.name, index], full)
                    for index, row in enumerate(study.rows)
                ),
            ],
        )
        for study in studies
    ]


@dataclass
class _Repetition:
    """One quantized network, judged."""

    megabytes: float
    bits_per_weight: float
    seconds: float
    scores: WindowScores
    footprint: Footprint | None


class _Runner:
    def __init__(
        self, checkpoint: Checkpoint, protocol: Protocol, workspace: Path, footprint: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._protocol = protocol
        self._workspace = workspace
        self._footprint = footprint
        self._identity = f"{checkpoint.sha256()} {json.dumps(protocol.describe(), sort_keys=True)}"
        self._model: VGGT | None = None
        self._outputs: Outputs | None = None
        self._plans: dict[tuple[str, str | int, float], Plan] = {}
        workspace.mkdir(parents=True, exist_ok=True)

    def seeds(self, row: Row) -> tuple[int, ...]:
        """Return the repetitions of a row: one where chance plays no part."""
        seeds = self._protocol.seeds
        return seeds if row.changed_recipe().calibrated else seeds[:1]

    def full_precision(self) -> _Repetition:
        """Judge the network that all others were made from."""
        path = self._checkpoint.path
        shapes = [self._checkpoint.shape(name) for name in self._checkpoint.names()]
        weights = sum(int(np.prod(shape)) for shape in shapes)
        size = path.stat().st_size
        return self._kept(
            {"full precision": True}, lambda: (path, size / 1e6, 8 * size / weights, 0.0), "float32"
        )

    def repetition(self, study: Study, row: Row, seed: int) -> _Repetition:
        """Quantize and judge, or read what was found before."""
        bits = study.auto_bits if row.plan == AUTO else 0.0
        identity = {**row.model_dump(exclude={"label"}), "seed": seed, "auto_bits": bits}
        recipe = row.changed_recipe()
        identity["recipe_settings"] = recipe.to_dict()

        def quantize() -> tuple[Path, float, float, float]:
            plan = self._plan(row, study.auto_bits)
            data = None
            if recipe.calibrated:
                images = row.images or self._protocol.images
                model = self._full_model() if row.sampling == "diverse" else None
                data = choose_windows(self._protocol.calibration, images, row.sampling, seed, model)
            started = time.perf_counter()
            report = quantize_checkpoint(
                self._checkpoint,
                self._workspace / "network.safetensors",
                recipe=recipe,
                plan=plan,
                precision=row.precision,
                group_size=row.group_size,
                data=data,
                options=self._protocol.options,
            )
            weights = sum(size.weights for size in report.parts.values())
            return (
                report.target,
                report.file_bytes / 1e6,
                8 * sum(size.nbytes for size in report.parts.values()) / weights,
                time.perf_counter() - started,
            )

        return self._kept(identity, quantize, "auto" if seed == self._protocol.seeds[0] else None)

    def _kept(
        self,
        identity: dict[str, Any],
        make: Callable[[], tuple[Path, float, float, float]],
        footprint_dtype: str | None,
    ) -> _Repetition:
        text = self._identity + json.dumps(identity, sort_keys=True)
        path = self._workspace / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
        if path.is_file():
            return _read_repetition(path)
        network, megabytes, bits, seconds = make()
        model = load_model(network, self._protocol.device, torch.float32)
        said = run_windows(model, self._protocol.evaluation)
        del model
        scores = score_outputs(said, self._protocol.evaluation, self._full_outputs())
        cost = None
        if self._footprint and footprint_dtype:
            _, frames, _, height, width = self._protocol.evaluation.images.shape
            cost = measure_footprint(network, frames, height, width, dtype=footprint_dtype)
        repetition = _Repetition(megabytes, bits, seconds, scores, cost)
        _write_repetition(path, identity, repetition)
        return repetition

    def _full_model(self) -> VGGT:
        if self._model is None:
            self._model = load_model(self._checkpoint.path, self._protocol.device, torch.float32)
        return self._model

    def _full_outputs(self) -> Outputs:
        if self._outputs is None:
            self._outputs = run_windows(self._full_model(), self._protocol.evaluation)
        return self._outputs

    def _plan(self, row: Row, auto_bits: float) -> Plan:
        if row.plan != AUTO:
            return PRESETS[row.plan] if row.plan in PRESETS else load_plan(row.plan)
        key = (row.precision, row.group_size, auto_bits)
        if key not in self._plans:
            windows = range(min(_SWEEP_WINDOWS, len(self._protocol.calibration.images)))
            sweep = sweep_sensitivity(
                self._checkpoint,
                self._protocol.calibration.part(windows),
                precision=row.precision,
                group_size=row.group_size,
                device=self._protocol.device,
            )
            kept = ("point_head.", "track_head.")
            shapes = {
                name: self._checkpoint.shape(name)
                for name in self._checkpoint.names()
                if not name.startswith(kept)
            }
            self._plans[key] = auto_plan(sweep, shapes, bits_per_weight=auto_bits)
        return self._plans[key]


def _write_repetition(path: Path, identity: dict[str, Any], repetition: _Repetition) -> None:
    data = {
        "identity": identity,
        "megabytes": repetition.megabytes,
        "bits_per_weight": repetition.bits_per_weight,
        "seconds": repetition.seconds,
        "footprint": None if repetition.footprint is None else asdict(repetition.footprint),
        "scores": {name: values.tolist() for name, values in repetition.scores.values.items()},
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(path)


def _read_repetition(path: Path) -> _Repetition:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _Repetition(
            data["megabytes"],
            data["bits_per_weight"],
            data["seconds"],
            WindowScores({name: np.array(data["scores"][name]) for name in METRICS}),
            None if data["footprint"] is None else Footprint(**data["footprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"{path} cannot be read ({error!r}): delete it, and its row is computed again"
        ) from error


def _summary(row: Row | None, repetitions: Sequence[_Repetition], full: _Repetition) -> RowResult:
    mean = {name: np.mean([r.scores.values[name] for r in repetitions], axis=0) for name in METRICS}
    auc = [float(r.scores.values["auc_30"].mean()) for r in repetitions]
    return RowResult(
        label=FULL_PRECISION if row is None else row.label,
        precision="32 bit" if row is None else row.precision,
        row=None if row is None else row.model_dump(),
        repetitions=len(repetitions),
        megabytes=float(np.mean([r.megabytes for r in repetitions])),
        bits_per_weight=float(np.mean([r.bits_per_weight for r in repetitions])),
        seconds=float(np.mean([r.seconds for r in repetitions])),
        scores={name: bootstrap(mean[name], _statistic(name)) for name in METRICS},
        changes={
            name: bootstrap(mean[name] - full.scores.values[name], np.mean) for name in METRICS
        },
        spread=(min(auc), max(auc)),
        footprint=next((r.footprint for r in repetitions if r.footprint), None),
        windows={
            name: np.round(mean[name], digits).tolist()
            for name, digits in (("auc_30", 2), ("abs_rel", 5))
        },
    )


def _statistic(name: str) -> Callable[..., NDArray]:
    return np.median if name in _MEDIANS else np.mean
