"""Large messages of the node: compressed depth, and memory that is used again."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import numpy as np
from robot import robot
from support.compressed_depth import decode
from support.recordings import camera_info_message

COMPRESSED = "depth/image/compressedDepth"


def values(image) -> np.ndarray:
    return np.frombuffer(image.data, np.float32).reshape(image.height, image.width)


def film(it, images: int, *topics: tuple[str, str]) -> None:
    for topic, name in topics:
        it.listen(topic, name)
    it.publish("camera_info", camera_info_message(0), "CameraInfo")
    it.film(range(images))
    it.spin_until(lambda: all(len(it.received[topic]) >= images for topic, _ in topics))


def test_compressed_depth_is_the_depth():
    with robot(compressed_depth=True) as it:
        assert it.node.start()
        film(it, 8, ("depth/image", "Image"), (COMPRESSED, "CompressedImage"))
        pairs = zip(it.received["depth/image"], it.received[COMPRESSED], strict=True)
        for depth, compressed in pairs:
            assert compressed.header == depth.header
            assert compressed.format == "32FC1; compressedDepth png"
            found = decode(compressed.data.tobytes())
            assert np.isfinite(found).any()
            assert np.allclose(found, values(depth), rtol=1e-3, equal_nan=True)


def test_it_is_not_offered_unless_it_is_asked_for():
    with robot() as it:
        assert it.node.start()
        names = [name for name, _ in it.node.get_topic_names_and_types()]
        assert any(name.endswith("depth/image") for name in names)
        assert not any("compressedDepth" in name for name in names)


def test_large_messages_are_made_in_the_same_memory_frame_after_frame():
    topics = (("depth/image", "Image"), ("confidence", "Image"), ("points", "PointCloud2"))
    places: dict[str, list[int]] = {topic: [] for topic, _ in topics}
    with robot() as it:
        assert it.node.start()
        for topic, _ in topics:
            publisher = it.node._publishers_of[topic]

            def note(message, publish=publisher.publish, topic=topic):
                places[topic].append(message.data.buffer_info()[0])
                publish(message)

            publisher.publish = note
        film(it, 8, *topics)
        depths = [np.array(values(image)) for image in it.received["depth/image"]]
        assert not all(np.array_equal(depths[0], depth, equal_nan=True) for depth in depths[1:])
    assert all(len(found) == 8 for found in places.values())
    # Depth and confidence are of one size, and each is published before the next is made.
    assert len({*places["depth/image"], *places["confidence"]}) == 1
    # Clouds have other sizes; memory that grows may move, but not with every frame.
    assert len(set(places["points"])) < 8
