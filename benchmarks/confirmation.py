"""Trajectory, depth and verdicts with confirmation and refinement off and on.

Each recording goes through `Reconstructor` in this process. Positions are compared after Sim(3),
each map segment by itself, without loop closure; depth after one scale per segment.

    python benchmarks/confirmation.py RECORDING... -o benchmarks/results/confirmation.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import QvggtError
from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, FrameGeometry, Reconstruction, Reconstructor
from qvggt_core.stream.load_network import load_network
from qvggt_ros.io import camera_info, conversions, images
from qvggt_ros.io.images import decode_depth, is_depth
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.topics import choose_topics

_TOLERANCE_NS = 40_000_000


@dataclass
class Truth:
    """What a recording knows: poses and depth by stamp."""

    poses: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    depths: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def pose(self, stamp: int) -> NDArray[np.float64] | None:
        """Return the pose nearest in time, if it is near."""
        nearest = min(self.poses, key=lambda each: abs(each - stamp))
        return self.poses[nearest] if abs(nearest - stamp) <= _TOLERANCE_NS else None


def read(path: Path, limit: int | None) -> tuple[list[Frame], Truth]:
    """Read a recording's images and its truth."""
    frames, truth = [], Truth()
    with open_recording(path) as recording:
        topics = choose_topics(recording, None, None)
        info = recording.first(topics.camera_info) if topics.camera_info else None
        poses = [topic for topic in topics.reference if "ground" in topic]
        depths = [topic for topic in recording.types if "depth" in topic and "info" not in topic]
        for topic, msgtype, _, data in recording.messages([topics.image, *poses, *depths]):
            message = recording.deserialize(data, msgtype)
            stamp = conversions.stamp_ns(message)
            if topic in poses:
                truth.poses[stamp] = conversions.read_pose(message)
            elif topic in depths and is_depth(message):
                truth.depths[stamp] = decode_depth(message)
            elif topic == topics.image:
                frames.append(_frame(message, info, topics.rectified))
                if limit is not None and len(frames) == limit:
                    break
    return frames, truth


def _frame(message: Any, info: Any, rectified: bool) -> Frame:
    image = images.decode_image(message)
    camera = None
    if info is not None:
        camera = camera_info.camera_from_info(
            info, image.shape[1], image.shape[0], rectified=rectified
        )
    return Frame(conversions.stamp_ns(message), image, camera, message.header.frame_id)


def run(frames: list[Frame], network: Any, parameters: Parameters) -> list[Reconstruction]:
    """Return the reconstructions of a stream."""
    reconstructor = Reconstructor(network, parameters)
    results: list[Reconstruction] = []
    for frame in frames:
        results += reconstructor.add(frame)
    return results + list(reconstructor.flush())


def measure(results: list[Reconstruction], truth: Truth, received: int) -> dict[str, Any]:
    """Return the figures of a run."""
    segments: dict[int, list[FrameGeometry]] = defaultdict(list)
    for result in results:
        segments[result.segment] += result.frames
    squares, count, length, turns, depth = 0.0, 0, 0.0, [], []
    for frames in segments.values():
        pairs = [
            (frame, pose)
            for frame in frames
            if (pose := truth.pose(frame.view.stamp_ns)) is not None
        ]
        if len(pairs) < 4:
            continue
        estimate = np.stack([frame.map_from_camera for frame, _ in pairs])
        true = np.stack([pose for _, pose in pairs])
        try:
            scale, rotation, shift = align_sim3(estimate[:, :3, 3], true[:, :3, 3])
        except QvggtError:
            continue
        off = scale * estimate[:, :3, 3] @ rotation.T + shift - true[:, :3, 3]
        squares += float((off**2).sum())
        count += len(pairs)
        length += float(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum())
        turns += _turns_per_second([frame.view.stamp_ns for frame, _ in pairs], estimate, true)
        depth += _depth_errors([frame for frame, _ in pairs], truth)
    verdicts = Counter(r.confirmation.verdict.value for r in results if r.confirmation)
    ratios = [r.confirmation.ratio for r in results if r.confirmation]
    return {
        "ate_percent": 100 * (squares / max(count, 1)) ** 0.5 / max(length, 1e-9),
        "rotation_1s_deg": float(np.median(turns)) if turns else None,
        "segments": [len(frames) for frames in segments.values()],
        "largest_segment": max(map(len, segments.values()), default=0) / received,
        "abs_rel": float(np.nanmean([each[0] for each in depth])) if depth else None,
        "valid": float(np.mean([each[1] for each in depth])) if depth else None,
        "windows": sum(r.window_size > 0 for r in results),
        "verdicts": dict(verdicts),
        "ratio_percentiles": np.percentile(ratios or [0], [2, 10, 50, 90, 98]).round(3).tolist(),
        "lost": sum(frame.is_lost for frames in segments.values() for frame in frames),
        "events": [event for r in results for event in r.events],
    }


def _turns_per_second(
    stamps: list[int], estimate: NDArray[np.float64], true: NDArray[np.float64]
) -> list[float]:
    found = []
    times = np.array(stamps)
    for i, stamp in enumerate(stamps):
        j = int(np.searchsorted(times, stamp + 1_000_000_000 - _TOLERANCE_NS))
        if j < len(times) and times[j] - stamp <= 1_000_000_000 + _TOLERANCE_NS:
            one = estimate[i, :3, :3].T @ estimate[j, :3, :3]
            other = true[i, :3, :3].T @ true[j, :3, :3]
            found.append(float(np.degrees(rotation_angle(one.T @ other))))
    return found


def _depth_errors(frames: list[FrameGeometry], truth: Truth) -> list[tuple[float, float]]:
    """Return AbsRel where depth is valid, after one scale, and the valid share of true pixels."""
    pairs = []
    for frame in frames:
        true = _true_depth(frame, truth)
        if true is not None:
            known = np.isfinite(true) & (true > 0)
            pairs.append((frame.depth, true, known, known & np.isfinite(frame.depth)))
    ratios = [
        np.median(true[valid] / depth[valid]) for depth, true, _, valid in pairs if valid.any()
    ]
    scale = float(np.median(ratios)) if ratios else 1.0
    return [
        (
            float((np.abs(scale * depth[valid] - true[valid]) / true[valid]).mean())
            if valid.any()
            else np.nan,
            float(valid.sum() / max(known.sum(), 1)),
        )
        for depth, true, known, valid in pairs
    ]


def _true_depth(frame: FrameGeometry, truth: Truth) -> NDArray[np.float32] | None:
    nearest = min(truth.depths, key=lambda stamp: abs(stamp - frame.view.stamp_ns), default=None)
    if nearest is None or abs(nearest - frame.view.stamp_ns) > _TOLERANCE_NS:
        return None
    image = truth.depths[nearest]
    height, width = frame.depth.shape
    columns = (np.arange(width) + 0.5) * image.shape[1] / width - 0.5
    rows = (np.arange(height) + 0.5) * image.shape[0] / height - 0.5
    maps = [each.astype(np.float32) for each in np.meshgrid(columns, rows)]
    return cv2.remap(image, *maps, cv2.INTER_NEAREST, borderValue=float("nan"))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", choices=("off", "on"))
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint())
    args = parser.parse_args()
    modes = {"off": {"confirm": False, "refine": False}, "on": {}}
    loaded = load_network(Parameters(compute_dtype="float32", checkpoint=str(args.checkpoint)))
    table: dict[str, Any] = {}
    for path in args.recordings:
        frames, truth = read(path, args.limit)
        for mode, values in modes.items():
            if args.only not in (None, mode):
                continue
            results = run(frames, loaded.network, loaded.parameters.with_values(**values))
            figures = measure(results, truth, len(frames))
            table.setdefault(path.name, {})[mode] = figures
            print(path.name, mode, json.dumps(figures), flush=True)
    if args.output:
        write_results(args.output, {"results": table}, args.checkpoint, digits=4)


if __name__ == "__main__":
    main()
