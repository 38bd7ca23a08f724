"""QVGGT's released layout: packed here as its format describes, converted, and run."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from qvggt_kernels import Int4Linear, dequantize
from qvggt_kernels.cpu import linear as cpu
from support.hostile_released import import_and_load, wrong
from support.released import SMALL, initial_state, packed_as_awq, released_file, released_weight

from qvggt_core.errors import CheckpointError, QuantizationError, QvggtError
from qvggt_core.model import VGGT, load_model, read_checkpoint, save_checkpoint
from qvggt_core.quantize.awq_import import import_awq_linear, import_released, unpack_awq


@pytest.mark.parametrize(("rows", "columns"), [(4, 64), (8, 128), (12, 256)])
def test_every_number_is_found_where_the_format_puts_it(rows, columns):
    u = np.random.default_rng(1).integers(0, 16, (rows, columns))
    assert np.array_equal(unpack_awq(packed_as_awq(u)).numpy(), u)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_weight_carries_over_but_for_its_scales_last_bits(symmetric):
    u, steps, scaled, weight = released_weight(8, 256, symmetric=symmetric)
    layer = import_awq_linear(packed_as_awq(u), steps, scaled)
    assert (layer.zeros is None) == symmetric
    ours = dequantize(layer.packed(), torch.float64)
    assert (ours - weight).abs().max() <= weight.abs().max() / 256
    x = torch.randn(5, 256)
    assert torch.allclose(layer(x), x @ ours.float().t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
def test_the_number_of_columns_that_share_a_scale_is_read_from_the_scales(size):
    u, steps, scaled, weight = released_weight(8, 512, size=size)
    layer = import_awq_linear(packed_as_awq(u), steps, scaled)
    assert layer.group_size == min(size, 128)
    ours = dequantize(layer.packed(), torch.float64)
    assert (ours - weight).abs().max() <= weight.abs().max() / 256


@pytest.mark.parametrize("used", [0, 3, 32])
def test_scales_of_no_known_group_are_refused(used):
    u, _, _, _ = released_weight(8, 512)
    scales = torch.zeros(32, 8, dtype=torch.float16)
    scales[:used] = 0.01
    with pytest.raises(QuantizationError, match=f"{used} of 32 rows of scales are not zero"):
        import_awq_linear(packed_as_awq(u), scales, -8 * scales)


@pytest.mark.parametrize("dtype", sorted(cpu.DTYPES, key=str))
def test_zero_points_give_the_same_bits_on_the_fast_path(dtype):
    u, steps, scaled, _ = released_weight(8, 256)
    layer = import_awq_linear(packed_as_awq(u), steps, scaled)
    fast = cpu.dequantize(layer.packed(), dtype)
    assert torch.equal(fast, dequantize(layer.packed(), dtype))


def test_other_formats_are_refused_with_what_was_found():
    u, steps, scaled, _ = released_weight(8, 128)
    with pytest.raises(QuantizationError, match="are no whole numbers of 0 to 15"):
        import_awq_linear(packed_as_awq(u), steps, scaled * 0.9)
    with pytest.raises(QuantizationError, match=r"needs \(groups, 8\)"):
        import_awq_linear(packed_as_awq(u), steps[:, :5], scaled)
    with pytest.raises(QuantizationError, match="not \\(N/4, K\\) int16"):
        unpack_awq(torch.zeros(2, 100, dtype=torch.int16))


@pytest.fixture
def quantized_names():
    blocks = ("aggregator.frame_blocks.1", "aggregator.global_blocks.2", "camera_head.trunk.0")
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    return [f"{block}.{linear}" for block in blocks for linear in linears]


def test_a_released_checkpoint_becomes_one_of_ours_and_says_the_same(tmp_path, quantized_names):
    factors = torch.linspace(0.5, 2.0, 512)
    extra = {
        "cict_token": torch.randn(256),
        "cict_topk": torch.tensor(32),
        "aggregator.frame_blocks.1.mlp.act.scales": factors,
    }
    exact = released_file(tmp_path / "model-v2.pt", initial_state(), quantized_names, extra)
    target = tmp_path / "ours.safetensors"
    assert import_released(tmp_path / "model-v2.pt", target) == 12
    network = load_model(target, dtype=torch.float32)
    assert sum(isinstance(module, Int4Linear) for module in network.modules()) == 12
    assert torch.equal(network.camera_head.cict_token, extra["cict_token"])

    reference = VGGT(SMALL)
    exact["aggregator.frame_blocks.1.mlp.fc2.weight"] /= factors
    reference.load_state_dict(exact)
    reference.camera_head.cict_token = extra["cict_token"]
    images = torch.rand(1, 2, 3, 28, 42)
    with torch.inference_mode():
        ours, theirs = network(images), reference.eval()(images)
    assert (ours.depth - theirs.depth).norm() < 0.02 * theirs.depth.norm()


def test_what_carries_poses_and_depth_out_keeps_what_the_file_has(tmp_path, quantized_names):
    state = initial_state()
    released_file(tmp_path / "model-v2.pt", state, quantized_names, {})
    import_released(tmp_path / "model-v2.pt", tmp_path / "ours.safetensors")
    checkpoint = read_checkpoint(tmp_path / "ours.safetensors")
    for name in (
        "camera_head.pose_branch.fc2.weight",
        "camera_head.embed_pose.weight",
        "camera_head.empty_pose_tokens",
        "depth_head.scratch.output_conv2.2.weight",
    ):
        assert torch.equal(checkpoint.tensor(name), state[name].half().float())


def test_blocks_alone_need_their_base(tmp_path, quantized_names):
    state = initial_state()
    released_file(tmp_path / "model-v2.pt", state, quantized_names, {})
    entries = torch.load(tmp_path / "model-v2.pt", weights_only=True)
    blocks = {f"model.{k}": v for k, v in entries.items() if k.startswith("aggregator.frame_bl")}
    torch.save(blocks, tmp_path / "blocks.pt")
    with pytest.raises(CheckpointError, match="holds no VGGT"):
        import_released(tmp_path / "blocks.pt", tmp_path / "ours.safetensors")
    save_checkpoint(tmp_path / "base.safetensors", state, SMALL)
    count = import_released(
        tmp_path / "blocks.pt", tmp_path / "ours.safetensors", tmp_path / "base.safetensors"
    )
    assert count == 4
    load_model(tmp_path / "ours.safetensors")


@pytest.mark.parametrize("seed", range(60))
def test_a_wrong_file_is_imported_as_numbers_or_explained(tmp_path, seed):
    with suppress(QvggtError):
        import_and_load(wrong(random.Random(seed)), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["scales", "scaled_zeros"])
def test_what_is_no_number_is_refused(value, part):
    u, steps, scaled, _ = released_weight(8, 128)
    parts = {"scales": steps, "scaled_zeros": scaled}
    parts[part][0, 3] = value
    with pytest.raises(QuantizationError, match="finite"):
        import_awq_linear(packed_as_awq(u), **parts)


def test_what_is_no_released_checkpoint_is_refused(tmp_path):
    torch.save(initial_state(), tmp_path / "full.pt")
    with pytest.raises(CheckpointError, match="no packed weights"):
        import_released(tmp_path / "full.pt", tmp_path / "ours.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError):
        import_released(tmp_path / "text.pt", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_zero_points_survive_the_file(tmp_path, quantized_names):
    released_file(tmp_path / "model-v2.pt", initial_state(), quantized_names, {})
    import_released(tmp_path / "model-v2.pt", tmp_path / "ours.safetensors")
    name = "camera_head.trunk.0.attn.qkv.zeros"
    assert read_checkpoint(tmp_path / "ours.safetensors").tensor(name).dtype == torch.uint8
