"""How well the scale is known: flights with exact geometry and one source each, and recordings.

The flights feed `MetricScale` with true poses in a unit that walks by 0.5 % per root metre, and
one source: odometry that is 1 % too long, noisy, turning away and 50 ms late, or another. In a
recording, odometry is made of its ground truth in the same way, and all else is the product.

    python benchmarks/metric_scale.py [RECORDING...] -o benchmarks/results/metric_scale.json

    recorded       the same flights as recordings: the scale by what comes before and after
    within         share of the flights whose error is 2 % at most after 5 s, 3 % at the end
    not_metric     share of the flights where the scale is not known yet
    bound          what one who knows all noises makes of the same measurements (scale_bound.py)
    lengths        how many single lengths a flight was asked for
    chi            root mean square of the error in the standard deviations that are given out
    third_by_first scale of the last third of a recording's path against that of the first

With `--truth FILE.tum` a recording is also compared with another reference than its own, and
odometry made of that one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confirmation import Truth, read
from numpy.typing import NDArray
from other_truth import other_truth
from result_table import ResultTable
from scale_bound import Noises, Noted, bound
from scipy.spatial.transform import Rotation

from qvggt_core.evaluate.trajectory import absolute_errors
from qvggt_core.geometry.poses import inverse
from qvggt_core.parameters import Parameters
from qvggt_core.stream import DeferredReconstructor, MetricScale, Reconstruction, Reconstructor
from qvggt_core.stream.deferred import AHEAD
from qvggt_core.stream.frame import Scale
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.metric_depth import MetricDepthSchedule

_SECONDS, _RATE, _ODOMETRY_RATE = 180.0, 10.0, 50.0
_UNIT_WALK = 0.005
_BIAS, _LATE_S, _HEADING, _NOISE = 0.01, 0.05, 0.001, 0.001
_OF_RECORDING_RATE = 30.0
_RATIO_SIGMA = 0.03
_HEIGHT_SIGMA, _WRONG = 0.02, 0.1
_SAMPLES = round(_ODOMETRY_RATE / _RATE)
_NOISES = Noises(
    walk=_UNIT_WALK,
    ratio=_RATIO_SIGMA,
    wrong=_WRONG,
    step=_NOISE * _SAMPLES**0.5,
    turn=_HEADING * _SAMPLES**0.5,
    height=_HEIGHT_SIGMA,
    samples=_SAMPLES,
)
_EVERY, _AT_5_S, _WINDOW = 20, 50, 4
_BARS = {"at_5_s": 0.02, "at_the_end": 0.03}


@dataclass(frozen=True)
class Flight:
    """True poses, and the same in a map whose unit walks.

    Attributes:
        times: (N,) seconds.
        positions: gives (M, 3) metres at times (M,).
        map_from_camera: (N, 4, 4) in map units.
        unit: (N,) metres per unit.
    """

    times: NDArray[np.float64]
    positions: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    map_from_camera: NDArray[np.float64]
    unit: NDArray[np.float64]


def flight(seed: int) -> Flight:
    """Return a flight that wanders through a room."""
    rng = np.random.default_rng([1, seed])
    rates, phases = rng.uniform(0.3, 1.2, (4, 3)), rng.uniform(0, 6.28, (4, 3))
    reach = rng.uniform(0.2, 0.6, (4, 3)) / rates

    def positions(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return (reach * np.sin(rates * at[:, None, None] + phases)).sum(axis=1)

    times = np.arange(0.0, _SECONDS, 1.0 / _RATE)
    true = positions(times)
    steps = np.diff(true, axis=0, prepend=true[:1])
    walk = _UNIT_WALK * np.sqrt(np.linalg.norm(steps, axis=1)) * rng.standard_normal(len(times))
    unit = 3.0 * np.exp(np.cumsum(walk))
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("z", np.sin(0.3 * times)[:, None]).as_matrix()
    poses[:, :3, 3] = np.cumsum(steps / unit[:, None], axis=0)
    return Flight(times, positions, poses, unit)


def drifting(positions: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N, 3) as odometry has them: too long, noisy, turning away."""
    steps = np.diff(positions, axis=0, prepend=positions[:1])
    heading = np.cumsum(_HEADING * rng.standard_normal(len(steps)))[:, None]
    turned = np.einsum("nij,nj->ni", Rotation.from_euler("z", heading).as_matrix(), steps)
    return np.cumsum((1.0 + _BIAS) * turned + rng.normal(0, _NOISE, steps.shape), axis=0)


def odometry(scale: MetricScale, of: Flight, rng: np.random.Generator) -> Callable[[int], None]:
    """Return what feeds a scale with odometry up to an image."""
    fine = np.arange(0.0, _SECONDS, 1.0 / _ODOMETRY_RATE)
    samples, sent = drifting(of.positions(fine), rng), iter(range(len(fine)))
    waiting = [next(sent)]

    def feed(index: int) -> None:
        while waiting and fine[waiting[0]] + _LATE_S <= of.times[index]:
            each = waiting.pop()
            scale.add_odometry(_ns(fine[each] + _LATE_S), samples[each])
            waiting.extend([following] if (following := next(sent, None)) is not None else [])

    return feed


def gps(scale: MetricScale, of: Flight, rng: np.random.Generator) -> Callable[[int], None]:
    """The same with fixes of 2 cm (RTK), five a second."""
    true = of.positions(of.times)

    def feed(index: int) -> None:
        if index % 2 == 0:
            scale.add_gps(_ns(of.times[index]), true[index] + rng.normal(0, 0.02, 3), 0.02)

    return feed


def altitude(scale: MetricScale, of: Flight, rng: np.random.Generator) -> Callable[[int], None]:
    """The same with an altimeter of 2 cm."""
    true = of.positions(of.times)

    def feed(index: int) -> None:
        scale.add_altitude(_ns(of.times[index]), true[index, 2] + rng.normal(0, _HEIGHT_SIGMA))

    return feed


Chosen = Callable[[int], int]
"""Gives how many lengths an image is asked for."""


def each(number: int) -> Callable[[MetricScale], Chosen]:
    """Return what chooses every n-th image."""
    return lambda scale: lambda index: int(index % number == 0)


def as_scheduled(scale: MetricScale) -> Chosen:
    """Return what chooses a metric network's images, of windows of four new ones."""
    schedule = MetricDepthSchedule(Parameters().scale_period_s)
    return lambda index: (
        schedule.due(_ns(index / _RATE), _WINDOW, scale.noise) if index % _WINDOW == 0 else 0
    )


def ratio(source: str, chosen: Callable[[MetricScale], Chosen]) -> Any:
    """Return the same with lengths of single images, each off by 3 %, one in ten by a factor."""

    def begin(scale: MetricScale, of: Flight, rng: np.random.Generator) -> Callable[[int], None]:
        lengths = chosen(scale)

        def feed(index: int) -> None:
            for _ in range(lengths(index)):
                wrong = np.exp(rng.uniform(-1, 1)) if rng.random() < _WRONG else 1.0
                metres = of.unit[index] * wrong * np.exp(rng.normal(0, _RATIO_SIGMA))
                scale.observe_ratio(_ns(of.times[index]), metres, _RATIO_SIGMA, source)

        return feed

    return begin


SOURCES = {
    "odometry": odometry,
    "gps": gps,
    "altitude": altitude,
    "range": ratio("range", each(1)),
    "baseline": ratio("baseline", each(1)),
    "camera height": ratio("camera height", each(4)),
    "metric depth": ratio("metric depth", as_scheduled),
}


class Recorded:
    """The scale as it is given to recordings, at some of a flight's images."""

    def __init__(self, of: Flight, scale: MetricScale) -> None:
        count = len(of.times)
        self.errors, self.sigma = np.full((2, count), np.nan)
        self._of, self._history = of, scale.history
        self._waiting = sorted({*range(0, count, _EVERY), _AT_5_S, count - 1})
        self._known: list[Scale] = []

    def take(self, index: int, known: Scale) -> None:
        """Take the scale as it was known at an image."""
        self._known.append(known)
        first = next((each for each in self._known if each.metres_per_unit is not None), None)
        is_last = index == len(self._of.times) - 1
        while first is not None and self._waiting and self._waiting[0] <= index:
            at = self._waiting[0]
            stamp, begun = _ns(self._of.times[at]), self._known[at]
            begun = begun if begun.metres_per_unit is not None else first
            if not is_last and self._history.drifts_since(stamp, begun.metres_per_unit) < AHEAD:
                break
            found = self._history.scale(stamp, begun)
            self.errors[at] = found.metres_per_unit / self._of.unit[at] - 1.0
            self.sigma[at] = found.sigma
            del self._waiting[0]


def oracle(source: str, seed: int) -> dict[str, Any]:
    """Return the errors of the scale on one flight with one source."""
    of, rng = flight(seed), np.random.default_rng([2, seed])
    scale = Noted()
    feed = SOURCES[source](scale, of, rng)
    errors, sigma = np.full((2, len(of.times)), np.nan)
    recorded = Recorded(of, scale)
    for index, time in enumerate(of.times):
        feed(index)
        scale.observe(_ns(time), of.map_from_camera[index])
        scale.place(of.map_from_camera[index])
        recorded.take(index, scale.scale)
        if scale.scale.metres_per_unit is not None:
            errors[index] = scale.scale.metres_per_unit / of.unit[index] - 1.0
            sigma[index] = scale.scale.sigma
    known = np.flatnonzero(np.isfinite(errors))
    return {
        "metric_after_s": None if len(known) == 0 else float(of.times[known[0]]),
        **_figures(errors, sigma),
        "recorded": _figures(recorded.errors, recorded.sigma),
        "bound": _bounds(of, scale),
        "lengths": len(scale.ratios),
    }


def _bounds(of: Flight, given: Noted) -> dict[str, float]:
    """Return the errors of one who knows all noises, NaN for a source that is not treated."""
    true = of.positions(of.times)
    steps = np.linalg.norm(np.diff(true, axis=0, prepend=true[:1]), axis=1)
    found = {}
    for name, last in (("at_5_s", _AT_5_S), ("at_the_end", len(of.times) - 1)):
        until = slice(None, last + 1)
        places = of.map_from_camera[until, :3, 3]
        log = bound(given, places, steps[until], _ns(1.0 / _RATE), _NOISES)
        found[name] = np.nan if log is None else float(np.exp(log) / of.unit[last] - 1.0)
    return found


def _figures(errors: NDArray[np.float64], sigma: NDArray[np.float64]) -> dict[str, float]:
    """Return the figures of a flight's errors (N,), NaN where the scale is not known."""
    is_known = np.isfinite(errors).any()
    return {
        "at_5_s": float(errors[_AT_5_S]),
        "at_the_end": float(errors[-1]),
        "rms": float(np.sqrt(np.nanmean(errors**2))) if is_known else np.nan,
        "chi": float(np.sqrt(np.nanmean((errors / sigma) ** 2))) if is_known else np.nan,
    }


def _shares(found: list[dict[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, bar in _BARS.items():
        errors = np.abs([flight[name] for flight in found])
        table[name] = {
            "within": float(np.mean(errors <= bar)),
            "not_metric": float(np.mean(np.isnan(errors))),
            "median": float(np.nanmedian(errors)),
            "largest": float(np.nanmax(errors)),
        }
    return table


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of many flights with one source."""
    table = _shares(found)
    for name in ("rms", "chi"):
        table[name] = float(np.sqrt(np.nanmean([flight[name] ** 2 for flight in found])))
    return table


def recording(path: Path, loaded: Any, seed: int, other: Path | None) -> dict[str, Any]:
    """Return how well a recording's scale is known with odometry made of its truth."""
    frames, truth = read(path, None)
    truths = {"own truth": truth}
    if other is not None:
        truths["other truth"] = other_truth(other, [frame.stamp_ns for frame in frames], truth)
    table: dict[str, Any] = {}
    for name, source in truths.items():
        reconstructor = DeferredReconstructor(Reconstructor(loaded.network, loaded.parameters))
        for stamp, pose in odometry_of(source, np.random.default_rng([3, seed])):
            reconstructor.sensors.add_odometry(stamp, pose[:3, 3], pose)
        results = [result for frame in frames for result in reconstructor.add(frame)]
        results += reconstructor.flush()
        last = results[-1].scale if results[-1].frames else results[-2].scale
        table[f"odometry of {name}"] = {
            "state": last.state.value if last.state is not None else None,
            "sigma": last.sigma,
            "segments": len({result.segment for result in results if result.frames}),
            **{f"against {each}": compared(results, truths[each]) for each in truths},
            "events": [event for result in results for event in result.events],
        }
    return table


def compared(results: list[Reconstruction], truth: Truth) -> dict[str, Any]:
    """Return a recording's scale and errors by one of its truths."""
    placed = [
        (geometry.map_from_camera, pose)
        for result in results
        for geometry in result.frames
        if (pose := truth.pose(geometry.view.stamp_ns)) is not None
    ]
    estimate, true = (np.stack(each) for each in zip(*placed, strict=True))
    half, third = len(estimate) // 2, len(estimate) // 3
    parts = (slice(None), slice(half), slice(half, None), slice(third), slice(-third, None))
    scales = [absolute_errors(estimate[part], true[part], "sim3").scale for part in parts]
    return {
        "truth_by_estimate": scales[0],
        "half_by_first": scales[2] / scales[1] - 1.0,
        "third_by_first": scales[4] / scales[3] - 1.0,
        "ate_m": {
            kind: float(np.sqrt((absolute_errors(estimate, true, kind).translation ** 2).mean()))
            for kind in ("se3", "sim3")
        },
        "length_m": float(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum()),
    }


def odometry_of(truth: Truth, rng: np.random.Generator) -> Any:
    """Yield stamp and pose (4, 4) of odometry: the truth's, too long, turning away, late."""
    stamps = np.array(sorted(truth.poses))
    poses = np.stack([truth.poses[stamp] for stamp in stamps])
    first = inverse(poses[0])
    times = np.arange(stamps[0], stamps[-1], round(1e9 / _OF_RECORDING_RATE))
    positions = np.stack(
        [np.interp(times, stamps, (first @ poses)[:, axis, 3]) for axis in range(3)], axis=-1
    )
    nearest = np.abs(times[:, None] - stamps[None, :]).argmin(axis=1)
    for time, position, at in zip(times, drifting(positions, rng), nearest, strict=True):
        pose = first @ poses[at]
        pose[:3, 3] = position
        yield int(time) + _ns(_LATE_S), pose


def _ns(seconds: float) -> int:
    return round(float(seconds) * 1e9)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--flights", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000, help="of the flights")
    parser.add_argument("--sources", nargs="*", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--truth", type=Path, help="another reference of the only recording")
    args = parser.parse_args()
    if args.truth is not None and len(args.recordings) != 1:
        parser.error("--truth is another reference of one recording: name one")
    table = ResultTable(args.output, keeps_others=True)
    for source in args.sources:
        seeds = range(args.first_seed, args.first_seed + args.flights)
        found = [oracle(source, seed) for seed in seeds] if args.flights else []
        if found:
            both = summary([each["recorded"] for each in found])
            facts: dict[str, Any] = {"first_seed": args.first_seed, "flights": found}
            if np.isfinite([each["bound"]["at_5_s"] for each in found]).all():
                facts["bound"] = _shares([each["bound"] for each in found])
            table.add(source, {**summary(found), "recorded": both, **facts})
    loaded = load_network(Parameters(compute_dtype="float32")) if args.recordings else None
    for path in args.recordings:
        table.add(path.name, recording(path, loaded, 0, args.truth))


if __name__ == "__main__":
    main()
