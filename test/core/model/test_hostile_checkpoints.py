"""Checkpoints that are wrong: a slice of the torture, and one test of every kind of fault."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from support.figures import outcome
from support.hostile_checkpoints import (
    KINDS,
    PRECISIONS,
    Intruder,
    base,
    header_of,
    load_and_run,
    torch_file,
    with_header,
)

from qvggt_core.errors import CheckpointError
from qvggt_core.model import EncoderConfig, ModelConfig, StackConfig, load_model

SLICE = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("kind", KINDS)
@SLICE
@given(seed=st.integers(0, 2**32))
def test_a_wrong_checkpoint_is_loaded_or_explained(tmp_path, kind: str, seed: int) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(KINDS[kind](random.Random(seed)))
    assert 0 < len(outcome(lambda: load_and_run(path))) < 4000


@SLICE
@given(seed=st.integers(0, 2**32))
def test_a_wrong_pytorch_file_is_loaded_or_explained_and_never_executed(tmp_path, seed) -> None:
    path, marker = tmp_path / "network.pt", tmp_path / "executed"
    path.write_bytes(torch_file(random.Random(seed), marker))
    assert 0 < len(outcome(lambda: load_and_run(path))) < 4000
    assert not marker.exists()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_checkpoints_that_are_made_wrong_are_right(tmp_path, precision: str) -> None:
    path = tmp_path / "network.safetensors"
    for encoded in (False, True):
        path.write_bytes(base(precision, encoded))
        load_and_run(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"camera_trunk_depth": 10**9}, "camera_trunk_depth of the network is 1000000000"),
        ({"camera_iterations": 10**9}, "whole number"),
        ({"encoder": {"depth": 10**9}}, "depth of the network"),
        ({"encoder": {"embed_dim": 65, "num_heads": 2}}, "does not divide into 2 heads"),
        ({"encoder": "large"}, "an EncoderConfig"),
        ({"num_heads": 0}, "num_heads of the network is 0"),
        ({"embed_dim": True}, "embed_dim of the network is True"),
        ({"mlp_ratio": float("nan")}, "a number from"),
        ({"taps": [0, 1, 2]}, "4 whole number"),
        ({"taps": 3}, "4 whole number"),
        ({"depth_head": 1}, "true or false"),
        ({"camera_head": ["none"]}, "iterative or decoder or none"),
        ({"patch_size": 200}, "hold no patch of 200"),
        ({"more": 1}, "unknown sizes"),
    ],
)
def test_a_description_is_bounded_and_the_wrong_size_is_named(tmp_path, change, reason) -> None:
    header, data = header_of(base("float"))
    config = json.loads(header["__metadata__"]["config"])
    header["__metadata__"]["config"] = json.dumps({**config, **change})
    path = tmp_path / "network.safetensors"
    path.write_bytes(with_header(header, data))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "[" * 5000, '{"a": 1'])
def test_a_description_that_is_none_is_refused(tmp_path, text: str) -> None:
    header, data = header_of(base("float"))
    header["__metadata__"]["config"] = text
    path = tmp_path / "network.safetensors"
    path.write_bytes(with_header(header, data))
    with pytest.raises(CheckpointError, match="network"):
        load_model(path)


def test_published_sizes_are_within_the_bounds() -> None:
    assert ModelConfig.from_dict(ModelConfig().to_dict()) == ModelConfig()
    EncoderConfig(1536, 40, 24)
    StackConfig(None, "swiglu")
    with pytest.raises(CheckpointError, match="alternate_from"):
        StackConfig(0)


@pytest.mark.parametrize("shape", [(), (0,), (64, 0), (64, 3)])
def test_scales_that_fit_no_weight_are_refused(tmp_path, shape: tuple[int, ...]) -> None:
    raw = base("w4a16")
    state = load(raw)
    name = next(name for name in state if name.endswith(".scales"))
    state[name] = torch.zeros(shape, dtype=torch.bfloat16)
    path = tmp_path / "network.safetensors"
    path.write_bytes(save(state, header_of(raw)[0]["__metadata__"]))
    with pytest.raises(CheckpointError):
        load_model(path)


def test_a_compensation_token_of_another_width_is_refused(tmp_path) -> None:
    raw = base("float")
    state = {**load(raw), "camera_head.cict_token": torch.zeros(64)}
    path = tmp_path / "network.safetensors"
    path.write_bytes(save(state, header_of(raw)[0]["__metadata__"]))
    with pytest.raises(CheckpointError, match=r"compensation token is \(64,\)"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({1: torch.ones(2)}, "no dense tensor with a name"),
        ({"a": torch.eye(2).to_sparse()}, "no dense tensor with a name"),
        ([torch.ones(2)], "holds a list"),
    ],
)
def test_a_pytorch_file_of_something_else_is_named(tmp_path, content, reason: str) -> None:
    path = tmp_path / "network.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=reason):
        load_model(path)


def test_code_in_a_pytorch_file_is_not_executed(tmp_path) -> None:
    path, marker = tmp_path / "network.pt", tmp_path / "executed"
    torch.save({"model": Intruder(marker)}, path)
    with pytest.raises(CheckpointError, match="more than weights"):
        load_model(path)
    assert not marker.exists()


def test_a_pytorch_file_that_unpacks_to_gigabytes_is_refused_before(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    path = tmp_path / "network.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as archive:
        for each in source.infolist():
            content = source.read(each)
            if each.filename.endswith("data.pkl"):
                archive.writestr(each.filename, bytes(80 << 20), zipfile.ZIP_DEFLATED)
            else:
                archive.writestr(each.filename, content)
    with pytest.raises(CheckpointError, match="unpacks to"):
        load_model(path)
