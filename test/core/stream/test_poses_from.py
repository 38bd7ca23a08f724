"""Where a window's poses come from: the parameter `poses_from`, from file to window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import known_room as room

from qvggt_core.errors import CheckpointError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.conditioning import Conditioning, KnownCameras
from qvggt_core.stream.frame import View
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.window import SlidingWindow
from qvggt_core.stream.window_run import WindowRun

ROOM_NETWORK = str(
    Path(__file__).parents[3] / "benchmarks/checkpoints/qvggt-small-int4.safetensors"
)


@pytest.mark.parametrize(
    ("checkpoint", "asked", "taken"),
    [
        ("", "auto", "matches"),
        ("", "camera_head", "camera_head"),
        (ROOM_NETWORK, "auto", "camera_head"),
    ],
)
def test_auto_takes_matches_where_the_network_was_trained_to_match(checkpoint, asked, taken):
    loaded = load_network(Parameters(checkpoint=checkpoint, poses_from=asked))
    assert loaded.parameters.poses_from == taken


def test_matches_of_a_network_that_was_not_trained_to_match_are_refused():
    with pytest.raises(CheckpointError, match="was not trained to match views: choose camera_head"):
        load_network(Parameters(checkpoint=ROOM_NETWORK, poses_from="matches"))


class Solving:
    """What solves windows, and remembers how many views it was given."""

    def __init__(self):
        self.windows = []

    def solved(self, prediction, views):
        self.windows.append(len(views))
        return replace(prediction, is_solved=True)


class Known(Conditioning):
    """Poses and intrinsics of all views are known."""

    def cameras(self, views):
        count = len(views)
        return KnownCameras(np.tile(np.eye(3), (count, 1, 1)), np.tile(np.eye(4), (count, 1, 1)))


class Takes(room.KnowingNetwork):
    """A network that takes known cameras, and gives them no thought."""

    def predict(self, tokens, height, width, newest=None, cameras=None):
        return super().predict(tokens, height, width, newest)


@pytest.mark.parametrize(("kind", "solves"), [(Conditioning, True), (Known, False)])
def test_windows_are_solved_unless_their_cameras_are_known(kind, solves):
    poses = np.stack([room.flight(np.array([[-3.0, y, 0.0]]), np.zeros((1, 3)))[0] for y in (0, 1)])
    window, solving = SlidingWindow(4, 2), Solving()
    run = WindowRun(Takes(poses), window, kind("none"), [].append, solving)
    for index, frame in enumerate(room.frames(poses)):
        window.add(View(index, frame.image), True)
    run.encode()
    assert run.predict(0).is_solved is solves
    assert solving.windows == ([2] if solves else [])
