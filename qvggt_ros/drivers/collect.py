"""What a live node published, made into a result like a replay's, to be evaluated and shown."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.results import schema
from qvggt_core.results.reconstruction import Results
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, View
from qvggt_ros.drivers.live_session import DIAGNOSTICS_NAME
from qvggt_ros.drivers.replay import RUN_FORMAT, versions, write_results
from qvggt_ros.evaluation import METRICS_FILE, RUN_FILE
from qvggt_ros.io import conversions
from qvggt_ros.io.recording import Recording, choose_topics, open_recording
from qvggt_ros.io.reference_messages import decode_depth, frames_of
from qvggt_ros.session import latency_percentiles

_LONGEST_LATENCY_S = 60.0
_NEEDED = ("pose", "depth/image", "depth/camera_info")


@dataclass
class _Parts:
    """The messages of one stamp."""

    pose: Any = None
    depth: Any = None
    info: Any = None
    confidence: Any = None


@dataclass
class _Heard:
    """What the recording of a live node holds."""

    frames: dict[int, _Parts] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)


def collect(
    live: Path, recording: Path | None, output: Path, *, namespace: str = "qvggt"
) -> list[Path]:
    """Make a result directory, as `qvggt replay` makes it, of what a live node published.

    Args:
        live: rosbag2 with the node's outputs: pose, depth/image, depth/camera_info, and if they
            are there confidence and /diagnostics.
        recording: what was played to it: the images, and the ground truth; None if `live`
            holds these too, as a robot records them. Then latencies are known per frame.
        output: directory to make; it holds a copy of `live` as `bag`.
        namespace: of the node.

    Returns:
        The files that were written.

    Raises:
        RecordingError: a recording cannot be read, holds no such outputs, or the output exists.
    """
    if output.exists():
        raise RecordingError(f"{output} exists: choose another, or remove it")
    played = recording is not None
    recording = recording or live
    with open_recording(live) as outputs, open_recording(recording) as original:
        heard = _listen(outputs, namespace)
        topics = choose_topics(original)
        results = Results(parameters := Parameters())
        worlds: list[str] = []
        for geometry, world in _geometries(heard, original, topics.image):
            if world not in worlds:
                worlds.append(world)
            results.add(Reconstruction(worlds.index(world), (geometry,)))
        if not results.tracks:
            raise RecordingError(
                f"none of the {len(heard.frames)} poses in {live} belongs to an image of "
                f"{topics.image} in {recording}: is it what was played?"
            )
        output.mkdir(parents=True)
        try:
            _copy(live, output / "bag")
            files = write_results(output, results, parameters)
            metrics = _metrics(heard, results, original, worlds, topics.image, topics.camera_info)
            latencies = {} if played else _latencies(heard)
            files += [output / METRICS_FILE, output / RUN_FILE]
            files[-2].write_text(metrics.to_json(), encoding="utf-8")
            facts = _run_facts(heard, recording, parameters, latencies)
            files[-1].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(output)
            raise
    return files


def _listen(outputs: Recording, namespace: str) -> _Heard:
    names = {f"/{namespace.strip('/')}/{topic}": topic for topic in (*_NEEDED, "confidence")}
    missing = [topic for topic, name in names.items() if name in _NEEDED]
    missing = [topic for topic in missing if topic not in outputs.types]
    if missing:
        found = ", ".join(outputs.types)
        raise RecordingError(f"{outputs.path} has no {', '.join(missing)}; its topics are: {found}")
    heard = _Heard()
    fields = {"pose": "pose", "depth/image": "depth", "depth/camera_info": "info"}
    for topic, msgtype, received_ns, data in outputs.messages([*names, "/diagnostics"]):
        message = outputs.deserialize(data, msgtype)
        if topic == "/diagnostics":
            for status in message.status:
                if status.name == DIAGNOSTICS_NAME:
                    heard.diagnostics = {entry.key: entry.value for entry in status.values}
            continue
        stamp = conversions.stamp_ns(message)
        parts = heard.frames.setdefault(stamp, _Parts())
        if names[topic] == "pose":
            heard.received[stamp] = received_ns
        setattr(parts, fields.get(names[topic], "confidence"), message)
    return heard


def _geometries(
    heard: _Heard, original: Recording, image_topic: str
) -> Iterator[tuple[FrameGeometry, str]]:
    """Yield the frames whose image is in the original recording, with their world's name."""
    for _, msgtype, _, data in original.messages([image_topic]):
        try:
            message = original.deserialize(data, msgtype)
            parts = heard.frames.get(conversions.stamp_ns(message))
            if parts is None or parts.pose is None or parts.depth is None or parts.info is None:
                continue
            depth = decode_depth(parts.depth)
            picture = conversions.decode_image(message)
            confidence = (
                np.ones_like(depth) if parts.confidence is None else decode_depth(parts.confidence)
            )
            pose = conversions.read_pose(parts.pose)
        except QvggtError:
            continue
        # The network's own picture is not published: this one is a pixel off where a lens bends.
        size = (depth.shape[1], depth.shape[0])
        image = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        view = View(conversions.stamp_ns(message), image, None, frames_of(parts.depth)[0])
        intrinsics = np.array(parts.info.k, dtype=np.float64).reshape(3, 3)
        geometry = FrameGeometry(view, pose, intrinsics, depth, confidence)
        yield geometry, frames_of(parts.pose)[0]


def _metrics(
    heard: _Heard,
    results: Results,
    original: Recording,
    worlds: list[str],
    image_topic: str,
    camera_info_topic: str | None,
) -> schema.Metrics:
    tracks = results.tracks
    published = sum(len(track) for track in tracks.values())
    played = original.count(image_topic)
    main = worlds[results.main_segment]
    unscaled = main.startswith(Parameters().unscaled_frame)
    told = heard.diagnostics
    steps = [step for track in tracks.values() for step in np.diff(track.seconds)]
    warnings = [] if told else ["no diagnostics were recorded: drops and windows are not known"]
    return schema.Metrics(
        recording=schema.RecordingFacts(
            name=original.path.name,
            image_topic=image_topic,
            camera_info_topic=camera_info_topic,
            reference_topics=[],
        ),
        result=schema.Result(
            received=_count(told, "received", published),
            decoded=_count(told, "decoded", published),
            rejected={},
            uncalibrated=_count(told, "uncalibrated", 0),
            windows=_count(told, "windows", 0),
            published=published,
            keyframes=_count(told, "keyframes", 0),
            gated=_count(told, "gated", 0),
            segments=len(tracks),
            metres_per_unit=None if unscaled else _number(told, "metres_per_unit"),
            scale_source=told.get("scale_source", "unknown"),
            unit="units" if unscaled else "m",
            segment_frames=[len(track) for track in tracks.values()],
            path_lengths=[track.length for track in tracks.values()],
            duration_s=sum(float(track.seconds[-1]) for track in tracks.values()),
            map_points=[len(results.cloud(segment)) for segment in tracks],
            interrupted=False,
        ),
        coverage=schema.Coverage(
            frames=published / max(played, 1),
            dropped=max(played - published, 0),
            depth=results.valid_depth / published,
            largest_gap_s=float(max(steps, default=0.0)),
            delay_images_median=None,
            delay_images_maximum=None,
        ),
        events=[f"worlds: {', '.join(worlds)}", f"dropped images: {told.get('dropped', '?')}"],
        warnings=warnings,
        model={"file": told["model"]} if "model" in told else {},
    )


def _latencies(heard: _Heard) -> dict[int, float]:
    """Return the seconds from each image's stamp to the recorder's receipt of its pose."""
    found = {stamp: (ns - stamp) * 1e-9 for stamp, ns in sorted(heard.received.items())}
    # Other signs and sizes are not latencies but the difference of two clocks.
    known = all(0.0 <= latency <= _LONGEST_LATENCY_S for latency in found.values())
    return found if known else {}


def _run_facts(
    heard: _Heard, recording: Path, parameters: Parameters, latencies: dict[int, float]
) -> dict[str, Any]:
    told = {
        name.removeprefix("latency_s."): float(value)
        for name, value in heard.diagnostics.items()
        if name.startswith("latency_s.")
    }
    return {
        "format": RUN_FORMAT,
        "recording": str(recording.resolve()),
        "latency_is": (
            "Latency is the time from an image's stamp to the recorder's receipt of its pose."
            if latencies
            else "Latency is what the node said of itself when the recording ended."
        ),
        "timings": {"latency_s": latency_percentiles(deque(latencies.values())) or told},
        "series": {
            "latency_s": list(enumerate(latencies.values(), start=1)),
            "memory_mb": [],
        },
        "parameters": parameters.model_dump(),
        "versions": versions(),
        "live": heard.diagnostics,
    }


def _count(told: dict[str, str], name: str, otherwise: int) -> int:
    number = _number(told, name)
    return otherwise if number is None else int(number)


def _number(told: dict[str, str], name: str) -> float | None:
    try:
        return float(told[name])
    except (KeyError, ValueError):
        return None


def _copy(live: Path, target: Path) -> None:
    if live.is_dir():
        shutil.copytree(live, target)
    else:
        target.mkdir()
        shutil.copy2(live, target / live.name)
