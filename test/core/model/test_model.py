"""The network beyond parity: pose encodings, the first frame's part, encoding frame by frame."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from support.small_network import ENCODED

from qvggt_core.errors import CheckpointError
from qvggt_core.model import (
    VGGT,
    ModelConfig,
    decode_pose,
    encode_pose,
    scaled_taps,
)


@pytest.fixture(scope="module")
def model() -> VGGT:
    torch.manual_seed(3)
    model = VGGT(ENCODED).initialise().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma") or "token" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(1))


def test_pose_encoding_agrees_with_scipy_and_comes_back() -> None:
    rotations = Rotation.random(200, rng=np.random.default_rng(0))
    half_turns = Rotation.from_euler("xyz", [[180, 0, 0], [0, 180, 0], [0, 0, 180]], degrees=True)
    rotations = Rotation.concatenate([rotations, half_turns])
    poses = torch.zeros(len(rotations), 3, 4, dtype=torch.float64)
    poses[..., :3] = torch.from_numpy(rotations.as_matrix())
    poses[..., 3] = torch.randn(len(rotations), 3, dtype=torch.float64)
    intrinsics = torch.zeros(len(rotations), 3, 3, dtype=torch.float64)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = 300.0, 310.0, 1.0
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 259.0, 196.0

    encoding = encode_pose(poses, intrinsics, 392, 518)
    error = Rotation.from_quat(encoding[:, 3:7].numpy()) * rotations.inv()
    assert np.max(error.magnitude()) < 1e-7
    assert torch.allclose(encoding[:, 7].rad2deg(), torch.tensor(64.6).double(), atol=0.1)
    back, intrinsics_back = decode_pose(encoding, 392, 518)
    assert torch.allclose(back, poses, atol=1e-9)
    assert torch.allclose(intrinsics_back, intrinsics, atol=1e-6)


def test_a_field_of_view_of_zero_is_no_infinite_focal_length() -> None:
    _, intrinsics = decode_pose(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 0, 0]), 100, 100)
    assert torch.isfinite(intrinsics).all()


def test_frames_are_encoded_independently_of_their_window(
    model: VGGT, images: torch.Tensor
) -> None:
    with torch.inference_mode():
        together = model.encode(images)[0]
        alone = torch.stack([model.encode(image) for image in images[0]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_only_the_first_frame_is_special(model: VGGT, images: torch.Tensor) -> None:
    swapped, reordered = images[:, [0, 2, 1]], images[:, [1, 0, 2]]
    with torch.inference_mode():
        depth = model(images).depth
        others_swapped = (model(swapped).depth[:, [0, 2, 1]] - depth).abs().max()
        first_moved = (model(reordered).depth[:, [1, 0, 2]] - depth).abs().max()
    assert others_swapped < 1e-6
    assert first_moved > 20 * others_swapped


def test_windows_of_a_batch_do_not_see_each_other(model: VGGT, images: torch.Tensor) -> None:
    other = images.flip(-1)
    with torch.inference_mode():
        both = model(torch.cat([images, other]))
        assert torch.allclose(both.depth[:1], model(images).depth, atol=1e-4)


def test_training_and_inference_paths_agree(model: VGGT, images: torch.Tensor) -> None:
    with torch.inference_mode():
        inference = model(images)
    training = model(images)
    for name in ("depth", "depth_confidence", "points", "points_confidence"):
        assert torch.allclose(getattr(inference, name), getattr(training, name), atol=1e-4)
    training.depth.mean().backward()
    assert model.aggregator.camera_token.grad is not None
    model.zero_grad(set_to_none=True)


def test_taps_scale_with_depth_as_vggt_1bs() -> None:
    assert scaled_taps(24) == (4, 11, 17, 23)
    assert scaled_taps(12) == (1, 5, 8, 11)
    assert scaled_taps(8) == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"num_heads": 3}, "2D RoPE"),
        ({"taps": (0, 1, 1, 3)}, "rise"),
        ({"taps": (0, 1, 2, 2)}, "rise"),
        ({"camera_num_heads": 3}, "camera tokens"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(sizes: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        ModelConfig.from_dict({**ENCODED.to_dict(), **sizes})


def test_sizes_survive_json() -> None:
    assert ModelConfig.from_dict(ENCODED.to_dict()) == ENCODED
