"""A sliding window at steady state, with and without the cache of encoder tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.measure.timing import CLOCKS
from qvggt_core.model import VGGT
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor, TorchNetwork, WindowPrediction
from qvggt_core.stream.conditioning import KnownCameras


class WithoutCache:
    """A network that keeps images instead of tokens and encodes them in every window."""

    def __init__(self, network: TorchNetwork) -> None:
        self._network = network
        self.image_width = network.image_width
        self.patch_size = network.patch_size

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image itself."""
        return image

    def predict(
        self,
        tokens: Sequence[NDArray[np.uint8]],
        height: int,
        width: int,
        newest: int | None = None,
        cameras: KnownCameras | None = None,
    ) -> WindowPrediction:
        """Encode all images, then predict."""
        encoded: list[Tensor] = [self._network.encode(image) for image in tokens]
        return self._network.predict(encoded, height, width, newest, cameras)


@dataclass(frozen=True)
class StreamTimes:
    """Seconds of the runs with a full window, and whether both streams gave the same results.

    Attributes:
        cached: of the stream that keeps tokens.
        encoding: of the one that encodes the whole window again; the same frames.
        bit_equal: whether depth and poses of both were equal bit for bit.
    """

    cached: list[float]
    encoding: list[float]
    bit_equal: bool


def time_streams(
    model: VGGT,
    size: tuple[int, int],
    window: int,
    stride: int,
    runs: int,
    clock: str = "wall",
    budget_s: float = float("inf"),
) -> StreamTimes:
    """Run two streams on the same frames, one after the other on every frame.

    Args:
        model: the network, on any device.
        size: height and width of the images, pixels.
        window: views in a window.
        stride: new views per run.
        runs: runs with a full window that are measured.
        clock: of `timing.CLOCKS`.
        budget_s: seconds of wall time after which no further frame is taken, once there is a
            figure.
    """
    height, width = size
    device = next(model.parameters()).device
    network = TorchNetwork(model, str(device), image_width=width)
    # With random weights windows agree on no scale; none may be refused for that.
    parameters = Parameters(
        window_size=window, window_stride=stride, keyframe_min_motion=0, max_scale_spread=10
    )
    streams = {
        "cached": Reconstructor(network, parameters),
        "encoding": Reconstructor(WithoutCache(network), parameters),
    }
    read = CLOCKS["wall" if clock == "cuda" else clock]
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    equal, end = True, time.perf_counter() + budget_s
    for number in range(window + stride * runs):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        results = {}
        for name in list(streams)[:: 1 if number % 2 else -1]:
            started = read()
            # Results are on the host when `add` returns: no synchronisation is missing.
            results[name] = streams[name].add(Frame(number, image))
            taken = read() - started
            if any(run.window_size == window for run in results[name]):
                seconds[name].append(taken)
        for one, other in zip(*results.values(), strict=True):
            for a, b in zip(one.frames, other.frames, strict=True):
                equal &= np.array_equal(a.depth, b.depth, equal_nan=True)
                equal &= np.array_equal(a.map_from_camera, b.map_from_camera)
        if seconds["cached"] and time.perf_counter() > end:
            break
    return StreamTimes(seconds["cached"], seconds["encoding"], bool(equal))
