"""Training that learns, stops, goes on, and starts from the weights that it names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from qvggt_kernels import Int4Linear, IntegerLinear, PackedLinear, PackedWeight, dequantize
from safetensors.torch import load, load_file
from support.tiny_run import TINY

from qvggt_core.errors import TrainingError
from qvggt_core.model import (
    VGGT,
    ModelConfig,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from qvggt_core.model.packed_format import describe_linears
from qvggt_core.quantize import quantize_checkpoint
from qvggt_core.training.config import TrainConfig, learning_rate
from qvggt_core.training.init_weights import InitialWeights, load_initial_weights
from qvggt_core.training.run import TrainingRun
from qvggt_core.training.trainer import train

CONFIGS = Path(__file__).parents[3] / "qvggt_core" / "training" / "configs"


def test_fifty_steps_lower_the_loss(tmp_path: Path, pools: Path) -> None:
    result = train(TrainConfig.model_validate(TINY), tmp_path, device="cpu", pool_directory=pools)
    assert result.step == 50
    assert np.mean(result.losses[-10:]) < 0.6 * np.mean(result.losses[:5])
    assert result.metrics is not None
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"model", "trivial"} <= lines[-1].keys()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.config.embed_dim == 32
    assert checkpoint.metadata["training_step"] == "50"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate(TINY)

    def run(name: str, *stops: int) -> tuple[list[float], dict]:
        losses: list[float] = []
        for stop in stops:
            result = train(config, tmp_path / name, steps=stop, device="cpu", pool_directory=pools)
            losses += result.losses
        return losses, torch.load(tmp_path / name / "state.pt", weights_only=True)

    whole, state = run("whole", 30)
    parts, resumed = run("parts", 13, 30)
    assert parts == whole
    for kind in ("network", "averaged", "auxiliary"):
        for name, value in state[kind].items():
            assert torch.equal(value, resumed[kind][name]), name


def test_a_run_that_was_killed_after_its_state_writes_its_network(
    tmp_path: Path, pools: Path
) -> None:
    config = TrainConfig.model_validate({**TINY, "log_every": 1})
    train(config, tmp_path, steps=2, device="cpu", pool_directory=pools)
    older = (tmp_path / "model.safetensors").read_bytes()
    result = train(config, tmp_path, steps=4, device="cpu", pool_directory=pools)
    newest = load(result.checkpoint.read_bytes())
    result.checkpoint.write_bytes(older)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "loss": 1.0}\n{"step": 4, "lo')
    result = train(config, tmp_path, steps=4, device="cpu", pool_directory=pools)
    assert read_checkpoint(result.checkpoint).metadata["training_step"] == "4"
    found = load(result.checkpoint.read_bytes())
    assert all(torch.equal(newest[name], each) for name, each in found.items())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_directory_that_has_vanished_is_an_error_of_the_system(tmp_path: Path) -> None:
    run = TrainingRun(TrainConfig.model_validate(TINY), torch.device("cpu"))
    with pytest.raises(OSError, match="gone"):
        run.save(tmp_path / "gone")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 100])
def test_a_damaged_state_is_refused_with_a_reason(
    tmp_path: Path, pools: Path, content: bytes
) -> None:
    config = TrainConfig.model_validate(TINY)
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"cannot go on from .*state\.pt: \S"):
        train(config, tmp_path, steps=1, device="cpu", pool_directory=pools)


@pytest.mark.parametrize("content", [[1], {"step": 1}, {"config": 3}, torch.ones(2)])
def test_a_state_of_something_else_is_refused(tmp_path: Path, pools: Path, content) -> None:
    config = TrainConfig.model_validate(TINY)
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="cannot go on from"):
        train(config, tmp_path, steps=1, device="cpu", pool_directory=pools)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate(TINY)
    train(config, tmp_path, steps=1, device="cpu", pool_directory=pools)
    other = TrainConfig.model_validate({**TINY, "model": {**TINY["model"], "embed_dim": 64}})
    with pytest.raises(TrainingError, match="other sizes"):
        train(other, tmp_path, steps=2, device="cpu", pool_directory=pools)


def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path, pools: Path) -> None:
    """The file's metadata would claim them for all of its steps."""
    train(TrainConfig.model_validate(TINY), tmp_path, steps=1, device="cpu", pool_directory=pools)
    before = (tmp_path / "state.pt").read_bytes()
    other = TrainConfig.model_validate({**TINY, "learning_rate": 0.5, "seed": 3})
    with pytest.raises(TrainingError, match=r"seed 0 instead of 3; learning_rate 0\.001 instead"):
        train(other, tmp_path, steps=2, device="cpu", pool_directory=pools)
    assert (tmp_path / "state.pt").read_bytes() == before
    longer = TrainConfig.model_validate({**TINY, "log_every": 7})
    assert train(longer, tmp_path, steps=2, device="cpu", pool_directory=pools).step == 2


@pytest.mark.parametrize("bits", [4, 32])
def test_a_run_starts_from_the_weights_that_it_names(
    tmp_path: Path, pools: Path, bits: int
) -> None:
    wide = {**TINY["model"], "embed_dim": 128, "camera_trunk_depth": 1}
    network = VGGT(ModelConfig.from_dict(wide)).initialise()
    save_checkpoint(tmp_path / "start.safetensors", network.state_dict(), network.config)
    if bits == 4:
        quantize_checkpoint(tmp_path / "start.safetensors", tmp_path / "start4.safetensors")
        (tmp_path / "start4.safetensors").replace(tmp_path / "start.safetensors")
    start = {
        "file": "start.safetensors",
        "sha256": hashlib.sha256((tmp_path / "start.safetensors").read_bytes()).hexdigest(),
    }
    values = {**TINY, "model": wide, "initial_weights": start, "learning_rate": 1e-12}

    def begin(name: str, **changes: object) -> dict[str, torch.Tensor]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**values, **changes}))
        config = TrainConfig.read(tmp_path / "config.yaml")
        train(config, tmp_path / name, steps=1, device="cpu", pool_directory=pools)
        return load_file(tmp_path / name / "model.safetensors")

    expected = load_model(tmp_path / "start.safetensors", dtype=torch.float32).state_dict()
    trained = begin("run")
    name = "aggregator.frame_blocks.0.attn.qkv"
    if bits == 4:
        packed = PackedWeight(expected[f"{name}.qweight"], expected[f"{name}.scales"])
        weight = dequantize(packed, torch.float32)
    else:
        weight = expected[f"{name}.weight"]
    torch.testing.assert_close(trained[f"{name}.weight"], weight, atol=1e-6, rtol=0)

    with pytest.raises(TrainingError, match="SHA-256"):
        begin("another", initial_weights={**start, "sha256": 64 * "0"})
    with pytest.raises(TrainingError, match="cannot start from"):
        begin("missing", initial_weights={**start, "file": "none.safetensors"})
    with pytest.raises(TrainingError, match="cannot start from"):
        begin("other", model={**wide, "depth": 5, "taps": [0, 1, 2, 4]})


def packed_layers() -> dict[str, PackedLinear]:
    """One linear of 128 to 384 in every packed form."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 8, (384, 128), generator=generator, dtype=torch.int8)
    q8 = torch.randint(-127, 128, (384, 128), generator=generator, dtype=torch.int8)
    scales = (0.01 + 0.01 * torch.rand(384, 4, generator=generator)).bfloat16()
    zeros = torch.randint(0, 16, (384, 4), generator=generator, dtype=torch.uint8)
    bias = torch.randn(384, generator=generator)
    stretch = 0.5 + torch.rand(128, generator=generator)
    symmetric = Int4Linear.from_quantized
    return {
        "symmetric": symmetric(q, scales, bias),
        "asymmetric": symmetric(q, scales, bias, zeros=zeros),
        "scaled": symmetric(q, scales, bias, input_scale=stretch),
        "rotated": symmetric(q, scales, bias, zeros=zeros, input_scale=stretch, rotation=64),
        "8 bits": IntegerLinear.from_quantized(
            q8, scales[:, 0].float(), bias, weight_bits=8, activation_bits=8, rotation=64
        ),
    }


@pytest.mark.parametrize("kind", packed_layers())
def test_a_run_starts_from_what_a_packed_linear_computes(tmp_path: Path, kind: str) -> None:
    layer = packed_layers()[kind]
    config = ModelConfig.from_dict({**TINY["model"], "embed_dim": 128})
    state = VGGT(config).initialise().state_dict()
    path = "aggregator.frame_blocks.0.attn.qkv"
    for name in ("weight", "bias"):
        del state[f"{path}.{name}"]
    state |= {f"{path}.{name}": tensor for name, tensor in layer.state_dict().items()}
    file = tmp_path / "packed.safetensors"
    save_checkpoint(file, state, config, describe_linears({path: layer}))
    network = VGGT(config)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    load_initial_weights(network, InitialWeights(file=file.name, sha256=sha256), tmp_path)
    found = network.get_submodule(path)
    x = torch.eye(128) if kind != "8 bits" else torch.randn(64, 128)
    expected = layer(x)
    wrong = (found(x) - expected).norm() / expected.norm()
    assert wrong < (1e-2 if kind == "8 bits" else 1e-5)


def test_the_rate_rises_holds_and_falls() -> None:
    config = TrainConfig.model_validate({**TINY, "decay_start": 20})
    rates = [learning_rate(config, step) / config.learning_rate for step in range(51)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5:20] == pytest.approx([1.0] * 15)
    assert rates[35] == pytest.approx((1 + 0.02) / 2)
    assert rates[50] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pool": {**TINY["pool"], "evaluation": True}}, "judged on flights"),
        ({"evaluation_pool": TINY["pool"]}, "judged on flights"),
        ({"stages": [{"until": 9}, {"until": 5}]}, "each must end later"),
        ({"pace": 3}, "pace"),
        ({"pool": {**TINY["pool"], "step_low": float("nan")}}, "pool.step_low is nan"),
        ({"model": {**TINY["model"], "embed_dim": float("inf")}}, "model.embed_dim is inf"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path: Path, change: dict, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}))
    with pytest.raises(TrainingError, match=says):
        TrainConfig.read(path)


def test_committed_configurations_are_valid_and_their_widths_fit_a_group_of_64() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert paths
    for path in paths:
        config = TrainConfig.read(path)
        assert config.model["embed_dim"] % 64 == 0
        assert config.pool.width == config.model["img_size"]
        if config.initial_weights is not None:
            network = VGGT(ModelConfig.from_dict(config.model))
            load_initial_weights(network, config.initial_weights, config.directory)
