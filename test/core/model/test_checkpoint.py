"""Checkpoints are read whole or refused with the first differences; none is held twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_network import ENCODED

from qvggt_core.errors import CheckpointError
from qvggt_core.model import (
    VGGT,
    EncoderConfig,
    ModelConfig,
    load_model,
    part_sizes,
    read_checkpoint,
    save_checkpoint,
)

# As deep as VGGT-1B, whose taps it has.
TINY = replace(
    ENCODED,
    embed_dim=128,
    depth=24,
    encoder=EncoderConfig(128, 2, 2),
    taps=ModelConfig().taps,
)


@pytest.fixture(scope="module")
def model() -> VGGT:
    torch.manual_seed(0)
    return VGGT(TINY).initialise().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))


def predict(network: VGGT, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(images, heads=("camera", "depth")).pose_encodings[-1]


def test_names_and_shapes_are_vggt_1bs() -> None:
    with torch.device("meta"):
        mine = {k: list(v.shape) for k, v in VGGT(ModelConfig.vggt_1b()).state_dict().items()}
    published = json.loads((Path(__file__).parent / "parity/vggt_1b_state_dict.json").read_text())
    assert len(published) == 1797
    without_tracker = {k: v for k, v in published.items() if not k.startswith("track_head.")}
    assert mine == without_tracker


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_of_other_origin_load_by_their_shapes(
    tmp_path: Path, model: VGGT, images: torch.Tensor, suffix: str
) -> None:
    path = tmp_path / f"model.{suffix}"
    state = {**model.state_dict(), "track_head.tracker.anything.weight": torch.zeros(3)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == TINY
    loaded = load_model(path, dtype=torch.float32, heads=("camera", "depth", "points"))
    assert torch.equal(predict(loaded, images), predict(model, images))


def test_our_files_carry_their_sizes_and_say_what_they_are(tmp_path: Path, model: VGGT) -> None:
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, model.state_dict(), TINY, {"licence": "Apache-2.0"})
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == TINY
    assert checkpoint.metadata["licence"] == "Apache-2.0"
    sizes = part_sizes(checkpoint)
    assert sum(weights for weights, _ in sizes.values()) == sum(
        entry.numel() for entry in model.state_dict().values()
    )
    assert sizes["depth head"] == (
        sum(p.numel() for p in model.depth_head.parameters()),
        sum(4 * p.numel() for p in model.depth_head.parameters()),
    )


def test_heads_that_are_not_asked_for_are_not_loaded(tmp_path: Path, model: VGGT) -> None:
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, model.state_dict(), TINY)
    loaded = load_model(path, dtype=torch.float32, heads=("camera",))
    assert loaded.depth_head is None
    assert loaded.point_head is None


def test_sixteen_bit_runs_keep_cameras_and_the_last_convolution_in_float32(
    tmp_path: Path, model: VGGT, images: torch.Tensor
) -> None:
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, model.state_dict(), TINY)
    loaded = load_model(path, dtype=torch.bfloat16)
    assert loaded.aggregator.camera_token.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.camera_head.parameters()} == {torch.float32}
    assert loaded.depth_head.scratch.output_conv2[2].weight.dtype == torch.float32
    error = (predict(loaded, images) - predict(model, images)).abs().max()
    assert 0 < error < 0.02


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_loaded_network_does_not_change_with_its_file(model: VGGT, tmp_path, kind) -> None:
    """As where `cp` writes another network into the file while a robot flies with this one."""
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_checkpoint(path, model.state_dict(), TINY)
    network = load_model(path, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    with path.open("r+b") as file:
        file.truncate(0)
    assert all(torch.isfinite(each).all() for each in network.state_dict().values())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: No such file"):
        read_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, model: VGGT, suffix: str, kept: float) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    with pytest.raises(CheckpointError, match="bytes"):
        load_model(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "attacked",))

    path = tmp_path / "model.pt"
    torch.save({"aggregator.camera_token": Attack()}, path)
    with pytest.raises(CheckpointError, match="more than weights"):
        load_model(path)
    assert not (tmp_path / "attacked").exists()


def test_a_foreign_network_is_refused_with_its_first_entries(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"no VGGT.*2 entries.*conv1\.weight, fc\.bias"):
        load_model(path)


def test_a_half_matching_file_names_the_first_differences(tmp_path: Path, model: VGGT) -> None:
    state = dict(model.state_dict())
    del state["aggregator.global_blocks.3.mlp.fc1.bias"]
    state["aggregator.frame_blocks.7.attn.proj.weight"] = torch.zeros(128, 64)
    state["aggregator.surprise"] = torch.zeros(1)
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, state, TINY)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    for part in (
        "1 missing, first: aggregator.global_blocks.3.mlp.fc1.bias",
        "1 unexpected, first: aggregator.surprise",
        "frame_blocks.7.attn.proj.weight is (128, 64), not (128, 128)",
    ):
        assert part in str(caught.value)


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"qvggt_format": "99", "config": "{}"})
    with pytest.raises(CheckpointError, match="format version '99'"):
        read_checkpoint(path)


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, model: VGGT, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, {"x": torch.ones(1)}, TINY)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("qvggt_core.model.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"x": torch.zeros(1)}, TINY)
    assert load_file(path)["x"].item() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ours.safetensors"]


def test_a_file_packed_in_another_layout_is_refused(tmp_path: Path, model: VGGT) -> None:
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, model.state_dict(), TINY, {"layout": "interleaved/7"})
    with pytest.raises(CheckpointError, match="packs its weights as 'interleaved/7'"):
        load_model(path)
