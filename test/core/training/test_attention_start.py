"""What a network can do before its first step: look into the first frame, place what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from support.small_network import TINY

import qvggt_core
from qvggt_core.model import VGGT, ModelConfig
from qvggt_core.training.attention_start import (
    start_attention,
    start_first_frame,
    start_matching,
    start_places,
)
from qvggt_core.training.config import TrainConfig

VARIED = Path(qvggt_core.__file__).parent / "training/configs/varied.yaml"
CONFIG = ModelConfig.from_dict(TrainConfig.read(VARIED).model)
ROWS, COLUMNS, PATCH = 6, 8, CONFIG.patch_size


def network() -> VGGT:
    torch.manual_seed(0)
    return VGGT(CONFIG).initialise()


def noise(frames: int, seed: int) -> torch.Tensor:
    """Images (1, S, 3, H, W) of blocks of two pixels."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, frames, 3, ROWS * PATCH // 2, COLUMNS * PATCH // 2)
    small = torch.rand(size, generator=generator)
    return small.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


@torch.no_grad()
def after_first_pair(model: VGGT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (S, P, C) behind the first global block, and its attention (H, S, P, S, P)."""
    model.eval()
    aggregator, special = model.aggregator, model.config.num_special_tokens
    tokens = aggregator.encode(images)
    rope = aggregator.rope(ROWS, COLUMNS, tokens.device)
    state = aggregator.frame_step(aggregator.enter(tokens), 0, rope)
    block = aggregator.global_blocks[0]
    query, key, _ = (part[0] for part in block.attn.project(block.norm1(state.x), rope))
    logits = torch.einsum("sphd,tqhd->hsptq", query, key) * query.shape[-1] ** -0.5
    shares = logits.flatten(3).softmax(dim=-1).view_as(logits)
    x = aggregator.global_step(state, 0, rope).x
    return x[0, :, special:], shares[:, :, special:, :, special:]


def test_all_frames_look_into_the_first():
    """Into images that have nothing in common, so that nothing but their order sets them apart."""
    images = noise(3, seed=1)
    plain, started = network(), network()
    start_matching(plain, (0,))
    start_matching(started, (0,))
    start_first_frame(started, (0,), heads=2)
    _, before = after_first_pair(plain, images)
    _, after = after_first_pair(started, images)
    for frame in (1, 2):
        assert float(before[0, frame, :, 0].sum(dim=-1).mean()) < 0.5
        assert float(after[0, frame, :, 0].sum(dim=-1).mean()) > 0.7
    # The last head goes on looking everywhere.
    assert float(after[2, 1:, :, 0].sum(dim=-1).mean()) < 0.5


def moved(seed: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Two frames (1, 2, 3, H, W) and by how many rows and columns of patches they differ."""
    rng = np.random.default_rng(seed)
    rows, columns = (int(step) for step in rng.integers(-2, 3, size=2))
    first = noise(1, seed)
    # What is at row r of the second frame is at row r + rows of the first.
    second = first.roll((-rows * PATCH, -columns * PATCH), dims=(-2, -1))
    return torch.cat([first, second], dim=1), (rows, columns)


def samples(model: VGGT, seeds: range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens of patches whose match is inside the first frame, and how far away it is."""
    tokens, steps = [], []
    row, column = (grid.ravel() for grid in np.mgrid[:ROWS, :COLUMNS])
    for seed in seeds:
        images, (rows, columns) = moved(seed)
        x, _ = after_first_pair(model, images)
        inside = (row + rows >= 0) & (row + rows < ROWS)
        inside &= (column + columns >= 0) & (column + columns < COLUMNS)
        tokens.append(x[1].numpy()[inside])
        steps.append(np.tile([rows, columns], (int(inside.sum()), 1)))
    return np.concatenate(tokens).astype(np.float64), np.concatenate(steps).astype(np.float64)


def explained(model: VGGT) -> float:
    """Share of the displacement's variance that a linear read-out of unseen tokens explains."""
    tokens, steps = samples(model, range(60))
    unseen, truth = samples(model, range(100, 130))
    with_one = np.concatenate([tokens, np.ones((len(tokens), 1))], axis=1)
    weights = np.linalg.lstsq(with_one, steps, rcond=None)[0]
    error = unseen @ weights[:-1] + weights[-1] - truth
    return 1.0 - float((error**2).sum() / ((truth - steps.mean(axis=0)) ** 2).sum())


def test_a_patch_holds_how_far_away_the_first_frame_shows_it():
    plain, started = network(), network()
    for model in (plain, started):
        start_matching(model, (0,))
        start_first_frame(model, (0,), heads=2)
    start_places(started, (0,), heads=2)
    assert explained(plain) < 0.5
    assert explained(started) > 0.8


def test_places_leave_the_matching_alone():
    """With them, too, attention peaks where the first frame shows what a patch shows."""
    started = network()
    start_attention(started, (0,), heads=2)
    row, column = (grid.ravel() for grid in np.mgrid[:ROWS, :COLUMNS])
    for seed in range(5):
        images, (rows, columns) = moved(seed)
        _, shares = after_first_pair(started, images)
        peak = shares[:2, 1, :, 0].mean(dim=0).argmax(dim=-1).numpy()
        # A patch that the first frame does not show is rolled in from the other side.
        place = (row + rows) % ROWS * COLUMNS + (column + columns) % COLUMNS
        assert (peak == place).mean() > 0.9


def test_a_network_without_an_encoder_starts_without_places():
    model = VGGT(TINY).initialise()
    start_attention(model, (0,), heads=2)
    assert model.aggregator.global_blocks[0].attn.q_norm.bias.abs().sum() > 0
