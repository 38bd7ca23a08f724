"""Memory of a recording's results that wait for what is measured further on.

    python benchmarks/held_results.py -o benchmarks/results/held_results.json

A camera of 640x480 moves by 3 cm an image; the network is one that knows the answer, as large as
`width`, so that all memory is the stream's. `known` has odometry, so that up to 120 images wait for
measurements ahead; `waiting` has none, so that up to 400 wait for metres. Each in a process of its
own.

    held        most images that waited
    before_mib  resident memory at the 20th image
    most_mib    the most of it at any image
    per_image   MiB for each image that waited, between the two
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from result_table import ResultTable

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.measure.rss import resident_mib
from qvggt_core.parameters import Parameters
from qvggt_core.stream import DeferredReconstructor, Frame, Reconstructor
from qvggt_core.stream.network import WindowPrediction

_CAMERA = Camera(640, 480, np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]]))
_STEP, _PERIOD_NS, _IMAGES, _FIRST = 0.03, 100_000_000, 450, 20
_WIDTHS = {128: 16, 252: 14, 518: 14}


class Knowing:
    """A network that knows where the n-th image was taken, before a wall at 3 m."""

    def __init__(self, width: int, patch: int) -> None:
        """Begin at the first image."""
        self.image_width, self.patch_size = width, patch
        self._count = 0

    def encode(self, image: NDArray[np.uint8]) -> int:
        """Return the number of an image."""
        self._count += 1
        return self._count - 1

    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        """Return the geometry of a window."""
        poses = np.tile(np.eye(4), (len(tokens), 1, 1))
        poses[:, 0, 3] = _STEP * np.array(tokens)
        focal = 500.0 * width / 640
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        depths = len(tokens) if newest is None else newest
        return WindowPrediction(
            camera_from_world=inverse(poses),
            intrinsics=np.tile(intrinsics, (len(tokens), 1, 1)),
            depth=np.full((depths, height, width), 3.0, np.float32),
            confidence=np.full((depths, height, width), 2.0, np.float32),
        )


def measured(width: int, has_odometry: bool) -> dict[str, float]:
    """Return the figures of one stream."""
    network = Knowing(width, _WIDTHS[width])
    parameters = Parameters(image_width=width, confirm=False, refine=False, keyframe_min_motion=0.0)
    stream = DeferredReconstructor(Reconstructor(network, parameters))
    rng, most, held, before = np.random.default_rng(0), 0.0, 0, 0.0
    published = 0
    for index in range(_IMAGES):
        stamp = index * _PERIOD_NS
        if has_odometry:
            stream.sensors.add_odometry(stamp, np.array([_STEP * index, 0.0, 0.0]))
        image = rng.integers(0, 255, (480, 640, 3), np.uint8)
        results = stream.add(Frame(stamp, image, _CAMERA, "camera"))
        published += sum(len(result.frames) for result in results)
        held = max(held, index + 1 - published)
        most = max(most, resident_mib())
        if index == _FIRST:
            before = resident_mib()
    per_image = (most - before) / max(held - _FIRST, 1)
    return {"held": held, "before_mib": before, "most_mib": most, "per_image": per_image}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    table = ResultTable(args.output, keeps_others=False)
    context = multiprocessing.get_context("spawn")
    for width in _WIDTHS:
        for name, has_odometry in (("known", True), ("waiting", False)):
            with context.Pool(1) as pool:
                found: Any = pool.apply(measured, (width, has_odometry))
            table.add(f"{name}, {width} columns", found)


if __name__ == "__main__":
    main()
