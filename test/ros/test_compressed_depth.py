"""`compressedDepth` is what image_transport's plugin decodes, by a decoder of its format."""

from __future__ import annotations

import numpy as np
import pytest
from support.compressed_depth import decode
from support.recordings import RoomNetwork, room_entries, write_recording
from support.replays import replay

from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, View
from qvggt_ros.io.compressed_depth import compressed_depth_message, encode
from qvggt_ros.io.conversions import depth_message
from qvggt_ros.io.messages import rosbags_messages
from qvggt_ros.io.recording import open_recording
from qvggt_ros.publishing import outputs_of

M = rosbags_messages()


def geometry(depth: np.ndarray) -> FrameGeometry:
    image = np.zeros((*depth.shape, 3), np.uint8)
    view = View(1_700_000_000_123_456_789, image, None, "camera")
    return FrameGeometry(
        view=view,
        map_from_camera=np.eye(4),
        intrinsics=np.eye(3),
        depth=depth,
        confidence=np.ones_like(depth),
    )


def room_depth() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(0.4, 30.0, (48, 64)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_depth_comes_back_to_half_a_step_of_inverse_depth(scale):
    depth = (scale * room_depth()).astype(np.float32)
    found = decode(encode(depth).tobytes())
    step = (1.0 / depth.min() - 1.0 / depth.max()) / 65534
    assert np.abs(1.0 / found - 1.0 / depth).max() <= 0.51 * step
    assert found.min() == pytest.approx(depth.min(), rel=1e-6)
    assert found.max() == pytest.approx(depth.max(), rel=1e-6)


def test_what_has_no_depth_is_nan_and_nothing_else():
    depth = room_depth()
    depth.ravel()[:8] = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-9, 1e9, -0.0]
    found = decode(encode(depth).tobytes())
    assert np.isnan(found.ravel()[:8]).all()
    assert np.isfinite(found.ravel()[8:]).all()
    assert np.allclose(found.ravel()[8:], depth.ravel()[8:], rtol=1e-3)


@pytest.mark.parametrize(
    "depth",
    [
        np.full((4, 6), 2.5, np.float32),
        np.nextafter(np.full((4, 6), 7.3, np.float32), 8, dtype=np.float32),
        (7.3 + 1e-5 * np.arange(24).reshape(4, 6)).astype(np.float32),
    ],
    ids=["a wall", "another wall", "a hair's breadth"],
)
def test_a_wall_keeps_the_precision_of_float32(depth):
    assert np.allclose(decode(encode(depth).tobytes()), depth, rtol=3e-7)


def test_an_image_without_any_depth_is_all_nan():
    found = decode(encode(np.full((4, 6), np.nan, np.float32)).tobytes())
    assert found.shape == (4, 6)
    assert np.isnan(found).all()


def test_the_message_has_the_header_of_the_depth_and_the_plugins_format():
    frame = geometry(room_depth())
    message, raw = compressed_depth_message(M, frame), depth_message(M, frame)
    assert message.header == raw.header
    assert message.format == "32FC1; compressedDepth png"
    assert message.data.dtype == np.uint8
    assert decode(message.data.tobytes()).shape == frame.depth.shape


def test_it_is_published_where_it_is_asked_for_alone():
    topic = "depth/image/compressedDepth"
    assert topic not in outputs_of(Parameters())
    rig = Parameters(compressed_depth=True, cameras=["front", "left"])
    assert outputs_of(rig)[topic] == outputs_of(rig)[f"left/{topic}"] == "CompressedImage"
    without = Parameters(cameras=["front", "left"])
    assert not [name for name in outputs_of(without) if "compressed" in name]


def test_a_replay_writes_it_beside_the_depth_that_it_was_made_of(tmp_path):
    bag = write_recording(tmp_path / "room", room_entries(10))
    replay(bag, tmp_path / "result", RoomNetwork(), Parameters(compressed_depth=True))
    depth = {"depth/image": [], "depth/image/compressedDepth": []}
    with open_recording(tmp_path / "result/bag") as recording:
        for topic, messages in depth.items():
            for _, kind, _, data in recording.messages([f"/qvggt/{topic}"]):
                messages.append(recording.deserialize(data, kind))
    raw, compressed = depth.values()
    assert len(raw) == len(compressed) > 5
    for image, packed in zip(raw, compressed, strict=True):
        assert image.header == packed.header
        values = image.data.view(np.float32).reshape(image.height, image.width)
        found = decode(packed.data.tobytes())
        assert np.array_equal(np.isnan(found), ~np.isfinite(values))
        assert np.allclose(found, values, rtol=1e-3, equal_nan=True)
