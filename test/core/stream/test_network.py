"""VGGT in the stream's role: encoded once, decoded on the host, the same with and without cache."""

import numpy as np
import pytest
import torch
from support.plain_parameters import PLAIN
from support.small_network import STACK, open_state
from support.torch_network import images, network

from qvggt_core.errors import CheckpointError
from qvggt_core.model import VGGT, decode_pose
from qvggt_core.stream import Frame, Reconstructor, TorchNetwork


def test_a_window_is_what_the_model_says_in_host_arrays():
    torch_network, model = network()
    pictures = images(3)
    predicted = torch_network.predict([torch_network.encode(p) for p in pictures], 42, 56)
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2)[None] / 255.0
    with torch.inference_mode():
        expected = model(batch)
    cameras, intrinsics = decode_pose(expected.pose_encodings[-1][0].double(), 42, 56)
    np.testing.assert_allclose(predicted.camera_from_world[:, :3], cameras, atol=1e-6)
    np.testing.assert_array_equal(predicted.camera_from_world[:, 3], np.tile([0, 0, 0, 1], (3, 1)))
    np.testing.assert_allclose(predicted.intrinsics, intrinsics, rtol=1e-5)
    np.testing.assert_allclose(predicted.depth, expected.depth[0], rtol=1e-5)
    np.testing.assert_allclose(predicted.confidence, expected.depth_confidence[0], rtol=1e-5)
    assert predicted.camera_from_world.dtype == predicted.intrinsics.dtype == np.float64
    assert predicted.depth.dtype == predicted.confidence.dtype == np.float32
    assert predicted.depth.shape == (3, 42, 56)
    rotations = predicted.camera_from_world[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, 1, 2), 3 * [np.eye(3)], atol=1e-12
    )


def stack_network(dtype):
    model = VGGT(STACK)
    model.load_state_dict(open_state(STACK))
    return TorchNetwork(model.to_compute(dtype).eval()), model


@pytest.mark.parametrize("made", [network, stack_network])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_is_bit_equal_with_and_without_the_cache(made, dtype):
    torch_network, _ = made(dtype)

    class Forgetful:
        image_width, patch_size = torch_network.image_width, torch_network.patch_size

        def encode(self, image):
            return image

        def predict(self, tokens, height, width, newest=None):
            tokens = [torch_network.encode(image) for image in tokens]
            return torch_network.predict(tokens, height, width, newest)

    # An untrained network agrees with itself on nothing, so that no window is refused.
    parameters = PLAIN.with_values(
        min_confidence_percentile=20, window_size=4, window_stride=2, max_scale_spread=10
    )
    runs = []
    for chosen in (torch_network, Forgetful()):
        stream = Reconstructor(chosen, parameters)
        results = [r for i, im in enumerate(images(7)) for r in stream.add(Frame(i, im))]
        runs.append([g for r in (*results, *stream.flush()) for g in r.frames])
    assert len(runs[0]) == len(runs[1]) == 7
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.map_from_camera, other.map_from_camera)
        np.testing.assert_array_equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.confidence, other.confidence)


def test_the_width_is_that_of_the_training_unless_another_is_asked_for():
    torch_network, model = network()
    assert (torch_network.image_width, torch_network.patch_size) == (56, 14)
    assert TorchNetwork(model, image_width=28).image_width == 28


def test_a_network_without_depth_is_refused():
    with pytest.raises(CheckpointError, match="depth head"):
        network(depth_head=False)
