"""Which published network a machine runs at which size, measured on random weights.

Speed does not depend on the weights' values, so nothing has to be downloaded to know it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qvggt_core.model import ComputeSettings, ModelConfig, load_model
from qvggt_core.model.load import with_heads
from qvggt_core.model.published_sizes import DEPTH_ANYTHING_3
from qvggt_core.stream import TorchNetwork

WINDOW, STRIDE, SCALE_VIEWS = 4, 2, 2
_REPEATS = 3


@dataclass(frozen=True)
class NetworkChoice:
    """A network at a size of images.

    Attributes:
        network: name in the catalogue.
        width: of the images, pixels.
        height: of the images, pixels.
    """

    network: str
    width: int
    height: int


CHOICES = (
    NetworkChoice("da3-base", 504, 378),
    NetworkChoice("da3-base", 336, 252),
    NetworkChoice("da3-small", 504, 378),
    NetworkChoice("da3-base", 252, 196),
    NetworkChoice("da3-small", 336, 252),
    NetworkChoice("da3-small", 252, 196),
)
"""The more accurate first: by the network's independent accuracy, then by the size it sees."""


@dataclass(frozen=True)
class MeasuredChoice:
    """How fast a choice is here.

    Attributes:
        choice: network and size.
        seconds: of one run: two new views are encoded, then a window of four is reconstructed, all
            of its views with depth; the best of three.
    """

    choice: NetworkChoice
    seconds: float

    @property
    def keyframes_per_second(self) -> float:
        """New views a second, nothing else running."""
        return STRIDE / self.seconds


def measure_choices(
    device: str,
    settings: ComputeSettings,
    write_checkpoint: Callable[[Path, ModelConfig], None],
    advance: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[MeasuredChoice]:
    """Time every one of `CHOICES`, the fastest first in time, returned in their own order.

    Args:
        device: where the networks run.
        settings: how their linears and attention compute.
        write_checkpoint: writes a 4-bit file with random weights of these sizes.
        advance: called before each with its index, the number of choices, its name.
    """
    found: dict[NetworkChoice, MeasuredChoice] = {}
    with tempfile.TemporaryDirectory() as folder:
        networks: dict[str, TorchNetwork] = {}
        for number, choice in enumerate(reversed(CHOICES)):
            advance(number, len(CHOICES), f"{choice.network} {choice.width}x{choice.height}")
            if choice.network not in networks:
                path = Path(folder) / f"{choice.network}.safetensors"
                config = with_heads(DEPTH_ANYTHING_3[choice.network], ("camera", "depth"))
                write_checkpoint(path, config)
                model = load_model(path, device).configure(settings)
                networks[choice.network] = TorchNetwork(model, device)
            seconds = _seconds(networks[choice.network], choice)
            found[choice] = MeasuredChoice(choice, seconds)
    return [found[choice] for choice in CHOICES]


def _seconds(network: TorchNetwork, choice: NetworkChoice) -> float:
    rng = np.random.default_rng(0)
    shape = (WINDOW, choice.height, choice.width, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    tokens = [network.encode(image) for image in images]
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        tokens[-STRIDE:] = [network.encode(image) for image in images[-STRIDE:]]
        network.predict(tokens, choice.height, choice.width, STRIDE + SCALE_VIEWS)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    # The first run sets caches and kernels up.
    return min(times[1:])


def proposal(measured: list[MeasuredChoice], keyframes_per_second: float) -> MeasuredChoice | None:
    """Return the most accurate choice that keeps up, None if none does."""
    return next((m for m in measured if m.keyframes_per_second >= keyframes_per_second), None)
