"""What a training run is made of, as a file describes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from qvggt_core.errors import TrainingError
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.init_weights import InitialWeights
from qvggt_core.util.yaml_text import read_yaml, reasons


class Stage(BaseModel):
    """A part of the curriculum.

    Attributes:
        until: step at which it ends.
        images: images per step, in as many windows as they fill.
        frames: frames per window; each step takes one of these at random.
        max_gap: largest distance between neighbours of a window, in frames of the clip.
        shuffled: share of a clip's windows whose frames are not in the order of time.
        scattered: share of the steps whose windows take their frames from any clips, see
            `draw_scattered_windows`.
        turned: share of the steps whose cameras only turn, see `turned`.
        straightened: share of the steps whose cameras only move, see `straightened`.
        clips: clips of the pool to draw from; 0 takes all.
        dense_frames: frames per step that go through the dense head.
        depth_stride: the depth loss reads every n-th pixel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    until: int = Field(gt=0)
    images: int = Field(32, gt=0)
    frames: tuple[int, ...] = Field((2,), min_length=1)
    max_gap: int = Field(3, ge=1)
    shuffled: float = Field(0.5, ge=0, le=1)
    scattered: float = Field(0.0, ge=0, le=1)
    turned: float = Field(0.0, ge=0, le=1)
    straightened: float = Field(0.0, ge=0, le=1)
    clips: int = Field(0, ge=0)
    dense_frames: int = Field(8, ge=1)
    depth_stride: int = Field(2, ge=1)


class TrainConfig(BaseModel):
    """A training run.

    Attributes:
        licence: of the weights that come out, for their file's metadata.
        seed: of weights, windows and augmentation.
        model: sizes of the network, see `ModelConfig`.
        pool: what to train on, see `PoolConfig`.
        evaluation_pool: what to evaluate on.
        initial_weights: checkpoint that the run starts from; None starts at random.
        stages: curriculum, in order of `until`; the last one's `until` is the length of the run.
        learning_rate: peak of the schedule.
        final_learning_rate: share of the peak at the end of the cosine.
        warmup: steps of linear growth.
        decay_start: step at which the cosine begins; the peak is held before.
        weight_decay: of matrices.
        gradient_clip: largest norm of the gradient.
        average: decay of the averaged weights, which are what is evaluated and kept.
        camera_weight: of the camera loss.
        relative_weight: of the loss of motions between all pairs of a window.
        short_baseline: of that loss, see `relative_pose_loss`.
        depth_weight: of the depth loss.
        readout_weight: of the training read-outs, see `Readouts`; it decays with the rate.
        readouts: "place", see `Readouts`, or "patches", see `PatchReadouts`.
        matching_weight: of the correspondence loss on the attention of the first two tapped global
            blocks, which then also start so that like attends to like, see `start_matching`.
        matching_heads: attention heads of a block that the correspondence loss trains.
        matching_pairs: pairs of frames per step that it reads.
        augmentation: "exposure", see `augment`, or "cameras", see `photograph`.
        min_overlap: least view overlap between neighbours in a window.
        precision: "auto", "float32" or "bfloat16"; auto takes bfloat16 where the processor
            multiplies it natively.
        compile: whether to compile the aggregator with torch.compile.
        log_every: steps between lines of the log.
        evaluate_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        evaluation_frames: frames of an evaluation window.
        evaluation_clips: clips of the evaluation pool that the run looks at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    licence: str = "unknown"
    seed: int = 0
    model: dict[str, Any]
    pool: PoolConfig
    evaluation_pool: PoolConfig
    initial_weights: InitialWeights | None = None
    stages: tuple[Stage, ...] = Field(min_length=1)
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(0.02, ge=0, le=1)
    warmup: int = Field(200, ge=0)
    decay_start: int = Field(0, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    average: float = Field(0.998, ge=0, lt=1)
    camera_weight: float = 5.0
    relative_weight: float = Field(0.0, ge=0)
    short_baseline: float = Field(0.02, gt=0)
    depth_weight: float = 1.0
    readout_weight: float = 1.0
    readouts: Literal["place", "patches"] = "place"
    matching_weight: float = Field(0.0, ge=0)
    matching_heads: int = Field(2, ge=1)
    matching_pairs: int = Field(32, ge=1)
    augmentation: Literal["exposure", "cameras"] = "exposure"
    min_overlap: float = 0.35
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    compile: bool = False
    log_every: int = Field(50, gt=0)
    evaluate_every: int = Field(1000, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    evaluation_frames: int = Field(4, ge=2)
    evaluation_clips: int = Field(48, gt=0)
    _directory: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _numbers_are_finite(self) -> TrainConfig:
        waiting: list[tuple[str, Any]] = [("", self.model_dump())]
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name.strip('.')} is {value}, and must be a finite number")
            if isinstance(value, dict):
                waiting += [(f"{name}.{key}", each) for key, each in value.items()]
            elif isinstance(value, list | tuple):
                waiting += [(name, each) for each in value]
        return self

    @model_validator(mode="after")
    def _splits_are_apart(self) -> TrainConfig:
        if self.pool.evaluation or not self.evaluation_pool.evaluation:
            raise ValueError(
                "pool must have evaluation: false and evaluation_pool evaluation: true, or the "
                "network would be judged on flights that it was trained on"
            )
        return self

    @model_validator(mode="after")
    def _stages_rise(self) -> TrainConfig:
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)):
            raise ValueError(f"stages end at {ends}: each must end later than the one before")
        return self

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Read a YAML file.

        Raises:
            TrainingError: the file cannot be read, or a value is unknown or refused.
        """
        try:
            values = read_yaml(path)
        except (OSError, ValueError) as error:
            raise TrainingError(f"cannot read the training configuration {path}: {error}") from None
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise TrainingError(f"{path} is refused: {reasons(error)}") from None
        config._directory = path.parent
        return config

    @property
    def directory(self) -> Path:
        """Where the configuration was read from; files that it names are relative to it."""
        return self._directory

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.stages[-1].until

    def stage(self, step: int) -> Stage:
        """Return the stage of a step, counted from 0."""
        return next((s for s in self.stages if step < s.until), self.stages[-1])


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, peak, cosine to the final share."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    start = max(config.decay_start, config.warmup)
    done = min(max(step - start, 0) / max(config.steps - start, 1), 1.0)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))
