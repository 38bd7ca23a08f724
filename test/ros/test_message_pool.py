"""Large messages of ROS take no new memory per frame, and never that of one that is still held."""

from __future__ import annotations

import gc
import tracemalloc
from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.stream.frame import FrameGeometry, View
from qvggt_ros.io import conversions
from qvggt_ros.io.message_pool import MessagePool
from qvggt_ros.io.messages import Messages

HEIGHT, WIDTH = 240, 320


class RosMessage(SimpleNamespace):
    """As rosidl makes them: an array that is assigned to `data` is copied."""

    FLOAT32 = 7

    def __init__(self, **fields):
        assert "data" not in fields, "would be copied item by item"
        self._data = array("B")
        super().__init__(**fields)

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, value):
        self._data = array("B", value)


@pytest.fixture
def ros():
    return Messages(installed=True, lookup=lambda name: RosMessage)


def frame(value: float) -> FrameGeometry:
    depth = np.full((HEIGHT, WIDTH), value, np.float32)
    view = View(1, np.zeros((HEIGHT, WIDTH, 3), np.uint8), None, "camera")
    return FrameGeometry(
        view=view, map_from_camera=np.eye(4), intrinsics=np.eye(3), depth=depth, confidence=depth
    )


def cloud(points: int, value: float) -> Cloud:
    colors = np.tile(np.array([[1, 2, 3]], np.uint8), (points, 1))
    return Cloud(np.full((points, 3), value, np.float32), colors, np.ones(points, np.float32))


def values(message: RosMessage) -> np.ndarray:
    return np.frombuffer(message.data.tobytes(), np.float32)


def test_messages_that_are_let_go_of_are_made_in_the_same_memory(ros):
    depth_at, cloud_at = set(), set()
    for index in range(5):
        depth = conversions.depth_message(ros, frame(index))
        points = conversions.cloud_message(ros, cloud(70_000, index), 1, "camera")
        assert (values(depth) == index).all()
        assert len(points.data) == 70_000 * points.point_step
        depth_at.add(depth.data.buffer_info())
        cloud_at.add(points.data.buffer_info())
        del depth, points
    assert len(depth_at) == len(cloud_at) == 1


HELD = {
    "message": lambda message: message,
    "data": lambda message: message.data,
    "view": lambda message: np.frombuffer(message.data, np.float32)[3:9],
    "memoryview": lambda message: memoryview(message.data)[8:],
}


@pytest.mark.parametrize("held", HELD)
def test_memory_that_someone_holds_is_not_written_to(ros, held):
    kept = HELD[held](conversions.depth_message(ros, frame(1.0)))
    for value in range(2, 12):
        later = conversions.depth_message(ros, frame(float(value)))
        assert (values(later) == value).all()
        del later
    found = kept.data if held == "message" else kept
    assert set(np.frombuffer(found, np.float32).tolist()) == {1.0}


def test_messages_that_are_all_kept_all_have_their_own(ros):
    kept = [conversions.depth_message(ros, frame(float(value))) for value in range(20)]
    for value, message in enumerate(kept):
        assert (values(message) == value).all()
    assert len({message.data.buffer_info()[0] for message in kept}) == 20


def test_publishing_allocates_next_to_nothing_per_frame(ros):
    """Counted by the allocator, not by a clock. Clouds differ in size, as those of a stream do."""
    frames = [(frame(float(n)), cloud(70_000 - 500 * (n % 3), float(n))) for n in range(6)]

    def publish(geometry, points):
        for make in (conversions.depth_message, conversions.confidence_message):
            make(ros, geometry)
        conversions.cloud_message(ros, points, 1, "camera")

    tracemalloc.start()
    try:
        publish(*frames[0])
        gc.collect()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for each in frames:
            publish(*each)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 1_700_000
    assert peak - before < 60_000


def test_sizes_that_come_again_do_not_push_each_other_out():
    pool, places = MessagePool(), []
    for _ in range(4):
        for size in (800_000, 4_000_000, 100):
            message = pool.take(RosMessage, size)
            assert len(message.data) == size
            places.append((size, message.data.buffer_info()[0]))
            del message
    assert len(set(places)) == 3


def test_what_was_another_message_before_keeps_none_of_its_fields():
    pool = MessagePool()
    pool.take(RosMessage, 100, encoding="32FC1", step=4)
    assert pool.take(RosMessage, 100, encoding="mono8", step=1).step == 1
    assert not hasattr(pool.take(RosMessage, 100, encoding="mono8"), "step")


def test_a_message_of_nothing_has_no_memory(ros):
    assert len(conversions.cloud_message(ros, cloud(0, 0.0), 1, "camera").data) == 0
