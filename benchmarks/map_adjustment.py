"""Time and memory of adjusting a whole map, on laps of a ring.

A camera goes around a ring of 126 m between two walls of 30,000 points, 200 keyframes a lap.
Corners are off by half a pixel, depth by 5 % each, odometry drifts, and the graph has up to 96
loops that are as noisy as they claim. Each map is a process of its own, on one thread.

    python benchmarks/map_adjustment.py -o benchmarks/results/map_adjustment.json

    adjusted_s     of the processor, pairs compared and all
    pairs_s        of that, the comparison of pairs
    peak_mib       of the process, with the keyframes' corners, and grown by adjusting

What adjusting is worth is measured by loop_closure.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from result_table import ResultTable

from qvggt_core.geometry.poses import inverse
from qvggt_core.geometry.similarities import moved_by, rigid
from qvggt_core.stream.corner_tracks import corner_tracks
from qvggt_core.stream.image_features import Features
from qvggt_core.stream.keyframe_chain import Chains, Loop, correct
from qvggt_core.stream.loop_verification import Corners
from qvggt_core.stream.map_adjustment import World, adjusted_worlds, pairs_of

_COUNTS = (220, 600, 2000)
_RADIUS, _LAP, _POINTS, _LOOPS, _FOCAL, _CORNERS = 20.0, 200, 30_000, 96, 500.0, 800
_PIXELS, _DEPTH = 0.5, 0.05
_STEP = np.repeat([0.001, 0.005, 0.0], [3, 3, 1])
_CLAIMED = np.diag(np.repeat([1e-5, 1e-4, 1.6e-5], [3, 3, 1]))


def ring(count: int) -> NDArray[np.float64]:
    """Return poses (N, 4, 4) of a camera that looks ahead."""
    angle = 2.0 * np.pi * np.arange(count) / _LAP
    ahead = np.stack([-np.sin(angle), np.cos(angle), 0.0 * angle], axis=1)
    down = np.tile([0.0, 0.0, -1.0], (count, 1))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = np.stack([np.cross(down, ahead), down, ahead], axis=-1)
    poses[:, :3, 3] = np.stack(
        [_RADIUS * np.cos(angle), _RADIUS * np.sin(angle), 0.1 * np.sin(3 * angle)], axis=1
    )
    return poses


def corners_of(poses: NDArray[np.float64], rng: np.random.Generator) -> list[Corners]:
    """Return what is seen of the walls."""
    angle, height = rng.uniform(0, 2 * np.pi, _POINTS), rng.uniform(-2, 2, _POINTS)
    out = _RADIUS + rng.choice([-3.0, 3.0], _POINTS) + rng.normal(0, 0.3, _POINTS)
    points = np.stack([out * np.cos(angle), out * np.sin(angle), height], axis=1)
    looks = rng.integers(0, 80, (_POINTS, 128))
    found = []
    for pose in poses:
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        depth = local[:, 2]
        seen = (depth > 1) & (depth < 8) & (np.abs(local[:, 0]) < 0.7 * depth)
        seen &= np.abs(local[:, 1]) < 0.5 * depth
        index = rng.permutation(np.flatnonzero(seen))[:_CORNERS]
        rays = local[index, :2] / depth[index, None]
        rays += rng.normal(0, _PIXELS / _FOCAL, rays.shape)
        changed = looks[index] + rng.integers(-6, 7, (len(index), 128))
        features = Features(
            (_FOCAL * rays).astype(np.float32), changed.clip(0, 255).astype(np.uint8)
        )
        known = depth[index] * np.exp(rng.normal(0, _DEPTH, len(index)))
        found.append(Corners(features, rays, known.astype(np.float32), _FOCAL, 0.7))
    return found


def measured(count: int) -> dict[str, Any]:
    """Return the figures of a map of so many keyframes."""
    rng, truth = np.random.default_rng(0), ring(count)
    corners, chains = corners_of(truth, rng), Chains()
    odometry = [truth[0]]
    for before, now in pairwise(truth):
        noise = moved_by(_STEP * rng.standard_normal(7))
        odometry.append(rigid(odometry[-1] @ inverse(before) @ now @ noise))
    for pose in odometry:
        chains.append(pose, _CLAIMED, 0)

    ends = np.unique(np.linspace(_LAP + 1, count - 2, _LOOPS).astype(int))

    def loop_noise() -> NDArray[np.float64]:
        return moved_by(rng.multivariate_normal(np.zeros(7), 10 * _CLAIMED))

    loops = [
        Loop(end - _LAP, end, inverse(truth[end - _LAP]) @ truth[end] @ loop_noise(), 10 * _CLAIMED)
        for end in ends.tolist()
    ]
    graph = correct(chains, loops).poses
    start = time.process_time()
    tracks = corner_tracks(corners, pairs_of(World(corners, graph, chains, loops)))
    pairs_s, before = time.process_time() - start, _peak_mib()
    start = time.process_time()
    _, (world,) = adjusted_worlds(corners, chains, loops, np.zeros(count, np.int64), graph)
    return {
        "keyframes_adjusted": len(world.poses),
        "points": world.points,
        "points_of_all": tracks.points,
        "pairs_s": pairs_s,
        "adjusted_s": time.process_time() - start,
        "peak_mib": {"all": _peak_mib(), "before": before},
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--keyframes", type=int, help="print one map's figures")
    args = parser.parse_args()
    if args.keyframes:
        print(json.dumps(measured(args.keyframes)))
        return
    table = ResultTable(args.output, keeps_others=False)
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for count in _COUNTS:
        command = [sys.executable, __file__, "--keyframes", str(count)]
        environment = {**os.environ, **one}
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        table.add(f"{count} keyframes", json.loads(found.stdout))


if __name__ == "__main__":
    main()
