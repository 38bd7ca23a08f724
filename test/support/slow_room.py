"""The `qvggt` command around the network that knows the room, made slow: a live server to test.

Run as a process of its own, in `test/`: `python -m support.slow_room live --domain-id 7`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from qvggt_core.stream import load_network as network
from qvggt_core.stream.frame import WindowPrediction
from qvggt_ros.cli import app as cli
from support.recordings import RoomNetwork

INFERENCE_S = 0.25


class SlowRoomNetwork(RoomNetwork):
    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        time.sleep(INFERENCE_S)
        return super().predict(tokens, height, width)


def load_endless_network(parameters: Any) -> network.LoadedNetwork:
    """Stand in for `load_network`: a network that takes for ever with its first image."""

    class Endless(RoomNetwork):
        def encode(self, image: np.ndarray) -> int:
            time.sleep(3600)
            return super().encode(image)

    return network.LoadedNetwork(Endless(), parameters, {"file": "room"})


if __name__ == "__main__":
    network.load_network = lambda parameters: network.LoadedNetwork(
        SlowRoomNetwork(), parameters, {"file": "room"}
    )
    cli.main()
