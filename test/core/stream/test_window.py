"""The window keeps keyframes, replaces what is none, and says when the network runs."""

import numpy as np
import pytest

from qvggt_core.stream import Anchor, View
from qvggt_core.stream.window import SlidingWindow

IMAGE = np.zeros((14, 14, 3), np.uint8)
ANCHOR = Anchor(np.eye(4), np.ones((14, 14), np.float32))


def fill(window, kinds, start=0):
    """Add views, "k" a keyframe and "." none; return the stamps of those that left."""
    left = [window.add(View(start + i, IMAGE), kind == "k") for i, kind in enumerate(kinds)]
    return [None if entry is None else entry.view.stamp_ns for entry in left]


def publish(window):
    for entry in window.entries:
        entry.is_published = True
    window.ran()


def stamps(window):
    return [entry.view.stamp_ns for entry in window.entries]


def test_the_oldest_keyframe_leaves_a_full_window():
    window = SlidingWindow(3, 1)
    assert fill(window, "kkkkk") == [None, None, None, 0, 1]
    assert stamps(window) == [2, 3, 4]


def test_a_view_that_is_no_keyframe_waits_for_its_geometry_and_leaves():
    window = SlidingWindow(6, 3)
    fill(window, "k..")
    assert stamps(window) == [0, 1, 2]
    publish(window)
    fill(window, "k.", start=3)
    assert stamps(window) == [0, 3, 4]


def test_hovering_leaves_keyframes_in_the_window():
    window = SlidingWindow(5, 2)
    fill(window, "kkkkk")
    publish(window)
    for start in range(5, 65, 2):
        fill(window, "..", start)
        assert stamps(window) == [2, 3, 4, start, start + 1]
        publish(window)


def test_the_network_runs_every_stride_frames():
    window = SlidingWindow(4, 3)
    runs = []
    for index, kind in enumerate("k..k...kk"):
        fill(window, kind, index)
        if window.is_due:
            runs.append(index)
            publish(window)
    assert runs == [2, 5, 8]


def test_no_keyframe_leaves_before_a_run_even_if_the_stride_is_longer_than_the_window():
    window = SlidingWindow(1, 4)
    fill(window, "k")
    assert window.is_due


@pytest.mark.parametrize(
    ("placed", "waiting", "helps"),
    # A full window of four: the next view pushes one out, and one that is placed must remain.
    [(3, 1, True), (2, 2, True), (1, 3, False), (1, 2, True), (0, 2, False)],
)
def test_running_again_helps_only_while_a_placed_view_remains(placed, waiting, helps):
    window = SlidingWindow(4, 2)
    fill(window, "k" * (placed + waiting))
    for entry in window.entries[:placed]:
        entry.anchor = ANCHOR
    window.ran()
    assert window.run_again() == helps
    fill(window, "k", 9)
    assert window.is_due == helps


def test_a_cleared_window_counts_from_the_start():
    window = SlidingWindow(4, 2)
    fill(window, "kk")
    window.clear()
    assert (stamps(window), window.is_due) == ([], False)
