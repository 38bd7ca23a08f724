"""Packed linears in a checkpoint: what does not fit is refused before a kernel reads it."""

from __future__ import annotations

import json

import pytest
import torch
from qvggt_kernels import LAYOUT, Int4Linear, IntegerLinear, PackingError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_network import TINY, open_state
from torch import nn

from qvggt_core.errors import CheckpointError
from qvggt_core.model import VGGT, load_model, save_checkpoint
from qvggt_core.model.packed_format import (
    describe_linears,
    empty_packed_linear,
    linear_descriptions,
)

PATH = "aggregator.frame_blocks.0.mlp"
EMPTY = torch.zeros(0, dtype=torch.bfloat16)
LINEAR = nn.Linear(64, 32, device="meta")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '{"a": 7}',
        '{"a": {"rotation": 1e400}}',
        '{"a": {"rotation": "x"}}',
        '{"a": {"rotation": [1]}}',
        "[" * 100_000,
    ],
)
def test_descriptions_that_cannot_be_read_are_refused(text):
    with pytest.raises(CheckpointError, match="description of packed linears cannot be read"):
        linear_descriptions({"layout": LAYOUT, "linears": text})


@pytest.mark.parametrize("layout", ["planar-int16/2", "../../x", "planar-int16/1\0"])
def test_other_layouts_are_refused_by_name(layout):
    with pytest.raises(CheckpointError, match="it packs its weights as"):
        linear_descriptions({"layout": layout})


@pytest.mark.parametrize("rotation", [-64, 3, 128, 2**40, -1])
@pytest.mark.parametrize("bits", [{}, {"weight_bits": 8, "activation_bits": 8}])
def test_rotations_that_do_not_fit_are_refused(rotation, bits):
    with pytest.raises(PackingError, match=f"a rotation in blocks of {rotation}"):
        empty_packed_linear(LINEAR, {"scales": (32, 2)}, {"rotation": rotation, **bits})


@pytest.mark.parametrize("scales", [(), (0,), (32, 0), (32, 3), (32, 64), (2**40,)])
def test_scales_of_impossible_groups_are_refused(scales):
    with pytest.raises(PackingError):
        empty_packed_linear(LINEAR, {"scales": scales}, {})


@pytest.mark.parametrize("bits", [(5, 8), (8, 0), (8, -8), (4, 2**40), (16, 16)])
def test_integers_of_other_bits_are_refused(bits):
    description = dict(zip(("weight_bits", "activation_bits"), bits, strict=True))
    with pytest.raises(PackingError, match="integers of"):
        empty_packed_linear(LINEAR, {"scales": (32,)}, description)


@pytest.fixture
def packed_file(tmp_path):
    """A checkpoint with one 4-bit and one 8-bit linear; returns its path, tensors and metadata."""
    model = VGGT(TINY)
    model.load_state_dict(open_state())
    mlp = model.aggregator.frame_blocks[0].mlp
    scales = torch.full((mlp.fc1.out_features, 1), 0.01).bfloat16()
    q = torch.randint(-8, 8, tuple(mlp.fc1.weight.shape), dtype=torch.int8)
    mlp.fc1 = Int4Linear.from_quantized(q, scales, mlp.fc1.bias.detach())
    q = torch.randint(-8, 8, tuple(mlp.fc2.weight.shape), dtype=torch.int8)
    mlp.fc2 = IntegerLinear.from_quantized(
        q, torch.ones(len(q)), mlp.fc2.bias.detach(), weight_bits=8, activation_bits=8
    )
    path = tmp_path / "packed.safetensors"
    layers = {f"{PATH}.fc1": mlp.fc1, f"{PATH}.fc2": mlp.fc2}
    save_checkpoint(path, model.state_dict(), TINY, describe_linears(layers))
    with safe_open(path, "pt") as file:
        return path, load_file(path), file.metadata()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fc1.qweight", lambda t: t.float()),
        ("fc1.qweight", lambda t: t.to(torch.int32)),
        ("fc1.qweight", lambda t: t.flatten(1)),
        ("fc1.qweight", lambda t: t[:-1].clone()),
        ("fc1.qweight", lambda t: t[:0].clone()),
        ("fc1.scales", lambda t: t[:, :0].clone()),
        ("fc1.scales", lambda t: t.repeat(1, 2)),
        ("fc1.scales", lambda t: t[0, 0].clone()),
        ("fc1.scales", lambda t: EMPTY),
        ("fc2.qweight", lambda t: t.view(torch.uint8)),
        ("fc2.qweight", lambda t: t[:, :-2].clone()),
        ("fc2.scales", lambda t: t[:-1].clone()),
        ("fc2.clip", lambda t: t.repeat(3)),
    ],
)
def test_tensors_that_do_not_fit_their_network_are_refused(packed_file, name, change):
    path, tensors, metadata = packed_file
    tensors[f"{PATH}.{name}"] = change(tensors[f"{PATH}.{name}"])
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        load_model(path)


@pytest.mark.parametrize(
    "description",
    [
        {"weight_bits": 4, "activation_bits": 8},
        {"weight_bits": 8},
        {"rotation": 64},
        {},
        {"weight_bits": 8, "activation_bits": 8, "rotation": 2**33},
    ],
)
def test_a_description_that_contradicts_its_tensors_is_refused(packed_file, description):
    path, tensors, metadata = packed_file
    linears = json.loads(metadata["linears"])
    linears[f"{PATH}.fc2"] = description
    save_file(tensors, path, {**metadata, "linears": json.dumps(linears)})
    with pytest.raises(CheckpointError, match="fc2"):
        load_model(path)
