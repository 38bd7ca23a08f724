"""Runs that train correspondence, in either precision, from files that name one or another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.tiny_run import TINY

from qvggt_core.training.config import TrainConfig
from qvggt_core.training.trainer import train

SIZES = {"frames": 3, "height": 24, "width": 32, "samples": 0, "worlds": ["rooms"], "layouts": 9}
VARIED = {
    "model": {
        **TINY["model"],
        "layer_scale": 0.5,
        "encoder": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    },
    "pool": {**SIZES, "clips": 4, "flights": ["views"]},
    "evaluation_pool": {**SIZES, "clips": 2, "flights": ["views"], "evaluation": True},
    "stages": [{"until": 60, "images": 8, "frames": [2, 3], "max_gap": 1, "dense_frames": 2}],
    "learning_rate": 2e-3,
    "warmup": 5,
    "readouts": "patches",
    "matching_weight": 2.0,
    "matching_heads": 1,
    "augmentation": "cameras",
    "relative_weight": 0.3,
    "min_overlap": 0.0,
    "log_every": 1,
    "evaluate_every": 100,
    "evaluation_frames": 2,
    "precision": "float32",
}


def terms(directory: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pools")
    train(TrainConfig.model_validate(VARIED), directory, steps=1, device="cpu")
    return directory


def test_attention_learns_to_match(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate(VARIED)
    train(config, tmp_path, device="cpu", pool_directory=pools)
    matching, patches = terms(tmp_path, "matching"), terms(tmp_path, "patches")
    assert np.mean(matching[-10:]) < 0.9 * np.mean(matching[:10])
    assert np.mean(patches[-10:]) < 0.7 * np.mean(patches[:10])


def test_in_bfloat16_a_run_goes_the_same_way_and_keeps_float32(tmp_path: Path, pools: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        # At the full rate two runs that round differently part after a few steps.
        slow = {**VARIED, "precision": precision, "learning_rate": 5e-4}
        config = TrainConfig.model_validate(slow)
        directory = tmp_path / precision
        result = train(config, directory, steps=12, device="cpu", pool_directory=pools)
        losses[precision] = result.losses
        weights = load_file(result.checkpoint)
        assert {value.dtype for value in weights.values()} == {torch.float32}
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.1)
    assert losses["bfloat16"] != losses["float32"]


def test_a_resumed_run_in_bfloat16_equals_an_uninterrupted_one(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate({**VARIED, "precision": "bfloat16"})
    whole = train(config, tmp_path / "whole", steps=6, device="cpu", pool_directory=pools).losses
    first = train(config, tmp_path / "parts", steps=2, device="cpu", pool_directory=pools).losses
    rest = train(config, tmp_path / "parts", steps=6, device="cpu", pool_directory=pools).losses
    assert first + rest == whole


def test_a_run_starts_where_the_16_bit_base_of_another_one_ended(
    tmp_path: Path, pools: Path
) -> None:
    config = TrainConfig.model_validate(VARIED)
    train(config, tmp_path / "first", steps=20, device="cpu", pool_directory=pools)
    base = tmp_path / "first" / "base.safetensors"
    averaged = load_file(tmp_path / "first" / "model.safetensors")
    for name, value in load_file(base).items():
        assert torch.equal(value, averaged[name].bfloat16()), name
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    start = {"file": str(base), "sha256": digest}
    values = {**VARIED, "initial_weights": start, "learning_rate": 1e-12}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    train(TrainConfig.read(path), tmp_path / "next", steps=1, device="cpu", pool_directory=pools)
    for name, value in load_file(tmp_path / "next" / "model.safetensors").items():
        torch.testing.assert_close(value, averaged[name].bfloat16().float(), atol=1e-6, rtol=0)
