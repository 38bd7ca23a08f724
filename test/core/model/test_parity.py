"""The network equals the original VGGT on the golden figures of three networks."""

import json

import numpy as np
import pytest
import torch
from support.golden import PARITY, assert_matches, golden_images, golden_tensor

from qvggt_core.model import VGGT, EncoderConfig, ModelConfig

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


def golden_model(config: ModelConfig) -> VGGT:
    with torch.device("meta"):
        model = VGGT(config)
    state = {
        name: torch.from_numpy(np.asarray(golden_tensor(name, tuple(entry.shape)), np.float32))
        for name, entry in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


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
