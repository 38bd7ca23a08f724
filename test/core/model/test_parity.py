"""The network equals the original VGGT on the golden figures of three networks."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qvggt_core.model import VGGT, EncoderConfig, ModelConfig

PARITY = Path(__file__).parent / "parity"

CONV_64 = ModelConfig(
    img_size=112,
    embed_dim=64,
    num_heads=4,
    encoder=None,
    camera_num_heads=4,
    dpt_features=32,
    dpt_out_channels=(16, 32, 64, 64),
)
VITS14 = ModelConfig(
    embed_dim=384,
    num_heads=6,
    encoder=EncoderConfig(embed_dim=384, depth=12, num_heads=6),
    camera_num_heads=6,
    dpt_features=64,
    dpt_out_channels=(48, 96, 192, 384),
)
CASES = [
    pytest.param("conv-64_1x112x112", CONV_64, id="conv-64, one frame"),
    pytest.param("conv-64_4x84x112", CONV_64, id="conv-64, four frames"),
    pytest.param("vits14_3x70x98", VITS14, id="vits14"),
    pytest.param("vggt-1b_2x56x84", ModelConfig.vggt_1b(), id="vggt-1b", marks=pytest.mark.vggt_1b),
]


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights that the golden figures stand on, drawn from a parameter's name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    *_, module, leaf = ("", *name.split("."))
    if leaf == "gamma":
        return 0.3 + 0.1 * values
    if leaf == "weight" and "norm" in module:
        return 1.0 + 0.1 * values
    if leaf == "bias":
        return 0.1 * values
    if leaf == "weight" and len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.5 * values


def golden_images(frames: int, height: int, width: int) -> torch.Tensor:
    s, c, y, x = np.ogrid[:frames, :3, :height, :width]
    wave = np.sin(0.11 * (c + 1) * x + 0.3 * s) * np.cos(0.07 * (c + 2) * y - 0.2 * s)
    return torch.from_numpy((0.5 + 0.5 * wave).astype(np.float32))


def golden_model(config: ModelConfig) -> VGGT:
    with torch.device("meta"):
        model = VGGT(config)
    state = {
        name: torch.from_numpy(np.asarray(golden_tensor(name, tuple(entry.shape)), np.float32))
        for name, entry in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def assert_matches(actual: torch.Tensor, golden: dict, what: str) -> None:
    actual = actual.detach().double()
    assert list(actual.shape) == golden["shape"], what
    tolerance = 5e-5 * max(1.0, golden["rms"])
    picked = actual.flatten()[golden["indices"]].numpy()
    np.testing.assert_allclose(picked, golden["values"], rtol=0, atol=tolerance, err_msg=what)
    assert abs(actual.mean().item() - golden["mean"]) <= tolerance, what
    assert abs(actual.std(correction=0).item() - golden["std"]) <= tolerance, what


@pytest.mark.parametrize(("name", "config"), CASES)
def test_inference_equals_the_original(name: str, config: ModelConfig) -> None:
    with torch.inference_mode():
        check_against_golden_figures(name, config)


def test_the_training_path_equals_the_original() -> None:
    check_against_golden_figures("conv-64_4x84x112", CONV_64)


def check_against_golden_figures(name: str, config: ModelConfig) -> None:
    golden = json.loads((PARITY / f"{name}.json").read_text())
    model = golden_model(config)
    blocks: dict[tuple[str, int], torch.Tensor] = {}
    for kind in ("frame", "global"):
        for tap in config.taps:
            model.aggregator.get_submodule(f"{kind}_blocks.{tap}").register_forward_hook(
                lambda _, __, out, key=(kind, tap): blocks.__setitem__(key, out.clone())
            )
    images = golden_images(golden["frames"], golden["height"], golden["width"])
    prediction = model(images[None])

    for tap in config.taps:
        tokens = torch.cat([blocks["frame", tap], blocks["global", tap]], dim=-1)
        assert_matches(tokens, golden["tokens"][str(tap)], f"tokens of block {tap}")
    assert prediction.depth is not None
    assert prediction.points is not None
    for key, actual in {
        "pose_enc": prediction.pose_encodings[-1],
        "pose_enc_first_iteration": prediction.pose_encodings[0],
        "depth": prediction.depth[..., None],
        "depth_conf": prediction.depth_confidence,
        "world_points": prediction.points,
        "world_points_conf": prediction.points_confidence,
    }.items():
        assert_matches(actual, golden[key], key)
