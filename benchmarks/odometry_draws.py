"""How a recording's scale depends on the noise of its odometry: many draws of it, one run.

The network does not see odometry, so that it runs once; its map is then given out again and again
by the product, each time with other odometry made of the recording's truth, as in
`metric_scale.py`, whose figures are one draw. With `--truth FILE.tum` odometry is also made of
another reference, and held against both.

    python benchmarks/odometry_draws.py RECORDING... -o benchmarks/results/odometry_draws.json

    rms            root mean square over the draws
    largest        of the absolute values
    third_by_first scale of the last third of a recording's path against that of the first
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from confirmation import Truth, read, run
from metric_scale import compared, odometry_of
from other_truth import other_truth
from result_table import ResultTable

from qvggt_core.parameters import Parameters
from qvggt_core.stream import (
    DeferredReconstructor,
    Frame,
    MetricScale,
    Reconstruction,
    Reconstructor,
)
from qvggt_core.stream.frame import FrameGeometry
from qvggt_core.stream.load_network import load_network


class GivenMap:
    """Stands in for a `Reconstructor`: its results of before, in metres by other odometry."""

    def __init__(self, results: list[Reconstruction], scale: MetricScale) -> None:
        """Begin.

        Args:
            results: of one segment, in the map's unit.
            scale: that has been given odometry.
        """
        self.parameters, self.sensors, self.losses = Parameters(), None, None
        self._scale, self._results = scale, list(results)
        self.segment = results[0].segment
        self.scale_history = scale.history

    def add(self, frame: Frame) -> tuple[Reconstruction, ...]:
        """Return what was given out by the time of a frame."""
        done = []
        while self._results and self._results[0].frames[-1].view.stamp_ns <= frame.stamp_ns:
            done.append(self._in_metres(self._results.pop(0)))
        return tuple(done)

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return the rest."""
        rest, self._results = self._results, []
        return tuple(self._in_metres(result) for result in rest)

    def _in_metres(self, result: Reconstruction) -> Reconstruction:
        for geometry in result.frames:
            self._scale.observe(geometry.view.stamp_ns, geometry.map_from_camera)
        # All of a window have one scale.
        frames = tuple(self._placed(geometry) for geometry in result.frames)
        return replace(result, frames=frames, scale=self._scale.scale)

    def _placed(self, geometry: FrameGeometry) -> FrameGeometry:
        pose = self._scale.place(geometry.map_from_camera)
        return replace(geometry.scaled(self._scale.factor), map_from_camera=pose)


def map_of(frames: list[Frame], network: Any, parameters: Parameters) -> list[Reconstruction]:
    """Return what a run gives without odometry, its depth left out: poses alone are needed."""
    results = [result for result in run(frames, network, parameters) if result.frames]
    if len({result.segment for result in results}) != 1:
        raise SystemExit("the map has not one segment: name another recording")
    none = np.zeros((1, 1), np.float32)
    return [
        replace(
            result,
            frames=tuple(replace(each, depth=none, confidence=none) for each in result.frames),
        )
        for result in results
    ]


def draw(
    frames: list[Frame], results: list[Reconstruction], source: Truth, seed: int
) -> list[Reconstruction]:
    """Return a map in metres by one draw of odometry made of a truth."""
    scale = MetricScale(0.0, Parameters().min_odometry_distance)
    for stamp, pose in odometry_of(source, np.random.default_rng([3, seed])):
        scale.add_odometry(stamp, pose[:3, 3])
    deferred = DeferredReconstructor(cast(Reconstructor, GivenMap(results, scale)))
    return [each for frame in frames for each in deferred.add(frame)] + list(deferred.flush())


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all draws against one truth."""
    signed = {
        "scale": [1.0 / each["truth_by_estimate"] - 1.0 for each in found],
        "half_by_first": [each["half_by_first"] for each in found],
        "third_by_first": [each["third_by_first"] for each in found],
        "se3_m": [each["ate_m"]["se3"] for each in found],
    }
    return {
        name: {
            "rms": float(np.sqrt(np.mean(np.square(values)))),
            "largest": float(np.max(np.abs(values))),
            "draws": values,
        }
        for name, values in signed.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--truth", type=Path, help="another reference of the only recording")
    args = parser.parse_args()
    if args.truth is not None and len(args.recordings) != 1:
        parser.error("--truth is another reference of one recording: name one")
    table = ResultTable(args.output, keeps_others=True)
    parameters = Parameters(compute_dtype="float32")
    loaded = load_network(parameters)
    for path in args.recordings:
        frames, own = read(path, None)
        truths = {"own truth": own}
        if args.truth is not None:
            stamps = [frame.stamp_ns for frame in frames]
            truths["other truth"] = other_truth(args.truth, stamps, own)
        results = map_of(frames, loaded.network, loaded.parameters)
        table.add(path.name, _of_recording(frames, results, truths, args.draws))


def _of_recording(
    frames: list[Frame], results: list[Reconstruction], truths: dict[str, Truth], draws: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, source in truths.items():
        made = [draw(frames, results, source, seed) for seed in range(draws)]
        figures[f"odometry of {name}"] = {
            f"against {each}": summary([compared(one, truths[each]) for one in made])
            for each in truths
        }
    return figures


if __name__ == "__main__":
    main()
