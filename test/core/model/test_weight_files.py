"""Files of weights as people have them: wrapped, in shards, in folders, or no weights at all."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support.shards import two_shards
from support.small_network import SINGLE_VIEW_STACK, STACK, TINY, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.model import (
    VGGT,
    ModelConfig,
    StackConfig,
    decode_pose,
    load_model,
    read_checkpoint,
)
from qvggt_core.model.published_names import depth_anything_3_names

SIZED = replace(TINY, img_size=518, num_heads=2, camera_num_heads=2, camera_iterations=4)
LAYERS = {"config": {"net": {"out_layers": list(STACK.taps)}}}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in open_state(SIZED).items()}


def published(config: ModelConfig) -> dict[str, torch.Tensor]:
    entries = open_state(config)
    theirs = depth_anything_3_names(entries)
    return {theirs[name]: tensor.contiguous() for name, tensor in entries.items()}


# --- what is no weights -------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4f" * 32
KINDS = [
    (POINTER + b"\nsize 5026871532\n", r"Git LFS pointer to a file of 5,026,871,532 bytes"),
    (b"<!doctype html><html><title>Access to model gated</title></html>" * 20, "is a web page"),
    (b"\n  <HTML><body>401</body></HTML>", "is a web page"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    (b"", r"is empty \(0 bytes\)"),
    (b"GGUF" + bytes(100), "GGUF or ONNX"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(("content", "message"), KINDS)
def test_what_is_no_weights_is_called_what_it_is(tmp_path, content, message, suffix) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_half_a_download_is_refused_with_its_size(tmp_path, state) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=rf"{len(whole) // 2} bytes.*download"):
        read_checkpoint(path)


def test_qvggts_released_file_is_recognised_and_the_conversion_is_named(tmp_path, state) -> None:
    path = tmp_path / "model-v2.pt"
    linear = "aggregator.frame_blocks.0.attn.qkv"
    packed = {**state, f"{linear}.scaled_zeros": torch.zeros(1, 4)}
    torch.save(packed, path)
    with pytest.raises(CheckpointError, match=r"AWQ's layout.*qvggt import model-v2\.pt"):
        read_checkpoint(path)


# --- wrapped ------------------------------------------------------------------------------

WRAPPERS = {
    "DataParallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "Lightning": lambda state: {
        "state_dict": {f"model.{k}": v for k, v in state.items()},
        "epoch": 3,
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "trainer with DataParallel": lambda state: {
        "model": {f"module.{k}": v for k, v in state.items()},
        "optimizer": {"state": {}},
    },
    "EMA alone": lambda state: {"ema": state, "step": 7},
    "model in a model": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_weights_load_as_the_plain_ones(tmp_path, state, wrapper) -> None:
    path = tmp_path / "wrapped.pt"
    torch.save(WRAPPERS[wrapper](state), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.names() == sorted(state)
    name = "aggregator.camera_token"
    assert torch.equal(checkpoint.tensor(name), state[name])
    load_model(path, dtype=torch.float32)


def test_the_model_is_taken_where_an_average_lies_beside_it(tmp_path, state) -> None:
    path = tmp_path / "both.pt"
    torch.save({"ema": {k: v + 1 for k, v in state.items()}, "model": state}, path)
    name = "aggregator.camera_token"
    assert torch.equal(read_checkpoint(path).tensor(name), state[name])


def test_an_entry_that_belongs_to_nothing_is_named(tmp_path, state) -> None:
    path = tmp_path / "extra.pt"
    torch.save({**state, "ema_decay": torch.tensor(0.99)}, path)
    with pytest.raises(CheckpointError, match="1 unexpected, first: ema_decay"):
        load_model(path)


# --- folders and shards -------------------------------------------------------------------


def write_shards(folder, state) -> None:
    parts, places = two_shards(state)
    for file, chosen in parts.items():
        save_file({n: state[n] for n in chosen}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_of_shards_loads_and_so_does_its_index(tmp_path, state) -> None:
    write_shards(tmp_path, state)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        checkpoint = read_checkpoint(path)
        assert checkpoint.names() == sorted(state)
        assert checkpoint.nbytes == sum(p.stat().st_size for p in tmp_path.iterdir())
        assert len(checkpoint.sha256()) == 64
        load_model(path, dtype=torch.float32)


def test_one_shard_of_two_is_refused_and_the_folder_named(tmp_path, state) -> None:
    write_shards(tmp_path, state)
    with pytest.raises(CheckpointError, match="one of 2 files of one network: name the folder"):
        read_checkpoint(tmp_path / "model-00002-of-00002.safetensors")


def test_a_missing_shard_is_named(tmp_path, state) -> None:
    write_shards(tmp_path, state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 are missing, first: model-00002-of-00002"):
        read_checkpoint(tmp_path)


def test_a_pointer_among_the_shards_is_recognised(tmp_path, state) -> None:
    write_shards(tmp_path, state)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(POINTER + b"\nsize 7\n")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.*Git LFS pointer"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "no JSON",
        "[]",
        '{"weight_map": {"x": "../../etc/passwd"}}',
        '{"weight_map": {"x": 3}}',
        '{"metadata": {}}',
    ],
)
def test_an_index_that_is_none_or_points_elsewhere_is_refused(tmp_path, index) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(CheckpointError, match=r"index of|name files beside it"):
        read_checkpoint(path)


def test_a_folder_with_several_files_or_none_says_what_it_has(tmp_path, state) -> None:
    with pytest.raises(CheckpointError, match="0 other files of weights"):
        read_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 other .*a\.safetensors, b\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert read_checkpoint(tmp_path).names() == sorted(state)


# --- sizes that shapes do not show --------------------------------------------------------


def test_a_smaller_vggt_lists_what_is_assumed_and_a_config_json_states_it(tmp_path, state) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    assumed = read_checkpoint(path).assumptions
    assert any("blocks (0, 1, 2, 3)" in text for text in assumed)
    assert any("have 2 heads" in text for text in assumed)
    stated = {"taps": [0, 1, 2, 3], "camera_num_heads": 4, "img_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    checkpoint = read_checkpoint(path)
    assert checkpoint.assumptions == ()
    assert checkpoint.config.camera_num_heads == 4
    assert checkpoint.config.img_size == 128


@pytest.mark.parametrize("network", ["any view", "gated", "single view"])
def test_a_published_stack_is_read_by_its_names_and_its_config_json(tmp_path, network) -> None:
    config = {
        "any view": STACK,
        "gated": replace(STACK, stack=StackConfig(2, "swiglu")),
        "single view": replace(SINGLE_VIEW_STACK, camera_num_heads=16),
    }[network]
    save_file(gated_names(published(config), network), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LAYERS))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.config == replace(config, img_size=504)
    everything = ("camera", "depth", "rays", "conditioning")
    loaded = load_model(tmp_path, dtype=torch.float32, heads=everything)
    assert loaded.config == checkpoint.config


def gated_names(state, network):
    """DINOv2-g calls the linears of its gated MLP otherwise."""
    if network != "gated":
        return state
    trunk = "model.backbone."
    return {
        name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")
        if name.startswith(trunk)
        else name: tensor
        for name, tensor in state.items()
    }


def test_a_stack_of_unknown_size_needs_its_config_json(tmp_path) -> None:
    save_file(published(STACK), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the published ones, and no config\.json"):
        read_checkpoint(tmp_path)


def test_two_networks_in_one_file_are_refused(tmp_path) -> None:
    one = published(STACK)
    state = {name.replace("model.", "model.da3.", 1): tensor for name, tensor in one.items()}
    state |= {f"model.da3_metric.{k.removeprefix('model.')}": v.clone() for k, v in one.items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        read_checkpoint(tmp_path)


def test_the_gaussian_head_of_the_giant_is_left_aside(tmp_path) -> None:
    state = {**published(STACK), "model.gs_head.norm.weight": torch.ones(3)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LAYERS))
    load_model(tmp_path, dtype=torch.float32)


# --- LingBot-Map --------------------------------------------------------------------------


def test_lingbot_map_is_a_vggt_with_a_scale_token_and_poses_the_other_way(tmp_path) -> None:
    config = replace(SIZED, scale_token=True, camera_to_world=True)
    state = open_state(config)
    state["aggregator.scale_token"] = torch.randn(1, 2, 1, 64)
    path = tmp_path / "lingbot-map-stage1.pt"
    torch.save(state, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == config
    assert "open question" in checkpoint.metadata["licence"]
    model = load_model(path, dtype=torch.float32)
    images = torch.rand(1, 10, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(images, heads=("camera",)).pose_encodings[-1]
        raw = model.camera_head(model.aggregator(model.encode(images), 2, 2).camera)[-1]
    world_from_camera, _ = decode_pose(raw.double(), 28, 28)
    camera_from_world, _ = decode_pose(found.double(), 28, 28)
    rotation, translation = camera_from_world[..., :3], camera_from_world[..., 3:]
    product = rotation @ world_from_camera[..., :3]
    identity = torch.eye(3, dtype=torch.float64).expand(1, 10, 3, 3)
    torch.testing.assert_close(product, identity, atol=1e-5, rtol=0)
    moved = rotation @ world_from_camera[..., 3:] + translation
    torch.testing.assert_close(moved, torch.zeros_like(moved), atol=1e-5, rtol=0)


def test_the_first_eight_views_take_the_first_scale_token(tmp_path) -> None:
    model = VGGT(replace(SIZED, scale_token=True))
    with torch.no_grad():
        model.aggregator.scale_token[0, 0] = 1.0
        model.aggregator.scale_token[0, 1] = 2.0
    state = model.aggregator.enter(torch.zeros(1, 10, 4, 64))
    assert state.x.shape == (1, 10, 10, 64)
    assert state.x[0, :, 5, 0].tolist() == [1.0] * 8 + [2.0] * 2
