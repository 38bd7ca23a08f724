"""Train a VGGT in synthetic worlds: a configuration in, checkpoints, a log and curves out."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvggt_core.errors import CheckpointError, TrainingError
from qvggt_core.model import read_checkpoint
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.config import Stage, TrainConfig
from qvggt_core.training.curves import draw_curves
from qvggt_core.training.pool import Pool, build_pool, open_pool
from qvggt_core.training.run import BASE, MODEL, STATE, TrainingRun
from qvggt_core.training.validation import WindowMetrics, evaluate_windows, trivial_metrics
from qvggt_core.training.windows import Windows, WindowSampler, evaluation_windows
from qvggt_core.util.files import write_atomically
from qvggt_core.util.output_files import directory_of

logger = logging.getLogger(__name__)

_LOG = "log.jsonl"
_LOG_BEGINS = b'{"step": '
_CURVES = "curves.png"


@dataclass
class TrainResult:
    """What a run left behind.

    Attributes:
        checkpoint: full-precision network, averaged weights.
        step: steps done in all.
        losses: loss of every step of this call.
        metrics: last evaluation, or None.
    """

    checkpoint: Path
    step: int
    losses: list[float]
    metrics: WindowMetrics | None


def train(
    config: TrainConfig,
    output: Path,
    *,
    steps: int | None = None,
    resume: bool = True,
    device: str = "auto",
    pool_directory: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train, or go on with the run in `output`.

    A resumed run takes the same steps as an uninterrupted one: windows and augmentation of a
    step depend on the seed and the step alone.

    Args:
        config: the run.
        output: directory of checkpoints, log and curves.
        steps: step at which to stop; None goes to the end.
        resume: whether to go on from a checkpoint in `output`.
        device: "auto", "cpu" or "cuda".
        pool_directory: where the pools are or will be; None takes `output`.
        progress: called at every logged step with step, length and loss terms.

    Raises:
        TrainingError: the configuration is wrong, a checkpoint is of another one, or the loss
            is not finite.
        OutputError: files of these names are in `output` and of no run.
    """
    torch_device = torch.device(_choose_device(device))
    directory_of(output, (STATE, _LOG, MODEL, BASE, _CURVES), _is_of_a_run)
    pools = pool_directory or output
    evaluation = _pool(config.evaluation_pool, pools / "pool_eval", 0)
    run = _start(config, output, torch_device, resume)
    last = min(steps or config.steps, config.steps)
    windows = _first_clips(evaluation, config)
    losses: list[float] = []
    metrics: WindowMetrics | None = None
    stage: Stage | None = None
    started, started_step = time.perf_counter(), run.step
    while run.step < last:
        if config.stage(run.step) != stage:
            stage = config.stage(run.step)
            source = WindowSampler(_pool(config.pool, pools / "pool_train", stage.clips), stage)
        terms = run.take_step(source)
        losses.append(terms["loss"])
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"the loss of step {run.step} is {losses[-1]}: lower the learning rate and go on "
                f"from the checkpoint in {output}"
            )
        if run.step % config.log_every == 0:
            seconds = (time.perf_counter() - started) / (run.step - started_step)
            line = {**terms, "seconds_per_step": seconds}
            _log(output, {"step": run.step, **line})
            if progress is not None:
                progress(run.step, last, line)
        # Saved first, so that stopping an evaluation loses no step.
        if run.step % config.checkpoint_every == 0 or run.step == last:
            run.save(output)
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            metrics = _evaluate(run, windows, output)
    return TrainResult(output / MODEL, run.step, losses, metrics)


def _start(config: TrainConfig, output: Path, device: torch.device, resume: bool) -> TrainingRun:
    run = TrainingRun(config, device)
    if resume and (output / STATE).exists():
        run.load(output)
        _trim_log(output, run.step)
        if _model_step(output) != run.step:
            # The run ended between writing its state and its network.
            run.save_model(output)
        logger.info("going on from step %d", run.step)
    return run


def _is_of_a_run(state: Path) -> bool:
    """Return whether a run has written into the directory of a state: that, or its log at least."""
    log = state.with_name(_LOG)
    if state.is_file() or not log.is_file():
        return state.is_file()
    with log.open("rb") as file:
        first, expected = file.read(len(_LOG_BEGINS)), _LOG_BEGINS
    # It may have been cut off.
    return first == expected[: len(first)]


def _model_step(output: Path) -> int | None:
    """Return the step of the network in a run's directory, None if there is none."""
    with contextlib.suppress(CheckpointError, KeyError, ValueError):
        return int(read_checkpoint(output / MODEL).metadata["training_step"])
    return None


def _trim_log(output: Path, step: int) -> None:
    """Drop what the log has of steps that will be taken again, and a line that was cut off."""
    log = output / _LOG
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
    write_atomically(log, "".join(kept))


def _pool(config: PoolConfig, directory: Path, clips: int) -> Pool:
    """Open a pool that holds at least `clips` clips (0: all); render what is missing."""
    wanted = clips or config.clips
    with contextlib.suppress(TrainingError):
        pool = open_pool(directory)
        if pool.config == config and len(pool) >= wanted:
            return pool
    return build_pool(config, directory)


def _first_clips(pool: Pool, config: TrainConfig) -> Windows:
    count = min(config.evaluation_clips, len(pool))
    part = Pool(
        pool.config,
        pool.images[:count],
        pool.depth[:count],
        pool.world_from_camera[:count],
        pool.intrinsics[:count],
    )
    return evaluation_windows(part, config.evaluation_frames)


def _evaluate(run: TrainingRun, windows: Windows, output: Path) -> WindowMetrics:
    metrics, trivial = evaluate_windows(run.averaged, windows), trivial_metrics(windows)
    _log(output, {"step": run.step, "model": metrics.to_dict(), "trivial": trivial.to_dict()})
    draw_curves(output / _LOG, output / _CURVES)
    for name, numbers in (("model", metrics), ("trivial", trivial)):
        logger.info(
            "step %d %s: AUC@30 %.1f, rotation %.2f deg, translation %.1f deg, AbsRel %.3f, "
            "delta %.3f",
            run.step,
            name,
            numbers.auc_30,
            numbers.rotation,
            numbers.translation,
            numbers.abs_rel,
            numbers.delta,
        )
    return metrics


def _log(output: Path, line: dict[str, Any]) -> None:
    with (output / _LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
