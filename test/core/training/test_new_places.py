"""The network that ships, in places that it has never seen, beside the trivial answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvggt_core.model import load_model, shipped_checkpoint
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.pool import build_pool
from qvggt_core.training.validation import evaluate_matches, trivial_metrics
from qvggt_core.training.windows import evaluation_windows

PLACES = PoolConfig(
    worlds=("room", "arena"),
    layouts=1000,
    clips=5,
    frames=6,
    height=96,
    width=128,
    flights=("views",),
    samples=1,
    evaluation=True,
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    pool = build_pool(PLACES, tmp_path_factory.mktemp("pool"), workers=1)
    return evaluation_windows(pool, 3, gaps=(2,))


@pytest.fixture(scope="module")
def network():
    return load_model(shipped_checkpoint(), dtype=torch.float32)


def test_poses_from_matches_are_right_where_the_trivial_answer_is_not(network, windows):
    found, trivial = evaluate_matches(network, windows), trivial_metrics(windows)
    assert found.rotation < 0.5 * trivial.rotation
    assert found.translation < 0.5 * trivial.translation
    assert found.abs_rel < trivial.abs_rel


def test_calibrated_cameras_are_taken_as_they_are(network, windows):
    calibrated = evaluate_matches(network, windows, with_intrinsics=True)
    twice = torch.tensor([[2.0, 1, 1], [1, 2, 1], [1, 1, 1]])
    wrong = replace(windows, intrinsics=windows.intrinsics * twice)
    assert evaluate_matches(network, wrong, with_intrinsics=True).rotation > 2 * calibrated.rotation
