"""How often a camera finds itself in a saved map, how soon, and how often it is wrong.

    python benchmarks/relocalisation.py DIRECTORY RECORDING... \
        -o benchmarks/results/relocalisation.json

DIRECTORY has the renderings of benchmarks/loop_closure.py. A map is made of one half of a
flight, saved and loaded; every few frames of the other half a try begins that knows nothing, and
ends after `_FRAMES` frames. A pose is right within 0.3 m and 5 degrees of the truth, to which the
map's keyframes are aligned: turn by orientations, scale and shift by positions. Tries in the map of
another world may find nothing. With --truth, a recording is also held against another reference: a
trajectory in TUM's format, in any unit, interpolated between its poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from confirmation import Truth, read
from loop_closure import Looked, by_oracle, drifting, run_network, tokens_of
from loop_flights import CAMERA, PERIOD_NS, rendered
from numpy.typing import NDArray
from other_truth import other_truth
from result_table import ResultTable, parser_of
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.geometry.similarities import rigid
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Preprocessor, Reconstruction, localiser, loop_finder
from qvggt_core.stream.align import Similarity
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.localiser import MapLocaliser
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.saved_map import SavedMap, read_map, write_map

# Frames between tries, of a try, and of those after the camera is localised; a try has as many.
PARTS = ("rooms", "recordings")
_EVERY, _FRAMES, _LATER = 4, 60, 20
_METRES, _DEGREES = 0.3, 5.0


@dataclass(frozen=True)
class Step:
    """One reconstruction of a flight before any correction, and what the encoder made of it."""

    result: Reconstruction
    tokens: dict[int, Any]


class Remembered:
    """Finds the corners of each image, and compares each two of them, once for all tries."""

    def __init__(self) -> None:
        """Take the place of what does so."""
        self._corners: dict[int, Any] = {}
        self._same: dict[tuple[int, int], Any] = {}
        self._work = localiser.corners_of, localiser.compare
        for module in (localiser, loop_finder):
            module.corners_of, module.compare = self.corners_of, self.compare

    def corners_of(self, keyframe: Any) -> Any:
        """Return the corners of a keyframe, whose image stays as long as its flight."""
        key = id(keyframe.image)
        if key not in self._corners:
            self._corners[key] = self._work[0](keyframe)
        return self._corners[key]

    def compare(self, first: Any, second: Any) -> Any:
        """Return what two keyframes' corners have in common."""
        key = id(first), id(second)
        if key not in self._same:
            # With the corners, whose numbers are theirs as long as they are there.
            self._same[key] = self._work[1](first, second), first, second
        return self._same[key][0]


class Recorded(LoopClosure):
    """Keeps what a flight gives, and corrects nothing."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.steps: list[Step] = []

    def correct(self, result: Reconstruction, tokens: Any) -> Reconstruction:
        """Keep a reconstruction."""
        made = {g.view.stamp_ns: np.asarray(tokens(g)) for g in result.frames}
        self.steps.append(Step(result, made))
        return result


@dataclass(frozen=True)
class Flight:
    """A flight, reconstructed."""

    frames: dict[int, Frame]
    steps: Sequence[Step]
    truth: Truth
    size: tuple[int, int]

    def through(self, loops: LoopClosure, steps: Sequence[Step]) -> None:
        """Give steps to what takes them."""
        preprocessor = Preprocessor(*self.size)
        for step in steps:
            for geometry in step.result.frames:
                loops.remember(self.frames[geometry.view.stamp_ns], preprocessor)
            loops.correct(step.result, lambda g, made=step.tokens: made[g.view.stamp_ns])

    @property
    def halves(self) -> tuple[Sequence[Step], Sequence[Step]]:
        """The steps of the first half of the images, and the others."""
        counts = np.cumsum([len(step.result.frames) for step in self.steps])
        half = int(np.searchsorted(counts, counts[-1] / 2)) + 1
        return self.steps[:half], self.steps[half:]


def by_network(frames: list[Frame], truth: Truth, loaded: Any) -> Flight:
    """Return a flight as the network has it, points followed."""
    loops = Recorded()
    run_network(frames, loaded, loops)
    size = (loaded.network.image_width, loaded.network.patch_size)
    return Flight({frame.stamp_ns: frame for frame in frames}, loops.steps, truth, size)


def with_exact_depth(directory: Path, seed: int, network: Any) -> Flight:
    """Return a flight with exact depth and odometry that drifts."""
    flight = rendered(directory, "room", 30 + seed, seed, 220)
    stamps = [index * PERIOD_NS for index in range(len(flight.poses))]
    tokens = tokens_of(flight, network)
    odometry = drifting(flight.poses, np.random.default_rng([6, seed]))
    size = (network.image_width, network.patch_size)
    looked: Looked = by_oracle(flight, odometry, tokens, *size)
    steps = [
        Step(result, {stamp: token})
        for result, stamp, token in zip(looked.before[: len(stamps)], stamps, tokens, strict=True)
    ]
    frames = {
        stamp: Frame(stamp, image, CAMERA, "camera")
        for stamp, image in zip(stamps, flight.images, strict=True)
    }
    return Flight(frames, steps, Truth(dict(zip(stamps, flight.poses, strict=True))), size)


def mapped(flight: Flight, steps: Sequence[Step]) -> SavedMap:
    """Return the map of a part of a flight, saved and loaded."""
    loops = LoopClosure()
    flight.through(loops, steps)
    loops.settle(is_last=True)
    assert isinstance(loops.finder, LoopFinder)
    saved = SavedMap.of(loops.finder, "", "first camera")
    with TemporaryDirectory() as directory:
        write_map(Path(directory) / "map", saved)
        return read_map(Path(directory) / "map")


@dataclass(frozen=True)
class Alignment:
    """Where the truth has a map.

    Attributes:
        truth_from_map: by the poses of its keyframes.
        error: root mean square of their distances, metres.
    """

    truth_from_map: Similarity
    error: float

    @classmethod
    def of(cls, saved: SavedMap, truth: Truth) -> Alignment:
        """Align a map to the truth of its flight."""
        known = [truth.pose(keyframe.stamp_ns) for keyframe in saved.keyframes]
        kept = [index for index, pose in enumerate(known) if pose is not None]
        path, true = saved.poses[kept], np.stack([known[index] for index in kept])
        # By their orientations: a short path fixes the turn about itself badly.
        rotation = Rotation.from_matrix(true[:, :3, :3] @ np.swapaxes(path[:, :3, :3], 1, 2))
        turn = rotation.mean().as_matrix()
        source, target = path[:, :3, 3] @ turn.T, true[:, :3, 3]
        moved, wanted = source - source.mean(axis=0), target - target.mean(axis=0)
        scale = float((moved * wanted).sum() / np.square(moved).sum())
        shift = target.mean(axis=0) - scale * source.mean(axis=0)
        off = np.linalg.norm(scale * moved - wanted, axis=1)
        return cls(Similarity(scale, turn, shift), float(np.sqrt(np.mean(off**2))))

    def errors(self, map_from_camera: NDArray, true: NDArray) -> tuple[float, float]:
        """Return metres and degrees by which a pose (4, 4), maybe a similarity, is off."""
        pose = self.truth_from_map.pose(rigid(map_from_camera))
        off = float(np.linalg.norm(pose[:3, 3] - true[:3, 3]))
        return off, float(np.degrees(rotation_angle(pose[:3, :3].T @ true[:3, :3])))


def attempt(
    flight: Flight, steps: Sequence[Step], saved: SavedMap, alignment: Alignment | None
) -> tuple[list[tuple[float, float]], int]:
    """Return what poses are off by from when the camera is localised, and after how many keyframes.

    Without an alignment the map is of another world: any pose is wrong.
    """
    loops = LoopClosure(saved=saved)
    finder = loops.finder
    assert isinstance(finder, MapLocaliser)
    offs: list[tuple[float, float]] = []
    keyframes, later = 0, 0
    for step in steps:
        flight.through(loops, [step])
        move, newest = finder.map_from_odometry, step.result.frames[-1:]
        true = flight.truth.pose(newest[0].view.stamp_ns) if newest else None
        if move is None or true is None:
            continue
        keyframes = keyframes or int(finder.status.localisation.split()[-2])
        if alignment is None:
            return [(np.inf, np.inf)], keyframes
        offs.append(alignment.errors(move @ newest[0].map_from_camera, true))
        later += len(step.result.frames)
        if later > _LATER:
            break
    return offs, keyframes


Outcome = tuple[list[tuple[float, float]], int]


def tries(
    flight: Flight, steps: Sequence[Step], saved: SavedMap, alignment: Alignment | None
) -> list[Outcome]:
    """Return what became of tries in a map; of another world if there is no alignment."""
    counts = np.cumsum([0, *(len(step.result.frames) for step in steps)])
    begins = np.arange(0, counts[-1] - _LATER, _EVERY)
    parts = np.searchsorted(counts, np.stack([begins, begins + _FRAMES], axis=1))
    return [
        attempt(flight, steps[start:end], saved, alignment)
        for start, end in np.unique(parts, axis=0)
    ]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of tries."""
    first = np.array([offs[0] for offs, _ in outcomes if offs]).reshape(-1, 2)
    later = np.array([off for offs, _ in outcomes for off in offs]).reshape(-1, 2)
    right, count = int(_is_right(first).sum()), len(outcomes)
    found = {
        "tries": count,
        "right": right / count,
        "wrong": (len(first) - right) / count,
        "not_localised": (count - len(first)) / count,
    }
    if not len(first) or not np.isfinite(first).all():
        return found
    return {
        **found,
        "first_m_median": float(np.median(first[:, 0])),
        "first_m_worst": float(first[:, 0].max()),
        "first_deg_median": float(np.median(first[:, 1])),
        "first_deg_worst": float(first[:, 1].max()),
        "keyframes_median": float(np.median([number for _, number in outcomes if number])),
        "results": len(later),
        "results_wrong": 1.0 - float(_is_right(later).mean()),
        "results_m_worst": float(later[:, 0].max()),
        "results_deg_worst": float(later[:, 1].max()),
    }


def _is_right(offs: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (offs[:, 0] <= _METRES) & (offs[:, 1] <= _DEGREES)


def figures(
    flight: Flight, maps: Sequence[SavedMap], others: Sequence[SavedMap] = ()
) -> dict[str, Any]:
    """Return the figures of tries of each half in the map of the other, or in other maps."""
    outcomes: list[Outcome] = []
    errors = []
    for index, steps in enumerate(reversed(flight.halves)):
        alignment = None if others else Alignment.of(maps[index], flight.truth)
        errors += [] if alignment is None else [alignment.error]
        outcomes += tries(flight, steps, (others or maps)[index], alignment)
    if others:
        return summary(outcomes)
    keyframes = [len(each.keyframes) for each in maps]
    return {"keyframes": keyframes, "map_error_m": errors, **summary(outcomes)}


def both_maps(flight: Flight) -> list[SavedMap]:
    """Return the maps of a flight's halves."""
    return [mapped(flight, half) for half in flight.halves]


def main() -> None:
    """Measure, print and write."""
    args = parser_of(__doc__, PARTS).parse_args()
    parts = args.only or PARTS
    loaded = load_network(Parameters(compute_dtype="float32"))
    Remembered()
    table = ResultTable(args.output, keeps_others=bool(args.only))

    if "rooms" in parts:
        rooms = [with_exact_depth(args.directory, seed, loaded.network) for seed in range(2)]
        maps = [both_maps(room) for room in rooms]
        for number in range(2):
            table.add(f"exact depth, room {30 + number}", figures(rooms[number], maps[number]))
            other = figures(rooms[number], maps[number], others=maps[1 - number])
            table.add(f"room {30 + number} in the map of room {31 - number}", other)
    for path in args.recordings if "recordings" in parts else ():
        frames, truth = read(path, None)
        flight = by_network(frames, truth, loaded)
        own = both_maps(flight)
        table.add(path.name, figures(flight, own))
        if args.truth is not None:
            other = replace(flight, truth=other_truth(args.truth, flight.frames, truth))
            table.add(f"{path.name}, other truth", figures(other, own))


if __name__ == "__main__":
    main()
