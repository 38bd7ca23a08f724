"""Windows drawn from pools, how they are judged, and pools that go on where they stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qvggt_core.errors import TrainingError
from qvggt_core.geometry.poses import inverse
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.pool import Pool, build_pool, open_pool
from qvggt_core.training.validation import summarise, trivial_metrics
from qvggt_core.training.windows import (
    Places,
    Windows,
    draw_scattered_windows,
    draw_windows,
    evaluation_windows,
    view_overlap,
)


def test_overlap_is_full_with_itself_and_small_with_the_far_side(pool: Pool) -> None:
    overlap = view_overlap(pool, len(pool))
    np.testing.assert_allclose(np.diagonal(overlap, axis1=1, axis2=2), 1.0)
    turned = Pool(
        pool.config, pool.images, pool.depth, pool.world_from_camera.copy(), pool.intrinsics
    )
    turned.world_from_camera[:, 1, :3, :3] = pool.world_from_camera[:, 0, :3, :3] @ np.diag(
        [-1.0, 1.0, -1.0]
    )
    assert view_overlap(turned, len(pool))[:, 0, 1].max() == 0.0


def test_drawn_windows_overlap_and_depend_on_the_seed_alone(pool: Pool) -> None:
    overlap = view_overlap(pool, len(pool))

    def draw(seed: int) -> torch.Tensor:
        return _draw(pool, overlap, seed, 0.5).images

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(TrainingError, match="overlap"):
        _draw(pool, 0 * overlap, 0, 0.5)


def test_drawn_windows_run_forward_unless_shuffled(pool: Pool) -> None:
    # The clips' poses are replaced by their own frame numbers.
    numbered = replace(pool, world_from_camera=np.zeros_like(pool.world_from_camera))
    numbered.world_from_camera[:] = np.arange(pool.config.frames)[:, None, None]
    overlap = view_overlap(pool, len(pool))
    ordered = _draw(numbered, overlap, 1, 0.0).world_from_camera[..., 0, 0]
    assert (ordered.diff(dim=1) > 0).all()
    shuffled = _draw(numbered, overlap, 1, 1.0).world_from_camera[..., 0, 0]
    assert (shuffled.diff(dim=1) < 0).any()


def test_scattered_windows_take_near_frames_of_any_clips(pool: Pool) -> None:
    places = Places(pool, len(pool), reach=1.0, angle=40.0)
    poses = pool.world_from_camera.reshape(-1, 4, 4)
    for frame in (0, 7):
        distance = np.linalg.norm(poses[:, :3, 3] - poses[frame, :3, 3], axis=1)
        turn = np.degrees(np.arccos((poses[:, :3, 2] @ poses[frame, :3, 2]).clip(-1, 1)))
        expected = np.flatnonzero((distance <= 1.0) & (turn <= 40.0))
        np.testing.assert_array_equal(places.near(frame), expected[expected != frame])
    windows = draw_scattered_windows(pool, places, 40, 2, np.random.default_rng(0))
    clips = [
        [
            np.linalg.norm(pool.world_from_camera - pose.numpy(), axis=(2, 3)).min(1).argmin()
            for pose in window
        ]
        for window in windows.world_from_camera
    ]
    assert any(one != other for one, other in clips)
    several = replace(pool, config=replace(pool.config, layouts=2))
    with pytest.raises(TrainingError, match="several worlds"):
        Places(several, len(pool))


def _draw(pool: Pool, overlap: np.ndarray, seed: int, shuffled: float) -> Windows:
    return draw_windows(
        pool,
        overlap,
        8,
        2,
        max_gap=2,
        min_overlap=0.3,
        shuffled=shuffled,
        rng=np.random.default_rng(seed),
    )


def test_the_truth_has_no_error_and_the_trivial_answer_has(pool: Pool) -> None:
    windows = evaluation_windows(pool, 4)
    truth = inverse(windows.world_from_camera.numpy())
    shrunk = truth.copy()
    shrunk[..., :3, 3] *= 0.25
    perfect = summarise(shrunk, 0.25 * windows.depth.numpy(), windows)
    assert (perfect.auc_30, perfect.delta) == (pytest.approx(100), pytest.approx(1))
    assert perfect.abs_rel == pytest.approx(0, abs=1e-6)
    trivial = trivial_metrics(windows)
    assert trivial.auc_30 < 60
    assert trivial.abs_rel > 0.1


def test_a_pool_goes_on_where_it_stopped(tmp_path: Path, pool: Pool) -> None:
    build_pool(pool.config, tmp_path, workers=1)
    description = json.loads((tmp_path / "pool.json").read_text())
    description["done"] = 2
    (tmp_path / "pool.json").write_text(json.dumps(description))
    np.lib.format.open_memmap(tmp_path / "images.npy", "r+")[2:] = 0
    assert len(open_pool(tmp_path)) == 2
    again = build_pool(pool.config, tmp_path, workers=1)
    np.testing.assert_array_equal(again.images, pool.images)
    with pytest.raises(TrainingError, match="another description"):
        build_pool(PoolConfig(clips=1, frames=1), tmp_path)
