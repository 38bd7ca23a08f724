r"""What keeping encoder tokens with their frames gains in a sliding window; it changes nothing.

Two streams see the same frames through the same network, one after the other on every frame:
one keeps a frame's tokens while the frame stays in the window, the other encodes the whole
window again in every run. Weights are random, of VGGT's proportions. Times are process CPU time;
the gain is the median over the frames of the ratio of the two.

    python benchmarks/encoder_cache.py
    python benchmarks/encoder_cache.py --checkpoint out/vggt-1b-int4.safetensors --width 266 \
        --height 196 --runs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qvggt_core.model import VGGT, EncoderConfig, ModelConfig, load_model
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor, TorchNetwork, WindowPrediction

MIDDLE = ModelConfig(
    img_size=224,
    embed_dim=384,
    num_heads=6,
    encoder=EncoderConfig(embed_dim=384, depth=24, num_heads=6),
    camera_num_heads=6,
    dpt_features=96,
    dpt_out_channels=(96, 192, 384, 384),
    point_head=False,
)
"""VGGT-1B with three eighths of its width."""


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
    ) -> WindowPrediction:
        """Encode all images, then predict."""
        encoded: list[Tensor] = [self._network.encode(image) for image in tokens]
        return self._network.predict(encoded, height, width, newest)


def middle_network() -> VGGT:
    """Return a network of random weights."""
    torch.manual_seed(0)
    return VGGT(MIDDLE).initialise().to_compute(torch.float32).requires_grad_(False)


def main() -> None:
    """Run both streams, print a table, and add the result to the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: a random network of middle size")
    parser.add_argument("--height", type=int, default=168)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--runs", type=int, default=8, help="of full windows that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/encoder_cache.json")
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.checkpoint) if args.checkpoint else middle_network()
    network = TorchNetwork(model, image_width=args.width)
    # Random weights agree with themselves on no scale: no window shall be refused for that.
    parameters = Parameters(
        window_size=args.window,
        window_stride=args.stride,
        keyframe_min_motion=0,
        max_scale_spread=10,
    )
    streams = {
        "cache": Reconstructor(network, parameters),
        "no cache": Reconstructor(WithoutCache(network), parameters),
    }
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    equal = True
    for number in range(args.window + args.stride * args.runs):
        image = rng.integers(0, 256, (args.height, args.width, 3), dtype=np.uint8)
        said = {}
        order = list(streams) if number % 2 else list(reversed(streams))
        for name in order:
            started = time.process_time()
            said[name] = streams[name].add(Frame(number, image))
            taken = time.process_time() - started
            if any(run.window_size == args.window for run in said[name]):
                seconds[name].append(taken)
        for one, other in zip(*said.values(), strict=True):
            for mine, its in zip(one.frames, other.frames, strict=True):
                equal &= np.array_equal(mine.depth, its.depth, equal_nan=True)
                equal &= np.array_equal(mine.map_from_camera, its.map_from_camera)
    gains = [slow / fast for slow, fast in zip(seconds["no cache"], seconds["cache"], strict=True)]
    row = {
        "network": "VGGT-1B" if args.checkpoint else "middle",
        "dtype": str(next(model.aggregator.parameters()).dtype).removeprefix("torch."),
        "height": args.height,
        "width": args.width,
        "window": args.window,
        "stride": args.stride,
        "scale_views": parameters.scale_views,
        "threads": args.threads,
        "windows": len(gains),
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "gain": statistics.median(gains),
        "gains": gains,
        "bit_equal": bool(equal),
    }
    table = Table(title="encoder tokens kept with their frames")
    for heading in ("network", "image", "s per window", "without cache", "gain", "bit-equal"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{row['network']}, {row['dtype']}",
        f"{args.height}x{args.width}",
        f"{row['seconds']['cache']:.3f}",
        f"{row['seconds']['no cache']:.3f}",
        f"{row['gain']:.2f}",
        str(row["bit_equal"]),
    )
    Console().print(table)
    rows = []
    if args.output.exists():
        same = ("network", "dtype", "height", "width", "window", "stride", "threads")
        rows = [
            old
            for old in json.loads(args.output.read_text())["rows"]
            if any(old[name] != row[name] for name in same)
        ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps({"machine": describe(), "rows": [*rows, row]}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
