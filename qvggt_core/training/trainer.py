"""Train a VGGT in synthetic worlds: a configuration in, checkpoints, a log and curves out."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qvggt_core.errors import TrainingError
from qvggt_core.model import VGGT, ModelConfig
from qvggt_core.model.checkpoint import save_checkpoint
from qvggt_core.synthetic.sensor import augment
from qvggt_core.training.auxiliary_heads import Readouts, readout_losses
from qvggt_core.training.clips import Pool, PoolConfig, build_pool, open_pool
from qvggt_core.training.curves import draw_curves
from qvggt_core.training.init_weights import InitialWeights, load_initial_weights
from qvggt_core.training.losses import (
    Targets,
    camera_loss,
    depth_loss,
    relative_pose_loss,
    window_targets,
)
from qvggt_core.training.validation import WindowMetrics, evaluate_windows, trivial_metrics
from qvggt_core.training.windows import (
    Places,
    Windows,
    draw_scattered_windows,
    draw_windows,
    evaluation_windows,
    view_overlap,
)

logger = logging.getLogger(__name__)

_STATE = "state.pt"
_LOG = "log.jsonl"
_MODEL = "model.safetensors"


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
        clips: clips of the pool to draw from; 0 takes all.
        dense_frames: frames per step that go through the dense head.
        depth_stride: the depth loss reads every n-th pixel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: int = Field(gt=0)
    images: int = Field(32, gt=0)
    frames: tuple[int, ...] = Field((2,), min_length=1)
    max_gap: int = Field(3, ge=1)
    shuffled: float = Field(0.5, ge=0, le=1)
    scattered: float = Field(0.0, ge=0, le=1)
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
        depth_weight: of the depth loss.
        readout_weight: of the training read-outs, see `Readouts`; it decays with the rate.
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

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    depth_weight: float = 1.0
    readout_weight: float = 1.0
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
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            config = cls.model_validate(values)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainingError(f"cannot read the training configuration {path}: {error}") from None
        except ValidationError as error:
            raise TrainingError(f"{path} is refused: {error}") from None
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
    """
    torch_device = torch.device(_choose_device(device))
    output.mkdir(parents=True, exist_ok=True)
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
            source = _Source(_pool(config.pool, pools / "pool_train", stage.clips), stage)
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
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            metrics = _evaluate(run, windows, output)
        if run.step % config.checkpoint_every == 0 or run.step == last:
            run.save(output)
    return TrainResult(output / _MODEL, run.step, losses, metrics)


class _Source:
    """The clips of a stage, from which it draws its windows."""

    def __init__(self, pool: Pool, stage: Stage) -> None:
        clips = stage.clips or len(pool)
        self.stage = stage
        self._pool = pool
        self._overlap = view_overlap(pool, clips)
        self._places = Places(pool, clips) if stage.scattered else None

    def draw(self, min_overlap: float, rng: np.random.Generator) -> Windows:
        """Draw the windows of a step."""
        stage = self.stage
        frames = int(rng.choice(stage.frames))
        count = max(1, stage.images // frames)
        if self._places is not None and rng.random() < stage.scattered:
            return draw_scattered_windows(self._pool, self._places, count, frames, rng)
        return draw_windows(
            self._pool,
            self._overlap,
            count,
            frames,
            max_gap=stage.max_gap,
            min_overlap=min_overlap,
            shuffled=stage.shuffled,
            rng=rng,
        )


class _Run:
    """Network, averaged network, read-outs and optimiser of a run, at a step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.model_config = ModelConfig.from_dict(config.model)
        self.network = VGGT(self.model_config).initialise()
        if config.initial_weights is not None:
            load_initial_weights(self.network, config.initial_weights, config.directory)
        self.network.to(device)
        self.readouts = Readouts(2 * self.model_config.embed_dim).to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        parameters = [*self.network.parameters(), *self.readouts.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.parameters = parameters
        self.bfloat16 = _use_bfloat16(config.precision, device)
        aggregator = self.network.aggregator
        self.aggregate = torch.compile(aggregator, dynamic=False) if config.compile else aggregator
        self.step = 0

    def take_step(self, source: _Source) -> dict[str, float]:
        """Take one optimiser step and return the loss terms."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        windows = source.draw(config.min_overlap, rng)
        images = augment(windows.images, rng).to(self.device)
        targets = _targets_on(windows, self.device, self.model_config.patch_size)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        share = rate / config.learning_rate
        terms = self._losses(images, windows, targets, source.stage, share, rng)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self._average()
        return {
            **{name: float(value.detach()) for name, value in terms.items()},
            "gradient": float(norm),
            "rate": rate,
        }

    def _losses(
        self,
        images: Tensor,
        windows: Windows,
        targets: Targets,
        stage: Stage,
        rate: float,
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        config, network = self.config, self.network
        height, width = images.shape[-2:]
        patch = self.model_config.patch_size
        grid = (height // patch, width // patch)
        with _attention(self.device), _autocast(self.device, self.bfloat16):
            patches, camera = self.aggregate(network.encode(images), *grid)
        # As at inference: 16 bits would round small translations away.
        assert network.camera_head is not None
        poses = network.camera_head(camera.float())
        terms = {"camera": camera_loss(poses, targets.pose_encodings)}
        total = config.camera_weight * terms["camera"]
        if config.relative_weight > 0:
            terms["relative"] = relative_pose_loss(poses, targets.pose_encodings)
            total = total + config.relative_weight * terms["relative"]
        if network.depth_head is not None and config.depth_weight > 0:
            frames = images.shape[0] * images.shape[1]
            chosen = torch.from_numpy(rng.permutation(frames)[: stage.dense_frames])
            chosen = chosen.to(self.device)
            with _autocast(self.device, self.bfloat16):
                taps = tuple(tokens.flatten(0, 1)[chosen][None] for tokens in patches)
                raw = network.depth_head(taps, *grid).values[0]
            stride = stage.depth_stride
            raw = raw[..., ::stride, ::stride].float()
            target = targets.depth.flatten(0, 1)[chosen][..., ::stride, ::stride]
            terms["depth"] = depth_loss(raw[:, 0].exp(), 1.0 + raw[:, 1].exp(), target)
            total = total + config.depth_weight * terms["depth"]
        if config.readout_weight > 0:
            with _autocast(self.device, self.bfloat16):
                last = self.readouts.window(self.readouts.norms[0](patches[-1])).float()
                place = self.readouts.place(self.readouts.norms[1](patches[2])).float()
                pose = self.readouts.pose(self.readouts.norms[2](camera)).float()
            terms |= readout_losses(last, place, pose, windows, targets, patch)
            readouts = terms["window"] + terms["place"] + terms["pose"]
            total = total + config.readout_weight * rate * readouts
        return {"loss": total, **terms}

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets faster, so that it does not carry the random start along.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.network.parameters()), 1.0 - decay
        )

    def save(self, output: Path) -> None:
        """Write state and averaged network, each in one go."""
        state = {
            "step": self.step,
            "config": self.config.model_dump_json(),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "readouts": self.readouts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = output / (_STATE + ".tmp")
        torch.save(state, temporary)
        temporary.replace(output / _STATE)
        metadata = {
            "training_step": str(self.step),
            "training_config": self.config.model_dump_json(),
            "licence": self.config.licence,
        }
        save_checkpoint(output / _MODEL, self.averaged.state_dict(), self.model_config, metadata)

    def load(self, output: Path) -> None:
        """Take over the state in `output`."""
        path = output / _STATE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if (
                json.loads(state["config"])["model"]
                != json.loads(self.config.model_dump_json())["model"]
            ):
                raise TrainingError(
                    f"{path} is of a network of other sizes: choose another directory"
                )
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.readouts.load_state_dict(state["readouts"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"cannot resume from {path}: {error}") from error


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, peak, cosine to the final share."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    start = max(config.decay_start, config.warmup)
    done = min(max(step - start, 0) / max(config.steps - start, 1), 1.0)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


def _targets_on(windows: Windows, device: torch.device, patch: int) -> Targets:
    # Every second of these points lies in the middle of a patch.
    return window_targets(
        windows.depth.to(device),
        windows.world_from_camera.to(device),
        windows.intrinsics.to(device),
        pixel_stride=patch // 2,
    )


def _start(config: TrainConfig, output: Path, device: torch.device, resume: bool) -> _Run:
    run = _Run(config, device)
    if resume and (output / _STATE).exists():
        run.load(output)
        logger.info("going on from step %d", run.step)
    return run


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


def _evaluate(run: _Run, windows: Windows, output: Path) -> WindowMetrics:
    metrics, trivial = evaluate_windows(run.averaged, windows), trivial_metrics(windows)
    _log(output, {"step": run.step, "model": metrics.to_dict(), "trivial": trivial.to_dict()})
    draw_curves(output / _LOG, output / "curves.png")
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


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _autocast(device: torch.device, enabled: bool) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def _attention(device: torch.device) -> Iterator[None]:
    # PyTorch's fused attention is slow backward on a CPU for windows this short: plain
    # matrix products take a fifth of its time.
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
        yield
