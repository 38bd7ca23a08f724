"""What loop closure does to the error of trajectories, what it takes for a loop, and its time.

    python benchmarks/loop_closure.py DIRECTORY RECORDING... -o benchmarks/results/loop_closure.json

DIRECTORY keeps renderings. Positions are compared after Sim(3): `off` as odometry has them, `live`
as they go out, `final` as the last correction has them, each world by itself. `again` is the median
error of the position of one frame from another that sees the same place five seconds later or more.
`perfect` is what the same loops would give if each were as the truth has it, on flights of one
segment: no better ones could bring the error lower. With --truth, a recording is also held against
another reference: a trajectory in TUM's format, in any unit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from confirmation import Truth, read
from loop_flights import CAMERA, PERIOD_NS, Rendered, joined, rendered
from numpy.typing import NDArray
from other_truth import other_truth
from result_table import ResultTable, parser_of

from qvggt_core.evaluate.trajectory import absolute_errors
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, rotation_angle, transform
from qvggt_core.geometry.similarities import inverse_similarity, moved_by, rigid
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, FrameGeometry, Preprocessor, Reconstruction, Reconstructor
from qvggt_core.stream.corrected_path import KeyframeCorrections, bridged, corrections_at
from qvggt_core.stream.correction_in_parts import CorrectionInParts
from qvggt_core.stream.image_features import features_of, matched
from qvggt_core.stream.keyframe_chain import Chains, Loop, correct
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.place_index import PlaceIndex, place_descriptor

# Of exact odometry: what a frame adds per axis, radians, share of the step, log of the scale.
_TURN, _SHIFT, _SCALE = 0.004, 0.04, 0.002
_AGAIN_S, _AGAIN_M, _AGAIN_RAD = 5.0, 0.5, 0.5
_KEYFRAMES, _FEWEST = 2000, 10
PARTS = ("time", "flights", "look-alike", "recordings")


class Looked(LoopClosure):
    """Loop closure that keeps what it was given and what became of it."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.before: list[Reconstruction] = []
        self.after: list[Reconstruction] = []

    def correct(self, result: Reconstruction, tokens: Any) -> Reconstruction:
        """Correct as ever."""
        self.before.append(result)
        self.after.append(super().correct(result, tokens))
        return self.after[-1]


def drifting(poses: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return poses (N, 4, 4) from the first camera as odometry with a drifting unit has them."""
    found, unit = [FLU_FROM_OPTICAL], 1.0
    for before, now in pairwise(poses):
        step = inverse(before) @ now
        length = np.linalg.norm(step[:3, 3])
        step[:3, 3] *= unit
        noise = rng.standard_normal(7) * np.repeat([_TURN, _SHIFT * length, 0.0], [3, 3, 1])
        found.append(rigid(found[-1] @ step @ moved_by(noise)))
        unit *= np.exp(_SCALE * rng.standard_normal())
    return np.stack(found)


def by_oracle(
    flight: Rendered, odometry: NDArray[np.float64], tokens: list[Any], width: int, patch: int
) -> Looked:
    """Return what becomes of a flight with exact depth and odometry that drifts."""
    loops, preprocessor = Looked(), Preprocessor(width, patch)
    variance = np.repeat([(_SHIFT * 0.12) ** 2, _TURN**2], 3)
    for index, image in enumerate(flight.images):
        frame = Frame(index * PERIOD_NS, image, CAMERA, "camera")
        view = preprocessor.view(frame)
        assert view.intrinsics is not None
        size = view.image.shape[1::-1]
        depth = cv2.resize(flight.depth[index].astype(np.float32), size, 0, 0, 0, cv2.INTER_NEAREST)
        geometry = FrameGeometry(
            odometry[index],
            depth,
            np.full_like(depth, 2.0),
            motion_covariance=np.diag(variance),
            view=view,
            intrinsics=view.intrinsics,
        )
        loops.remember(frame, preprocessor)
        loops.correct(Reconstruction(0, (geometry,)), lambda _, at=index: tokens[at])
    if loops.settle(is_last=True):
        loops.correct(Reconstruction(0, ()), lambda _: None)
    return loops


def run_network(frames: list[Frame], loaded: Any, loops: LoopClosure) -> None:
    """Give what the network makes of images, points followed, to a loop closure."""
    parameters = loaded.parameters.with_values(loop_closure=True)
    reconstructor = Reconstructor(loaded.network, parameters, loops=loops)
    for frame in frames:
        reconstructor.add(frame)
    reconstructor.flush()


def by_network(frames: list[Frame], loaded: Any) -> Looked:
    """Return what becomes of images by the network."""
    loops = Looked()
    run_network(frames, loaded, loops)
    return loops


def errors(loops: Looked, truth: Truth) -> dict[str, Any]:
    """Return the errors with and without loops."""
    corrections = [each.corrections for each in loops.after if each.corrections is not None]
    before = [(g, r.segment) for r in loops.before for g in r.frames]
    live = [(g.map_from_camera, r.segment) for r in loops.after for g in r.frames]
    kept = [i for i, (g, _) in enumerate(before) if truth.pose(g.view.stamp_ns) is not None]
    stamps = np.array([before[i][0].view.stamp_ns for i in kept])
    segments = np.array([before[i][1] for i in kept])
    lost = np.array([before[i][0].is_lost for i in kept])
    true = np.stack([truth.pose(stamp) for stamp in stamps])
    off = np.stack([before[i][0].map_from_camera for i in kept])
    worlds, moves = corrections_at(stamps, segments, corrections[-1] if corrections else None)
    paths = {
        "off": (off, segments),
        "live": (np.stack([live[i][0] for i in kept]), np.array([live[i][1] for i in kept])),
        "final": (bridged(stamps, worlds, rigid(moves @ off), lost), worlds),
    }
    if segments.max() == 0 and corrections:
        scale = absolute_errors(off, true, "sim3").scale
        perfect = with_perfect_loops(loops.finder, truth, scale, corrections[-1])
        paths["perfect"] = (rigid(corrections_at(stamps, segments, perfect)[1] @ off), worlds)
    status = loops.after[-1].loops
    assert status is not None
    return {
        "ate_m": {name: _ate(*path, true) for name, path in paths.items()},
        "again_m": {name: _again(*path, true, stamps) for name, path in paths.items()},
        "length_m": float(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum()),
        "segments": {name: len(set(path[1].tolist())) for name, path in paths.items()},
        "keyframes": status.keyframes,
        "accepted": status.accepted,
        "rejected": dict(status.rejected),
    }


def with_perfect_loops(
    finder: Any, truth: Truth, scale: float, found: KeyframeCorrections
) -> KeyframeCorrections:
    """Return what loops do to keyframes if each is as the truth has it.

    Args:
        finder: has the loops.
        truth: of its keyframes.
        scale: metres per unit of odometry.
        found: what the loops do as they are.
    """
    loops = []
    for loop in finder.loops:
        ends = (finder.store.keyframes[each].stamp_ns for each in (loop.first, loop.second))
        first, second = (truth.pose(stamp) for stamp in ends)
        if first is not None and second is not None:
            relation = inverse(first) @ second
            relation[:3, 3] /= scale
            loops.append(replace(loop, first_from_second=relation))
    solved = correct(finder.chains, loops)
    return replace(found, map_from_odometry=solved.poses @ inverse_similarity(finder.chains.poses))


def _ate(path: NDArray[np.float64], worlds: NDArray[np.int64], true: NDArray[np.float64]) -> float:
    """Return the error over all poses, each world aligned by itself."""
    off = np.zeros(len(path))
    for world in np.unique(worlds):
        own = worlds == world
        if own.sum() >= _FEWEST:
            off[own] = absolute_errors(path[own], true[own], "sim3").translation
    return float(np.sqrt((off**2).mean()))


def _again(
    path: NDArray[np.float64],
    worlds: NDArray[np.int64],
    true: NDArray[np.float64],
    stamps: NDArray[np.int64],
) -> float | None:
    """Return the median error between frames of a world that see the same place again."""
    found: list[float] = []
    for index in range(len(true)):
        own = worlds == worlds[index]
        later = np.flatnonzero(own & (stamps - stamps[index] > _AGAIN_S * 1e9))
        if own.sum() < _FEWEST or len(later) == 0:
            continue
        scale = absolute_errors(path[own], true[own], "sim3").scale
        between = inverse(true[index]) @ true[later]
        near = np.linalg.norm(between[:, :3, 3], axis=1) < _AGAIN_M
        near &= rotation_angle(between[:, :3, :3]) < _AGAIN_RAD
        estimate = (inverse(path[index]) @ path[later])[near, :3, 3]
        found += np.linalg.norm(scale * estimate - between[near, :3, 3], axis=1).tolist()
    return float(np.median(found)) if found else None


def tokens_of(flight: Rendered, network: Any) -> list[Any]:
    """Return what the encoder makes of a flight's images."""
    preprocessor = Preprocessor(network.image_width, network.patch_size)
    views = [preprocessor.view(Frame(0, image, CAMERA, "camera")) for image in flight.images]
    return [np.asarray(network.encode(view.image)) for view in views]


def recall(flight: Rendered, tokens: list[Any]) -> dict[str, float]:
    """Return how well tokens show the same place: area under the curve, and one in four is it."""
    index, shares, scores, same = PlaceIndex(), [], [], []
    for token, image in zip(tokens, flight.images, strict=True):
        index.append(place_descriptor(token, image))
    for number in range(20, len(tokens)):
        allowed = np.arange(len(tokens)) <= number - 20
        between = inverse(flight.poses[number]) @ flight.poses[allowed]
        distance = np.linalg.norm(between[:, :3, 3], axis=1)
        angle = np.degrees(rotation_angle(between[:, :3, :3]))
        near, far = (distance < 0.7) & (angle < 20), (distance > 2) | (angle > 60)
        similar = index.similarity(index.row(number))[allowed]
        scores += [*similar[near], *similar[far]]
        same += [1] * int(near.sum()) + [0] * int(far.sum())
        if near.any():
            best = index.nearest(index.row(number), allowed, 4)
            shares.append(bool(near[best].any()))
    order, positive = np.argsort(np.argsort(scores)), np.array(same, bool)
    count = positive.sum()
    area = (order[positive].sum() - count * (count - 1) / 2) / (count * (~positive).sum())
    return {"area": float(area), "one_of_four": float(np.mean(shares)), "places": len(shares)}


def part(flight: Rendered, start: int) -> Rendered:
    """Return fifty frames of a flight."""
    chosen = slice(start, start + 50)
    return Rendered(flight.poses[chosen], flight.images[chosen], flight.depth[chosen])


def look_alike(directory: Path, network: Any, seed: int) -> dict[str, Any]:
    """Return what is accepted on a flight from a room into another one that is its copy."""
    whole, start = rendered(directory, "room", 30 + seed % 2, seed % 2, 220), 5 * (seed // 4)
    first = part(whole, start)
    between_rooms = rendered(directory, "corridor", 20, 0, 15)
    # Half of the flights see the copy just as the room, the others as on the room's next lap.
    later = whole.poses[start + 60 : 170, :3, 3]
    lap = 60 + int(np.linalg.norm(later - first.poses[0, :3, 3], axis=1).argmin())
    second = first if seed % 4 < 2 else part(whole, start + lap)
    copy = transform(np.eye(3), np.array([7.0 + seed % 5, 0.0, 0.0])) @ second.poses
    way = np.tile(first.poses[-1], (15, 1, 1))
    share = np.linspace(0, 1, 15)[:, None]
    way[:, :3, 3] += share * (copy[0, :3, 3] - first.poses[-1, :3, 3])
    flight = joined(first, Rendered(way, between_rooms.images, between_rooms.depth), second)
    flight = Rendered(np.concatenate([first.poses, way, copy]), flight.images, flight.depth)
    odometry = drifting(flight.poses, np.random.default_rng([4, seed]))
    tokens = tokens_of(flight, network)
    loops = by_oracle(flight, odometry, tokens, network.image_width, network.patch_size)
    stamps = [keyframe.stamp_ns // PERIOD_NS for keyframe in loops.finder.store.keyframes]
    pairs = [(stamps[loop.first], stamps[loop.second]) for loop in loops.finder.loops]
    status = loops.after[-1].loops
    assert status is not None
    return {
        "false": sum(one < 50 and other >= 65 for one, other in pairs),
        "true": sum(not (one < 50 and other >= 65) for one, other in pairs),
        "verified_but_for_the_way": status.rejected.get("the way between contradicts it", 0),
    }


def timing() -> dict[str, float]:
    """Return seconds a keyframe at 2,000 keyframes: search and graph, and the rest beside."""
    rng = np.random.default_rng(0)
    index, descriptors = PlaceIndex(), rng.normal(size=(_KEYFRAMES, 256)).astype(np.float32)
    for each in descriptors:
        index.append(each)
    allowed = np.arange(_KEYFRAMES) < _KEYFRAMES - 12
    search = _median(lambda: index.nearest(descriptors[-1], allowed, 4))
    chains, step = Chains(), np.diag(np.repeat([1e-5, 1e-4, 1.6e-5], [3, 3, 1]))
    angle = np.linspace(0, 20 * np.pi, _KEYFRAMES)
    motions = np.stack([0 * angle, 0 * angle, angle, 5 * np.sin(angle), 5 * np.cos(angle)], axis=1)
    poses = rigid(moved_by(np.pad(motions, ((0, 0), (0, 2)))))
    for pose in poses:
        chains.append(pose @ rigid(moved_by(rng.multivariate_normal(np.zeros(7), step))), step, 0)
    loops = [
        Loop(end - 200, end, inverse_similarity(poses[end - 200]) @ poses[end], 10 * step)
        for end in range(210, _KEYFRAMES, 15)
    ]
    parts = _parts(CorrectionInParts(chains, loops, np.inf))
    image = rng.integers(0, 255, (480, 640), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2.0)
    corners = features_of(image, 800)
    return {
        "loops": len(loops),
        "search_s": search,
        "graph_s": sum(parts),
        "keyframes_of_a_graph": len(parts),
        "search_and_graph_s": search + float(np.median(parts)),
        "search_and_graph_s_worst": search + max(parts),
        "corners_s": _median(lambda: features_of(image, 800), 5),
        "match_s": _median(lambda: matched(corners, corners), 5),
    }


def _parts(correction: CorrectionInParts) -> list[float]:
    """Return the processor's seconds for each keyframe's part of a graph."""
    seconds, is_done = [], False
    while not is_done:
        start = time.thread_time()
        is_done = correction.advance() is not None
        seconds.append(time.thread_time() - start)
    return seconds


def _median(work: Any, times: int = 15) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def flights(directory: Path, loaded: Any) -> Iterable[tuple[str, Any]]:
    """Yield the figures of flights that come back, by exact geometry and by the network."""
    network = loaded.network
    for seed in range(4):
        flight = rendered(directory, "room", 30 + seed, seed, 220)
        tokens = tokens_of(flight, network)
        yield f"recall, room {30 + seed}", recall(flight, tokens)
        stamps = [index * PERIOD_NS for index in range(len(flight.poses))]
        truth = Truth(dict(zip(stamps, flight.poses, strict=True)))
        odometry = drifting(flight.poses, np.random.default_rng([5, seed]))
        loops = by_oracle(flight, odometry, tokens, network.image_width, network.patch_size)
        yield f"exact depth, room {30 + seed}", errors(loops, truth)
        frames = [
            Frame(stamp, image, CAMERA, "camera")
            for stamp, image in zip(stamps, flight.images, strict=True)
        ]
        yield f"network, room {30 + seed}", errors(by_network(frames, loaded), truth)


def main() -> None:
    """Measure, print and write."""
    args = parser_of(__doc__, PARTS).parse_args()
    parts = args.only or PARTS
    loaded = load_network(Parameters(compute_dtype="float32"))
    table = ResultTable(args.output, keeps_others=bool(args.only))

    if "time" in parts:
        table.add("time", timing())
    for name, figures in flights(args.directory, loaded) if "flights" in parts else ():
        table.add(name, figures)
    if "look-alike" in parts:
        alike = [look_alike(args.directory, loaded.network, seed) for seed in range(20)]
        table.add("look-alike rooms", alike)
    for path in args.recordings if "recordings" in parts else ():
        frames, truth = read(path, None)
        looked = by_network(frames, loaded)
        table.add(path.name, errors(looked, truth))
        if args.truth is not None:
            other = other_truth(args.truth, [frame.stamp_ns for frame in frames], truth)
            table.add(f"{path.name}, other truth", errors(looked, other))


if __name__ == "__main__":
    main()
