"""What confirmation and refinement take beside the network, per image of a stream.

    python benchmarks/confirmation_cost.py RECORDING -o benchmarks/results/confirmation_cost.json

The network that ships, and one of Depth Anything 3 Small's shape in INT4 with random weights, at
336 columns, get the same images with the default window. Times are CPU seconds of the thread that
does both, with one thread in all: a busy machine changes their ratio little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
from confirmation import read

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint
from qvggt_core.model.published_sizes import DEPTH_ANYTHING_3
from qvggt_core.parameters import Parameters
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.network import TorchNetwork
from qvggt_core.stream.verification import Verifier

_NETWORK = ("encode", "predict")
_STAGE = ("follow", "observe", "judge", "expect", "place")


class Clocked:
    """Gives methods of a class a clock while it is entered.

    Attributes:
        seconds: CPU seconds by method.
    """

    def __init__(self, owner: type, names: tuple[str, ...]) -> None:
        """Choose the methods."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._owner = owner
        self._methods = {name: getattr(owner, name) for name in names}

    def __enter__(self) -> Clocked:
        """Begin."""
        for name, method in self._methods.items():
            setattr(self._owner, name, self._timed(name, method))
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the methods back."""
        for name, method in self._methods.items():
            setattr(self._owner, name, method)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - begun

        return run


def measure(frames: list[Frame], parameters: Parameters, warm_up: int = 16) -> dict[str, Any]:
    """Return milliseconds an image of the network and of the stage beside it."""
    loaded = load_network(parameters)
    stream = Reconstructor(loaded.network, loaded.parameters)
    for frame in frames[:warm_up]:
        stream.add(frame)
    with Clocked(TorchNetwork, _NETWORK) as network, Clocked(Verifier, _STAGE) as stage:
        for frame in frames[warm_up:]:
            stream.add(frame)
    per_image = 1e3 / (len(frames) - warm_up)
    network_ms = per_image * sum(network.seconds.values())
    stage_ms = per_image * sum(stage.seconds.values())
    return {
        "images": len(frames) - warm_up,
        "window": [parameters.window_size, parameters.window_stride],
        "network_ms": network_ms,
        "stage_ms": stage_ms,
        "share": stage_ms / network_ms,
        "steps_ms": {name: per_image * seconds for name, seconds in stage.seconds.items()},
    }


def main() -> None:
    """Measure both networks and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    frames, _ = read(args.recording, args.images)
    height, width = frames[0].image.shape[:2]
    results: dict[str, Any] = {"recording": args.recording.name, "images": f"{width}x{height}"}
    results["qvggt-small"] = measure(frames, Parameters(threads=1))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "da3-small.safetensors"
        config = replace(DEPTH_ANYTHING_3["da3-small"], ray_head=False)
        write_random_checkpoint(checkpoint, config)
        parameters = Parameters(checkpoint=str(checkpoint), image_width=336, threads=1)
        results["da3-small, random weights"] = measure(frames, parameters)
    for name in ("qvggt-small", "da3-small, random weights"):
        print(name, {key: value for key, value in results[name].items() if key != "steps_ms"})
        print("  ", {key: round(value, 2) for key, value in results[name]["steps_ms"].items()})
    if args.output:
        write_results(args.output, results, shipped_checkpoint(), digits=4)


if __name__ == "__main__":
    main()
