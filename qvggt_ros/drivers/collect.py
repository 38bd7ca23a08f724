"""What a live node published, made into a result like a replay's, to be evaluated and shown."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.results import layout, schema
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.results.facts import metrics_of, percentiles, versions
from qvggt_core.results.result import Result, write_reconstruction
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, View
from qvggt_core.util.directories import new_output
from qvggt_ros.drivers.live_session import diagnostics_name
from qvggt_ros.io.conversions import frames_of, read_pose, stamp_ns
from qvggt_ros.io.images import decode_depth, decode_image
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.topics import Topics, choose_topics

_LONGEST_LATENCY_S = 60.0
_STORAGE = re.compile(r"\.(mcap|db3)(\.zstd|-wal|-shm)?$")
_NEEDED = ("pose", "depth/image", "depth/camera_info")


@dataclass
class _Parts:
    """The messages of one stamp."""

    pose: Any = None
    depth: Any = None
    info: Any = None
    confidence: Any = None


@dataclass
class _Recorded:
    """What the recording of a live node holds: messages and receive times by stamp."""

    frames: dict[int, _Parts] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)

    @property
    def latencies(self) -> dict[int, float]:
        """Seconds from each image's stamp to the recorder's receipt of its pose."""
        found = {stamp: (ns - stamp) * 1e-9 for stamp, ns in sorted(self.received.items())}
        # Other signs and sizes are not latencies but the difference of two clocks.
        known = all(0.0 <= latency <= _LONGEST_LATENCY_S for latency in found.values())
        return found if known else {}

    def count(self, name: str, otherwise: int) -> int:
        """Return a number of the newest diagnostics."""
        number = self.number(name)
        return otherwise if number is None else int(number)

    def number(self, name: str) -> float | None:
        """Return a number of the newest diagnostics, or None if it is not there."""
        try:
            return float(self.diagnostics[name])
        except (KeyError, ValueError):
            return None


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
        RecordingError: a recording cannot be read, or holds no such outputs.
        OutputError: the output exists or cannot be written.
    """
    source = recording or live
    with (
        open_recording(live) as outputs,
        open_recording(source) as original,
        new_output(output, layout.RESULT, inputs=[live, source], keep_unfinished=False) as partial,
    ):
        recorded = _read(outputs, namespace)
        topics = choose_topics(original)
        built = ResultBuilder(parameters := Parameters())
        worlds: list[str] = []
        for geometry, world in _geometries(recorded, original, topics.image):
            if world not in worlds:
                worlds.append(world)
            built.add(Reconstruction(worlds.index(world), (geometry,)))
        if not built.tracks:
            raise RecordingError(
                f"none of the {len(recorded.frames)} poses in {live} belongs to an image of "
                f"{topics.image} in {source}: is it what was played?"
            )
        metrics = _metrics(recorded, built, original, topics, worlds)
        latencies = recorded.latencies if recording is None else {}
        result = Result.of(built, metrics, _run_facts(recorded, source, parameters, latencies))
        _copy(live, partial / layout.BAG)
        files = [partial / layout.BAG, *write_reconstruction(partial, built, parameters)]
        files += result.write_facts(partial)
    return [output / file.relative_to(partial) for file in files]


def _read(outputs: Recording, namespace: str) -> _Recorded:
    names = {f"/{namespace.strip('/')}/{topic}": topic for topic in (*_NEEDED, "confidence")}
    missing = [topic for topic, name in names.items() if name in _NEEDED]
    missing = [topic for topic in missing if topic not in outputs.types]
    if missing:
        found = ", ".join(outputs.types)
        raise RecordingError(f"{outputs.path} has no {', '.join(missing)}; its topics are: {found}")
    recorded = _Recorded()
    fields = {"pose": "pose", "depth/image": "depth", "depth/camera_info": "info"}
    for topic, msgtype, received_ns, data in outputs.messages([*names, "/diagnostics"]):
        message = outputs.deserialize(data, msgtype)
        if topic == "/diagnostics":
            for status in message.status:
                if status.name == diagnostics_name(f"{namespace}/reconstruct"):
                    recorded.diagnostics = {entry.key: entry.value for entry in status.values}
            continue
        stamp = stamp_ns(message)
        parts = recorded.frames.setdefault(stamp, _Parts())
        if names[topic] == "pose":
            recorded.received[stamp] = received_ns
        setattr(parts, fields.get(names[topic], "confidence"), message)
    return recorded


def _geometries(
    recorded: _Recorded, original: Recording, image_topic: str
) -> Iterator[tuple[FrameGeometry, str]]:
    """Yield the frames whose image is in the original recording, with their world's name."""
    for _, msgtype, _, data in original.messages([image_topic]):
        try:
            message = original.deserialize(data, msgtype)
            parts = recorded.frames.get(stamp_ns(message))
            if parts is None or parts.pose is None or parts.depth is None or parts.info is None:
                continue
            depth = decode_depth(parts.depth)
            picture = decode_image(message)
            confidence = (
                np.ones_like(depth) if parts.confidence is None else decode_depth(parts.confidence)
            )
            pose = read_pose(parts.pose)
        except QvggtError:
            continue
        # The network's own picture is not published: this one is a pixel off where a lens bends.
        size = (depth.shape[1], depth.shape[0])
        image = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        view = View(stamp_ns(message), image, None, frames_of(parts.depth)[0])
        intrinsics = np.array(parts.info.k, dtype=np.float64).reshape(3, 3)
        geometry = FrameGeometry(pose, depth, confidence, view=view, intrinsics=intrinsics)
        yield geometry, frames_of(parts.pose)[0]


def _metrics(
    recorded: _Recorded,
    built: ResultBuilder,
    original: Recording,
    topics: Topics,
    worlds: list[str],
) -> schema.Metrics:
    published = sum(len(track) for track in built.tracks.values())
    unscaled = worlds[built.main_segment].startswith(Parameters().unscaled_frame)
    values = recorded.diagnostics
    return metrics_of(
        built,
        schema.RecordingFacts(
            name=original.path.name,
            image_topic=topics.image,
            camera_info_topic=topics.camera_info,
            reference_topics=[],
        ),
        {
            "received": recorded.count("received", published),
            "decoded": recorded.count("decoded", published),
            "rejected": {},
            "uncalibrated": recorded.count("uncalibrated", 0),
            "windows": recorded.count("windows", 0),
            "published": published,
            "keyframes": recorded.count("keyframes", 0),
            "gated": recorded.count("gated", 0),
            "segments": len(built.tracks),
            "metres_per_unit": None if unscaled else recorded.number("metres_per_unit"),
            "scale_source": values.get("scale_source", "unknown"),
            "unit": "units" if unscaled else "m",
            "interrupted": False,
        },
        images=original.count(topics.image),
        events=[f"worlds: {', '.join(worlds)}", f"dropped images: {values.get('dropped', '?')}"],
        warnings=(
            [] if values else ["no diagnostics were recorded: drops and windows are not known"]
        ),
        model={"file": values["model"]} if "model" in values else {},
    )


def _run_facts(
    recorded: _Recorded, recording: Path, parameters: Parameters, latencies: dict[int, float]
) -> dict[str, Any]:
    prefix = "latency_s."
    reported = {
        name.removeprefix(prefix): float(value)
        for name, value in recorded.diagnostics.items()
        if name.startswith(prefix)
    }
    return {
        "format": layout.RUN_FORMAT,
        "recording": str(recording.resolve()),
        "latency_is": (
            "Latency is the time from an image's stamp to the recorder's receipt of its pose."
            if latencies
            else "Latency is as the node's diagnostics had it when the recording ended."
        ),
        "timings": {"latency_s": percentiles(list(latencies.values())) or reported},
        "series": {
            "latency_s": list(enumerate(latencies.values(), start=1)),
            "memory_mb": [],
        },
        "parameters": parameters.model_dump(),
        "versions": versions(),
        "live": recorded.diagnostics,
    }


def _copy(live: Path, target: Path) -> None:
    """Copy the files of a recording, and nothing else that lies beside them."""
    target.mkdir()
    files = [live] if live.is_file() else live.iterdir()
    for file in files:
        if file.is_file() and (file.name == "metadata.yaml" or _STORAGE.search(file.name)):
            shutil.copy2(file, target / file.name)
