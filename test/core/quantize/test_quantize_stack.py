"""Depth Anything 3's stack quantizes by every recipe, with the parts that are wanted."""

from dataclasses import replace

import pytest
import torch
from support.small_network import SINGLE_VIEW_STACK, STACK, open_state

from qvggt_core.errors import QuantizationError
from qvggt_core.model import StackConfig, load_model, read_checkpoint, save_checkpoint
from qvggt_core.quantize import (
    RECIPES,
    CalibrationSet,
    QuantizationSettings,
    quantize_checkpoint,
)
from qvggt_core.quantize.recipes import LearnedClipping
from qvggt_core.quantize.sensitivity import sweep_sensitivity

NETWORKS = {
    "any view": STACK,
    "gated": replace(STACK, stack=StackConfig(2, "swiglu")),
    "single view": SINGLE_VIEW_STACK,
}


def source_of(tmp_path, network: str):
    path = tmp_path / "source.safetensors"
    config = NETWORKS[network]
    save_checkpoint(path, open_state(config), config, {"licence": "Apache-2.0"})
    return path


def noise(windows: int = 2) -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (windows, 3, 3, 28, 42), generator=generator)
    return CalibrationSet(images.to(torch.uint8), source="noise")


def log_depth(path, images):
    model = load_model(path, dtype=torch.float32)
    with torch.inference_mode():
        return model(images.float() / 255.0).depth.log()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_writes_a_file_that_computes_nearly_the_same(
    tmp_path, network, recipe
) -> None:
    if network == "gated" and recipe not in ("rtn", "awq", "quantvggt"):
        pytest.skip("one recipe of each kind is enough for the gated linears")
    path, target, data = source_of(tmp_path, network), tmp_path / "q.safetensors", noise()
    chosen = RECIPES[recipe]
    if chosen.learned_clipping is not None:
        chosen = replace(chosen, learned_clipping=LearnedClipping(epochs=1))
    settings = QuantizationSettings(recipe=chosen, group_size=64)
    report = quantize_checkpoint(path, target, settings, data=None if recipe == "rtn" else data)
    blocks = [layer for layer in report.layers if layer.name.startswith("aggregator.blocks.")]
    # The second linear of the gated pair is 176 wide here, which no group divides.
    is_grouped = chosen.precision == "w4a16"
    assert len(blocks) == (3 if network == "gated" and is_grouped else 4) * STACK.depth
    wanted, found = log_depth(path, data.images), log_depth(target, data.images)
    assert (found - wanted).norm() < 0.7 * (wanted - wanted.mean()).norm()


def test_rays_and_conditioning_are_left_out_unless_they_are_wanted(tmp_path) -> None:
    path = source_of(tmp_path, "any view")
    plain, rays, both = (tmp_path / f"{name}.safetensors" for name in ("plain", "rays", "both"))
    everything = ("camera", "depth", "rays", "conditioning")
    for file, heads in ((plain, None), (rays, ("camera", "depth", "rays")), (both, everything)):
        quantize_checkpoint(path, file, QuantizationSettings(group_size=64, heads=heads))
    parts = {
        file: (
            any("_aux" in name for name in read_checkpoint(file).names()),
            any(name.startswith("camera_encoder.") for name in read_checkpoint(file).names()),
        )
        for file in (plain, rays, both)
    }
    assert parts == {plain: (False, False), rays: (True, False), both: (True, True)}
    for file in parts:
        loaded = load_model(file, dtype=torch.float32, heads=everything)
        assert (loaded.config.ray_head, loaded.config.camera_encoder) == parts[file]


def test_a_part_that_is_not_there_is_named(tmp_path) -> None:
    path = source_of(tmp_path, "single view")
    settings = QuantizationSettings(heads=("depth", "rays"))
    with pytest.raises(QuantizationError, match="has no rays head"):
        quantize_checkpoint(path, tmp_path / "q.safetensors", settings)


@pytest.mark.parametrize("network", ["any view", "single view"])
def test_sensitivity_covers_every_block(tmp_path, network) -> None:
    checkpoint = read_checkpoint(source_of(tmp_path, network))
    sweep = sweep_sensitivity(checkpoint, noise(1), group_size=64)
    assert {row.path for row in sweep.rows} == {
        f"aggregator.blocks.{index}" for index in range(STACK.depth)
    }
    assert sweep.everything.depth > 0
