"""One protocol for all recipes: quantize, run on held-out windows, measure, with intervals.

Calibration windows come from the training split of the synthetic worlds, evaluation windows
from the evaluation split, which no seed shares. Every way to quantize is repeated with other
calibration windows; its score of a window is the mean over repetitions, intervals are
bootstrapped over windows, and differences to full precision are taken window by window.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvggt_core.errors import QuantizationError
from qvggt_core.measure.footprint import measure_footprint
from qvggt_core.model import VGGT, Checkpoint, load_model
from qvggt_core.quantize.calibrate import CalibrationOptions
from qvggt_core.quantize.calibration_inputs import CalibrationSet
from qvggt_core.quantize.comparison_results import (
    Repetition,
    StudyResult,
    read_repetition,
    summarise_row,
    write_repetition,
)
from qvggt_core.quantize.pipeline import QuantizationSettings, quantize_checkpoint, written_shapes
from qvggt_core.quantize.plan import PRESETS, Plan, load_plan
from qvggt_core.quantize.sampling import choose_windows
from qvggt_core.quantize.scores import Outputs, run_windows, score_outputs
from qvggt_core.quantize.sensitivity import Sweep, auto_plan, sweep_sensitivity
from qvggt_core.quantize.study import CHANCE, SWEPT, Row, Study
from qvggt_core.training.windows import Windows

SWEEP_WINDOWS = 8
"""Windows on which the sweep of an auto plan is made."""


@dataclass(frozen=True)
class Protocol:
    """Settings that all rows of a comparison share.

    Attributes:
        calibration: windows to choose calibration sets from.
        evaluation: held-out windows with ground truth.
        seeds: of the choice; one repetition each. Recipes without calibration run once.
        images: calibration images of rows that name no number.
        options: how calibration runs.
        device: where the networks run on the evaluation windows.
        worlds: family of the world of each evaluation window, where it is known.
        plan_windows: windows for the sweeps of rows with a `plan_world`, by that family.
    """

    calibration: CalibrationSet
    evaluation: Windows
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 128
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    device: str = "cpu"
    worlds: tuple[str, ...] = ()
    plan_windows: Mapping[str, CalibrationSet] = field(default_factory=dict)

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
            "matching_networks": "poses and depth from matches, calibrated cameras",
            "worlds": list(self.worlds),
        }


def run_studies(
    checkpoint: Checkpoint,
    studies: Sequence[Study],
    protocol: Protocol,
    workspace: Path,
    *,
    footprint: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[StudyResult]:
    """Run studies, or continue an interrupted run.

    Args:
        checkpoint: full precision.
        studies: to run.
        protocol: of all their rows.
        workspace: directory of results by row and repetition; those of the same network, protocol
            and row are not computed again.
        footprint: whether memory and time are measured.
        progress: called before each repetition with how many are done, their number, and the
            next one.

    Raises:
        QuantizationError: a row cannot be quantized.
    """
    runner = _Runner(checkpoint, protocol, workspace, footprint)
    jobs = [
        (study, row, seed) for study in studies for row in study.rows for seed in runner.seeds(row)
    ]
    results: dict[tuple[str, int], list[Repetition]] = {}
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
                summarise_row(None, [full], full),
                *(
                    summarise_row(row, results[study.name, index], full)
                    for index, row in enumerate(study.rows)
                ),
            ],
        )
        for study in studies
    ]


class _Runner:
    """Makes the repetitions of rows, or reads those that are in the workspace."""

    def __init__(
        self, checkpoint: Checkpoint, protocol: Protocol, workspace: Path, footprint: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._protocol = protocol
        self._workspace = workspace
        self._footprint = footprint
        # A row's repetition has its own seed: more seeds later take over those that are there.
        shared = {key: value for key, value in protocol.describe().items() if key != "seeds"}
        self._identity = f"{checkpoint.sha256()} {json.dumps(shared, sort_keys=True)}"
        self._model: VGGT | None = None
        self._outputs: Outputs | None = None
        self._sweeps: dict[tuple[str, str | int, str | None], Sweep] = {}
        workspace.mkdir(parents=True, exist_ok=True)

    def seeds(self, row: Row) -> tuple[int, ...]:
        """Return the repetitions of a row: one where chance plays no part."""
        seeds = self._protocol.seeds
        return seeds if row.changed_recipe().calibrated else seeds[:1]

    def full_precision(self) -> Repetition:
        """Return the scores of the network that all others were made from."""
        path = self._checkpoint.path
        shapes = [self._checkpoint.shape(name) for name in self._checkpoint.names()]
        weights = sum(int(np.prod(shape)) for shape in shapes)
        size = path.stat().st_size
        return self._stored(
            {"full precision": True}, lambda: (path, size / 1e6, 8 * size / weights, 0.0), "float32"
        )

    def repetition(self, study: Study, row: Row, seed: int) -> Repetition:
        """Quantize and score, or read the stored scores."""
        bits = study.auto_bits if row.plan in SWEPT else 0.0
        identity = {**row.model_dump(exclude={"label"}), "seed": seed, "auto_bits": bits}
        if row.plan in SWEPT:
            identity["swept"] = self._swept(row).sha256()
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
                QuantizationSettings(recipe, plan, row.precision, row.group_size),
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

        return self._stored(identity, quantize, "auto" if seed == self._protocol.seeds[0] else None)

    def _stored(
        self,
        identity: dict[str, Any],
        make: Callable[[], tuple[Path, float, float, float]],
        footprint_dtype: str | None,
    ) -> Repetition:
        text = self._identity + json.dumps(identity, sort_keys=True)
        path = self._workspace / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
        if path.is_file():
            return read_repetition(path)
        network, megabytes, bits, seconds = make()
        model = load_model(network, self._protocol.device, torch.float32)
        outputs = run_windows(model, self._protocol.evaluation)
        del model
        scores = score_outputs(outputs, self._protocol.evaluation, self._full_outputs())
        cost = None
        if self._footprint and footprint_dtype:
            _, frames, _, height, width = self._protocol.evaluation.images.shape
            cost = measure_footprint(network, frames, height, width, dtype=footprint_dtype)
        repetition = Repetition(megabytes, bits, seconds, scores, cost)
        write_repetition(path, identity, repetition)
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
        if row.plan not in SWEPT:
            return PRESETS[row.plan] if row.plan in PRESETS else load_plan(row.plan)
        key = (row.precision, row.group_size, row.plan_world)
        if key not in self._sweeps:
            self._sweeps[key] = sweep_sensitivity(
                self._checkpoint,
                self._swept(row),
                precision=row.precision,
                group_size=row.group_size,
                device=self._protocol.device,
            )
        return auto_plan(
            self._sweeps[key],
            written_shapes(self._checkpoint),
            bits_per_weight=auto_bits,
            draw=row.draw if row.plan == CHANCE else None,
        )

    def _swept(self, row: Row) -> CalibrationSet:
        """Return the windows that a row's sweep is made on."""
        data = self._protocol.calibration
        if row.plan_world is not None:
            if row.plan_world not in self._protocol.plan_windows:
                raise QuantizationError(
                    f"{row.label}: there are no windows of {row.plan_world!r} to make a plan on"
                )
            data = self._protocol.plan_windows[row.plan_world]
        return data.part(range(min(SWEEP_WINDOWS, len(data.images))))
