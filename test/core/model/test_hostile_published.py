"""Published networks that are wrong in their folder: a slice of the torture, and a test a kind."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.figures import outcome
from support.hostile_published import (
    CONFIGS,
    KINDS,
    published_state,
    right_json,
    use,
    write_folder,
)
from support.small_network import STACK, TINY

from qvggt_core.errors import CheckpointError
from qvggt_core.model import load_model, read_checkpoint
from qvggt_core.model.weight_source import SOURCE_NAME
from qvggt_core.quantize import QuantizationSettings, quantize_checkpoint

SLICE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("kind", KINDS)
@SLICE
@given(seed=st.integers(0, 2**32))
def test_a_wrong_folder_is_loaded_or_explained(tmp_path_factory, kind: str, seed: int) -> None:
    folder = tmp_path_factory.mktemp("case") / "network"
    message = outcome(lambda: use(KINDS[kind](random.Random(seed), folder)))
    assert 0 < len(message) < 4000
    assert "\n" not in message


@pytest.mark.parametrize("config", CONFIGS)
def test_the_folders_that_are_made_wrong_are_right(tmp_path, config) -> None:
    use(
        write_folder(
            tmp_path / "n", config, published_state(config), json.dumps(right_json(config))
        )
    )


def stack_beside(folder: Path, text: str) -> Path:
    return write_folder(folder, STACK, published_state(STACK), text)


@pytest.mark.parametrize(
    "layers", ["[3.7, 5, 7, 9]", '["3", 5, 7, 9]', "[3, 5, 7, 1e999]", "[[3], 5, 7, 9]", "[NaN]"]
)
def test_blocks_that_are_no_whole_numbers_are_refused_not_rounded(tmp_path, layers) -> None:
    folder = stack_beside(tmp_path / "n", f'{{"config": {{"net": {{"out_layers": {layers}}}}}}}')
    with pytest.raises(CheckpointError, match=r"config\.json names the out_layers"):
        read_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 100_000, "3", " " * (1 << 21)])
def test_a_config_json_that_cannot_be_read_is_named_and_nothing_is_guessed(tmp_path, text) -> None:
    folder = write_folder(tmp_path / "n", TINY, published_state(TINY), text)
    with pytest.raises(CheckpointError, match=r"n/config\.json .*take it away"):
        read_checkpoint(folder)


def test_wrong_sizes_in_a_config_json_name_the_file_they_are_in(tmp_path) -> None:
    folder = write_folder(tmp_path / "n", TINY, published_state(TINY), '{"taps": 7}')
    with pytest.raises(CheckpointError, match=r"n: its config\.json names .*taps"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", SOURCE_NAME, "network.pt"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, name: str) -> None:
    folder = stack_beside(tmp_path / "n", json.dumps(right_json(STACK)))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="a pipe"):
        read_checkpoint(folder / name)
    if name == "config.json":
        with pytest.raises(CheckpointError, match="a pipe"):
            read_checkpoint(folder)
    elif name == SOURCE_NAME:
        read_checkpoint(folder)


@pytest.mark.parametrize("place", ["x" * 5000, "\0", "..", "a/b"])
def test_an_index_that_names_no_file_beside_it_is_refused(tmp_path, place: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"aggregator.cls_token": place}}))
    with pytest.raises(CheckpointError, match="does not name files beside it"):
        read_checkpoint(tmp_path)


def test_an_index_that_is_nested_without_end_is_refused(tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="is no index"):
        read_checkpoint(tmp_path)


def test_a_terabyte_of_nothing_is_refused_before_it_is_mapped(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="its header claims to have 0 bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("config", [TINY, STACK])
def test_weights_that_are_no_real_numbers_are_never_converted(tmp_path, config, kind) -> None:
    state = dict(published_state(config))
    name = next(name for name in sorted(state) if name.endswith("qkv.weight"))
    state[name] = state[name].to(kind)
    folder = write_folder(tmp_path / "n", config, state, json.dumps(right_json(config)))
    with pytest.raises(CheckpointError, match=f"qkv.weight is {kind}, not torch.float32"):
        load_model(folder, dtype=torch.float32)
    with pytest.raises(CheckpointError, match=f"qkv.weight is {kind}, not torch.float32"):
        quantize_checkpoint(folder, tmp_path / "q.safetensors", QuantizationSettings(group_size=32))
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize("kept", [0, 5000])
def test_a_source_that_is_cut_while_it_is_quantized_is_an_error(tmp_path, kept: int) -> None:
    text = json.dumps(right_json(STACK))
    folder = write_folder(tmp_path / "n", STACK, published_state(STACK), text)

    def cut(index: int, count: int, name: str) -> None:
        if index == count // 2:
            os.truncate(folder / "model.safetensors", kept)

    target = tmp_path / "q.safetensors"
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        quantize_checkpoint(folder, target, QuantizationSettings(group_size=32), progress=cut)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n"]
