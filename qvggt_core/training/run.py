"""One training run: its weights and optimiser, a step, and how it is kept on disk."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvggt_core.errors import TrainingError
from qvggt_core.model import VGGT, ComputeSettings, ModelConfig
from qvggt_core.model.checkpoint import save_checkpoint
from qvggt_core.model.dense_head import DenseHead
from qvggt_core.synthetic.sensor import augment, photograph
from qvggt_core.training.attention_start import start_attention
from qvggt_core.training.auxiliary_heads import PatchHeads, PlaceHeads
from qvggt_core.training.config import Stage, TrainConfig, learning_rate
from qvggt_core.training.init_weights import load_initial_weights
from qvggt_core.training.losses import (
    Targets,
    camera_loss,
    depth_loss,
    relative_pose_loss,
    window_targets,
)
from qvggt_core.training.matching import (
    correspondences,
    draw_pairs,
    log_attention,
    matching_loss,
)
from qvggt_core.training.turns import straightened, turned
from qvggt_core.training.windows import Windows, WindowSampler
from qvggt_core.util.files import atomic_path
from qvggt_core.util.quoting import cut

STATE = "state.pt"
"""File of a run's directory from which it goes on."""

MODEL = "model.safetensors"
"""File of a run's directory that holds the averaged network."""

BASE = "base.safetensors"
"""The same in 16 bits: small enough to keep, for runs that start from it (`InitialWeights`)."""

_MAY_CHANGE = {
    *("stages", "log_every", "evaluate_every", "checkpoint_every"),
    *("evaluation_frames", "evaluation_clips", "compile"),
}
"""Settings that a run may go on with in another form: a longer one, and what it looks at."""


@dataclass(frozen=True)
class _Batch:
    """A step's windows: images as a camera stored them, the truth, and the step's randomness."""

    images: Tensor
    windows: Windows
    targets: Targets
    rng: np.random.Generator


class TrainingRun:
    """Network, averaged network, auxiliary heads and optimiser of a run, at a step.

    Attributes:
        network: what is trained.
        averaged: exponential average of its weights, which is evaluated and kept.
        step: steps taken so far.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.model_config = ModelConfig.from_dict(config.model)
        self.network = VGGT(self.model_config).initialise()
        if config.matching_weight > 0:
            start_attention(self.network, self.model_config.taps[:2], config.matching_heads)
        if config.initial_weights is not None:
            load_initial_weights(self.network, config.initial_weights, config.directory)
        self.network.to(device)
        kind = PlaceHeads if config.readouts == "place" else PatchHeads
        self.auxiliary = kind(2 * self.model_config.embed_dim).to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.parameters = [*self.network.parameters(), *self.auxiliary.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if p.ndim >= 2]},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._computing = _Computing(self.network, self.auxiliary, config, device)
        self.step = 0

    def take_step(self, source: WindowSampler) -> dict[str, float]:
        """Take one optimiser step and return the loss terms."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        windows = source.draw(config.min_overlap, rng)
        windows = _taken_apart(windows, source.stage, rng)
        store = augment if config.augmentation == "exposure" else photograph
        images = store(windows.images, rng).to(self.device)
        targets = _targets_on(windows, self.device, self.model_config.patch_size)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._computing.take_over(self.parameters)
        terms = self._losses(_Batch(images, windows, targets, rng), source.stage)
        terms["loss"].backward()
        self._computing.hand_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self._average()
        return {
            **{name: float(value.detach()) for name, value in terms.items()},
            "gradient": float(norm),
            "rate": rate,
        }

    def _losses(self, batch: _Batch, stage: Stage) -> dict[str, Tensor]:
        config, network = self.config, self._computing.network
        patch = self.model_config.patch_size
        grid = (batch.images.shape[-2] // patch, batch.images.shape[-1] // patch)
        patches, camera, _ = self._computing.aggregate(network.encode(batch.images), *grid)
        # As at inference: 16 bits would round small translations away.
        assert network.camera_head is not None
        poses = network.camera_head(camera.float())
        target = batch.targets.pose_encodings
        terms = {"camera": camera_loss(poses, target)}
        total = config.camera_weight * terms["camera"]
        if config.relative_weight > 0:
            terms["relative"] = relative_pose_loss(
                poses, target, short_baseline=config.short_baseline
            )
            total = total + config.relative_weight * terms["relative"]
        if network.depth_head is not None and config.depth_weight > 0:
            terms["depth"] = self._depth_loss(network.depth_head, patches, grid, batch, stage)
            total = total + config.depth_weight * terms["depth"]
        if config.matching_weight > 0:
            terms["matching"] = self._matching_loss(patches, grid, batch.windows)
            total = total + config.matching_weight * terms["matching"]
        if config.readout_weight > 0:
            heads = self._computing.auxiliary
            extra = heads.losses(patches, camera, batch.windows, batch.targets)
            terms |= extra
            share = learning_rate(config, self.step) / config.learning_rate
            total = total + config.readout_weight * share * sum(extra.values())
        return {"loss": total, **terms}

    def _depth_loss(
        self,
        head: DenseHead,
        patches: tuple[Tensor, ...],
        grid: tuple[int, int],
        batch: _Batch,
        stage: Stage,
    ) -> Tensor:
        """Return the depth loss of some of the batch's frames."""
        frames = batch.images.shape[0] * batch.images.shape[1]
        chosen = torch.from_numpy(batch.rng.permutation(frames)[: stage.dense_frames])
        chosen = chosen.to(self.device)
        taps = tuple(tokens.flatten(0, 1)[chosen][None] for tokens in patches)
        raw = head(taps, *grid).values[0]
        stride = stage.depth_stride
        raw = raw[..., ::stride, ::stride].float()
        target = batch.targets.depth.flatten(0, 1)[chosen][..., ::stride, ::stride]
        return depth_loss(raw[:, 0].exp(), 1.0 + raw[:, 1].exp(), target)

    def _matching_loss(
        self, patches: tuple[Tensor, ...], grid: tuple[int, int], windows: Windows
    ) -> Tensor:
        """Return the correspondence loss of the first two tapped global blocks."""
        config, taps = self.config, self.model_config.taps
        batch, frames = patches[0].shape[:2]
        generator = torch.Generator().manual_seed(config.seed + self.step)
        pairs = draw_pairs(batch, frames, config.matching_pairs, generator)
        found = correspondences(windows, self.model_config.patch_size, pairs).to(self.device)
        losses = []
        for block, tokens in zip(taps[:2], patches, strict=False):
            entering = tokens[..., : self.model_config.embed_dim]
            network = self._computing.network
            shares = log_attention(network, block, entering, *grid, found)
            losses.append(matching_loss(shares[:, : config.matching_heads], found, *grid))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets faster, so that it does not carry the random start along.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.network.parameters()), 1.0 - decay
        )

    def save(self, output: Path) -> None:
        """Write state, averaged network and base, each in one go.

        Raises:
            OSError: the directory is gone, or cannot be written to.
        """
        state = {
            "step": self.step,
            "config": self.config.model_dump_json(),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        # PyTorch has errors of its own for a file that it cannot open.
        with atomic_path(output / STATE) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        self.save_model(output)

    def save_model(self, output: Path) -> None:
        """Write averaged network and base alone."""
        metadata = {
            "training_step": str(self.step),
            "training_config": self.config.model_dump_json(),
            "licence": self.config.licence,
        }
        averaged = self.averaged.state_dict()
        save_checkpoint(output / MODEL, averaged, self.model_config, metadata)
        half = {name: value.to(torch.bfloat16) for name, value in averaged.items()}
        save_checkpoint(output / BASE, half, self.model_config, metadata)

    def load(self, output: Path) -> None:
        """Take over the state in `output`."""
        path = output / STATE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self._check_same(path, json.loads(state["config"]))
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.auxiliary.load_state_dict(state["auxiliary"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except TrainingError:
            raise
        except Exception as error:
            # On a damaged or foreign file PyTorch's reader raises whatever it meets.
            raise TrainingError(
                f"cannot go on from {path}: {cut(error) or type(error).__name__}; delete it to "
                "begin again"
            ) from error

    def _check_same(self, path: Path, former: dict[str, Any]) -> None:
        """Refuse to go on with other settings: the weights' metadata would claim them for all."""
        now = json.loads(self.config.model_dump_json())
        if former["model"] != now["model"]:
            raise TrainingError(f"{path} is of a network of other sizes: choose another directory")
        changed = [
            f"{name} {former[name]!r:.80} instead of {value!r:.80}"
            for name, value in now.items()
            if name not in _MAY_CHANGE and name in former and former[name] != value
        ]
        if changed:
            raise TrainingError(
                f"{path} was trained with {'; '.join(changed)}: go on with that, or choose another "
                "directory"
            )


class _Computing:
    """The copy of network and auxiliary heads that a step computes with.

    In bfloat16 it is the network as it runs afterwards (see `VGGT.to_compute`), while optimiser and
    averages keep float32; in float32 it is the network itself.
    """

    def __init__(
        self,
        network: VGGT,
        auxiliary: PatchHeads | PlaceHeads,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self._copied = _use_bfloat16(config.precision, device)
        self.network, self.auxiliary = network, auxiliary
        if self._copied:
            self.network = copy.deepcopy(network).to_compute(torch.bfloat16)
            self.auxiliary = copy.deepcopy(auxiliary).to(torch.bfloat16)
        if device.type == "cpu":
            # PyTorch's fused attention is slow backward on a CPU for windows this short.
            self.network.configure(ComputeSettings(attention="plain"))
        aggregator = self.network.aggregator
        self.aggregate = torch.compile(aggregator, dynamic=False) if config.compile else aggregator
        self._parameters = [*self.network.parameters(), *self.auxiliary.parameters()]

    @torch.no_grad()
    def take_over(self, parameters: list[nn.Parameter]) -> None:
        """Take the weights that the optimiser holds, without gradients."""
        for own, held in zip(self._parameters, parameters, strict=True):
            own.grad = None
            if own is not held:
                own.copy_(held)

    def hand_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give the gradients of a step to the optimiser's weights."""
        for own, held in zip(self._parameters, parameters, strict=True):
            if own is not held:
                held.grad = None if own.grad is None else own.grad.to(held.dtype)


def _taken_apart(windows: Windows, stage: Stage, rng: np.random.Generator) -> Windows:
    """Return windows that only turn or only move for the shares of steps that the stage gives."""
    if not stage.turned + stage.straightened:
        return windows
    drawn = rng.random()
    if drawn < stage.turned:
        return turned(windows, rng)
    return straightened(windows, rng) if drawn < stage.turned + stage.straightened else windows


def _targets_on(windows: Windows, device: torch.device, patch: int) -> Targets:
    # Every second of these points lies in the middle of a patch.
    return window_targets(
        windows.depth.to(device),
        windows.world_from_camera.to(device),
        windows.intrinsics.to(device),
        pixel_stride=patch // 2,
    )


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
