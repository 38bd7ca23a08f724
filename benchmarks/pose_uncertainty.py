"""Whether the covariance of poses is what their errors are: NEES over flights in many worlds.

A flight's error at a frame is the small motion between estimated and true pose, both against the
flight's first frame, after one scale that fits the whole path (frames weighted by their
covariance). Its normalised square (NEES, Bar-Shalom, Li, Kirubarajan, "Estimation with
applications to tracking and navigation", 2001, section 5.4) has the mean 6 where the covariance
is right.

    python benchmarks/pose_uncertainty.py render 0 70 DIRECTORY
    python benchmarks/pose_uncertainty.py measure 20 70 DIRECTORY -o benchmarks/results/nees.json

Flights 0 to 19 are those that the constants of `uncertainty.py` were chosen with; they are in
other worlds than those that are measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, FrameGeometry, Reconstructor
from qvggt_core.stream.load_network import load_network
from qvggt_core.synthetic.sensor import expose
from qvggt_core.training.clips import PoolConfig, render_clip

_FRAMES = 60
_PERIOD_NS = 100_000_000
_WIDTH, _HEIGHT = 256, 192
_FLIGHTS = PoolConfig(
    worlds=("rooms", "clutter", "hallways", "panels", "room"),
    layouts=1000,
    frames=_FRAMES,
    height=_HEIGHT,
    width=_WIDTH,
    horizontal_fov=75.0,
    fov_spread=0.2,
    flights=("survey", "wander", "arc", "straight"),
    step_low=0.04,
    step_high=0.12,
    samples=2,
    shutter_high=0.2,
    evaluation=True,
)
"""Worlds of the evaluation split: no network saw them."""

_NOISE = 0.01


def render(first: int, last: int, directory: Path) -> None:
    """Render flights into files, those that are there left as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(first, last):
        path = directory / f"{index:04d}.npz"
        if path.exists():
            continue
        try:
            clip = render_clip(_FLIGHTS, index)
        except ParameterError as error:  # no such path fits into this world
            print(f"{index} is left out: {error}", flush=True)
            continue
        rng = np.random.default_rng([9, index])
        images = np.stack([expose(image, 1.0, _NOISE, rng) for image in clip.images])
        np.savez(
            path.with_suffix(".tmp.npz"),
            images=images,
            poses=clip.world_from_camera,
            intrinsics=clip.intrinsics,
        )
        path.with_suffix(".tmp.npz").rename(path)
        print(path, flush=True)


def reconstruct(path: Path, network: Any, parameters: Parameters) -> dict[str, NDArray[np.float64]]:
    """Return poses, covariances and true poses of a flight's frames, by the first segment."""
    with np.load(path) as flight:
        images, true, intrinsics = flight["images"], flight["poses"], flight["intrinsics"]
    camera = Camera(_WIDTH, _HEIGHT, intrinsics)
    stream = Reconstructor(network, parameters)
    frames: list[FrameGeometry] = []
    for index, image in enumerate(images):
        for result in stream.add(Frame(index * _PERIOD_NS, image, camera)):
            frames += [frame for frame in result.frames if result.segment == 0]
    frames += [f for result in stream.flush() if result.segment == 0 for f in result.frames]
    kept = [frame for frame in frames if frame.covariance is not None and not frame.is_lost]
    return {
        "poses": np.array([frame.map_from_camera for frame in kept]),
        "covariances": np.array([frame.covariance for frame in kept]),
        "truth": np.array([true[frame.view.stamp_ns // _PERIOD_NS] for frame in kept]),
    }


def errors(found: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the NEES (N,) of the frames after the first."""
    poses, truth = found["poses"], found["truth"]
    # Both against the first frame; the map's axes stay those of the covariance.
    map_from_first = poses[0]
    expected = map_from_first @ inverse(truth[0]) @ truth
    start = map_from_first[:3, 3]
    moved, true = poses[:, :3, 3] - start, expected[:, :3, 3] - start
    # Frames count by what their covariance says, or one bad stretch spoils the scale of all.
    weight = 1.0 / np.trace(found["covariances"][:, :3, :3], axis1=1, axis2=2)[:, None]
    scale = float((weight * moved * true).sum() / (weight * true**2).sum())
    position = moved - scale * true
    turned = poses[:, :3, :3] @ expected[:, :3, :3].transpose(0, 2, 1)
    turns = Rotation.from_matrix(turned).as_rotvec()
    error = np.concatenate([position, turns], axis=1)[1:]
    return np.einsum("ni,nij,nj->n", error, np.linalg.inv(found["covariances"][1:]), error)


def summary(nees: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Return the mean over flights by the share of the flight, with its 95 % band, and more."""
    bins = 10
    curve = [
        float(np.mean([values[int(len(values) * i / bins)] for values in nees]))
        for i in range(bins)
    ]
    every = np.concatenate(nees)
    count = len(nees)
    return {
        "flights": count,
        "frames": len(every),
        "mean": float(np.mean(every)),
        "median": float(np.median(every)),
        "expected_mean": 6.0,
        "expected_median": float(chi2.median(6)),
        "beyond_three_sigma": float(np.mean(every > chi2.ppf(0.9973, 6))),
        "mean_by_tenth_of_the_flight": curve,
        "band_95_of_such_a_mean": (chi2.ppf([0.025, 0.975], 6 * count) / count).tolist(),
        "mean_of_each_flight": [float(np.mean(values)) for values in nees],
    }


def main() -> None:
    """Render or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("render", "measure"))
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.what == "render":
        render(args.first, args.last, args.directory)
        return
    loaded = load_network(Parameters(compute_dtype="float32", threads=1))
    nees, lost = [], []
    for index in range(args.first, args.last):
        path = args.directory / f"{index:04d}.npz"
        if not path.exists():
            continue
        found = reconstruct(path, loaded.network, loaded.parameters)
        if len(found["poses"]) < _FRAMES // 2:
            lost.append(index)
            continue
        nees.append(errors(found))
        print(index, len(found["poses"]), f"{np.mean(nees[-1]):.2f}", flush=True)
    report = {"left_out": lost, **summary(nees)}
    print(json.dumps(report, indent=1))
    if args.output:
        write_results(args.output, report, shipped_checkpoint(), digits=4)


if __name__ == "__main__":
    main()
