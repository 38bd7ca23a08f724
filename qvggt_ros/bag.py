"""A recording in, its reconstruction out: the node's server, run synchronously and repeatably."""

from __future__ import annotations

import json
import logging
import platform
import resource
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from qvggt_core.cloud import write_ply
from qvggt_core.errors import ParameterError, QvggtError, RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.network import Network
from qvggt_core.stream.reconstructor import Reconstructor
from qvggt_ros import conversions
from qvggt_ros.messages import TYPES, Messages, rosbags_messages, rosbags_typestore
from qvggt_ros.recording import OWN_NAMESPACE, Recording, Topics, choose_topics, open_recording
from qvggt_ros.report import Report, write_report
from qvggt_ros.results import Comparison, Results, Track, compare, segment_file, write_tum
from qvggt_ros.server import OUTPUTS, ReconstructionServer, latency_percentiles

logger = logging.getLogger(__name__)

METRICS_FORMAT = 1

_OUTPUT_NAMES = (
    "bag",
    "pictures",
    "trajectory",
    "points",
    "effective_params.yaml",
    "metrics.json",
    "report.html",
)
_STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_VERSIONS_OF = ("qvggt_ros", "numpy", "torch", "opencv-python-headless", "rosbags")

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of images in all."""


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay did and where it is.

    Attributes:
        output: the directory.
        files: what was written, the recording first.
        metrics: the content of metrics.json.
        warnings: what an operator should know.
        interrupted: whether it was stopped before the end.
    """

    output: Path
    files: tuple[Path, ...]
    metrics: dict[str, Any]
    warnings: tuple[str, ...]
    interrupted: bool


def replay(
    bag: Path,
    output: Path,
    network: Network,
    parameters: Parameters,
    *,
    image_topic: str | None = None,
    camera_info_topic: str | None = None,
    storage: str = "mcap",
    limit: int | None = None,
    overwrite: bool = False,
    report: bool = True,
    model: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> ReplaySummary:
    """Reconstruct a recording.

    The output directory appears when everything is in it. If something fails on the way, what was
    done until then stays beside it, in `OUTPUT.partial`. The same recording, network and
    parameters give the same messages, byte for byte.

    Args:
        bag: rosbag2 directory, or a bare .mcap or .db3 file.
        output: directory to make, for the recording `bag`, trajectory.tum, points.ply,
            effective_params.yaml, metrics.json, pictures and report.html.
        network: what predicts the geometry of windows.
        parameters: how to reconstruct.
        image_topic: Image or CompressedImage topic; found by type if not given.
        camera_info_topic: its CameraInfo; found by name if not given.
        storage: "mcap" or "sqlite3".
        limit: number of images after which to end.
        overwrite: replace an output of a former replay.
        report: draw pictures and write report.html.
        model: facts about the network for the report.
        progress: called after each image.
        stop: asked before each image; true ends the replay as the end of the recording would.

    Raises:
        RecordingError: the recording cannot be used, or the output is in the way.
        ParameterError: the storage or the limit is refused.
    """
    if storage not in _STORAGES:
        raise ParameterError(f"storage {storage!r} is unknown: choose {' or '.join(_STORAGES)}")
    if limit is not None and limit < 1:
        raise ParameterError(f"a limit of {limit} images leaves nothing to reconstruct")
    _check_output(bag, output, overwrite)
    started = time.perf_counter()
    with open_recording(bag) as recording:
        topics = choose_topics(recording, image_topic, camera_info_topic)
        partial = _partial(output)
        run = _Run(recording, topics, network, parameters, partial / "bag", storage)
        interrupted = run.through(limit, progress, stop)
        if run.server.counters.published == 0:
            shutil.rmtree(partial)
            raise RecordingError(_nothing_came_of_it(run))
        reconstructed = time.perf_counter()
        facts = _facts(run, model or {})
    metrics = facts | {
        "timings": _timings(run, reconstructed - started),
        "versions": _versions(),
    }
    files = _write_results(partial, run, metrics)
    if report:
        files += _write_report(partial, run, metrics)
    metrics["timings"]["total_s"] = time.perf_counter() - started
    files.append(partial / "metrics.json")
    files[-1].write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _put_in_place(partial, output)
    return ReplaySummary(
        output=output,
        files=tuple(output / file.relative_to(partial) for file in files),
        metrics=metrics,
        warnings=tuple(metrics["warnings"]),
        interrupted=interrupted,
    )


class _BagWriter:
    """Writes outputs, and the reference poses of the input between them, in order of stamps."""

    def __init__(self, path: Path, storage: str, recording: Recording, topics: Topics) -> None:
        self._writer = Writer(path, version=9, storage_plugin=_STORAGES[storage])
        self._writer.open()
        self._typestore = rosbags_typestore()
        self._connections: dict[str, Connection] = {
            topic: self._writer.add_connection(
                "/tf" if topic == "tf" else OWN_NAMESPACE + topic,
                TYPES[name],
                typestore=self._typestore,
            )
            for topic, name in OUTPUTS.items()
        }
        self._references: dict[str, Connection] = {
            topic: self._writer.add_connection(
                topic, recording.types[topic], typestore=recording.reader.typestore
            )
            for topic in topics.reference
        }
        self._pending: list[tuple[int, str, bytes]] = []

    def emit(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Write an output; it is a server's `Emit`."""
        self._write_references_until(stamp_ns)
        connection = self._connections[topic]
        data = self._typestore.serialize_cdr(message, connection.msgtype)
        self._writer.write(connection, max(stamp_ns, 0), data)

    def copy(self, topic: str, data: bytes, stamp_ns: int) -> None:
        """Keep a reference pose until its time has come."""
        self._pending.append((stamp_ns, topic, data))

    def close(self) -> None:
        """Write what is kept, and end the recording."""
        self._write_references_until(None)
        self._writer.close()

    def _write_references_until(self, stamp_ns: int | None) -> None:
        self._pending.sort(key=lambda entry: entry[:2])
        due = len(self._pending)
        if stamp_ns is not None:
            due = bisect_right(self._pending, stamp_ns, key=lambda entry: entry[0])
        for stamp, topic, data in self._pending[:due]:
            self._writer.write(self._references[topic], max(stamp, 0), data)
        del self._pending[:due]


class _Run:
    """One pass through a recording."""

    def __init__(
        self,
        recording: Recording,
        topics: Topics,
        network: Network,
        parameters: Parameters,
        bag: Path,
        storage: str,
    ) -> None:
        self.recording = recording
        self.topics = topics
        self.parameters = parameters
        self.messages: Messages = rosbags_messages()
        self.results = Results(parameters)
        self.references: dict[str, Track] = {topic: Track() for topic in topics.reference}
        self.events: list[str] = []
        reconstructor = Reconstructor(network, parameters)
        self._writer = _BagWriter(bag, storage, recording, topics)
        self.server = ReconstructionServer(
            reconstructor,
            parameters,
            self.messages,
            self._writer.emit,
            rectified=topics.rectified,
            transform_mode="world_to_camera",
        )

    def through(self, limit: int | None, progress: Progress, stop: Callable[[], bool]) -> bool:
        """Run; return whether it was stopped. The written recording is whole in any case."""
        try:
            return self._through(limit, progress, stop)
        finally:
            self._writer.close()

    def _through(self, limit: int | None, progress: Progress, stop: Callable[[], bool]) -> bool:
        topics = self.topics
        total = min(limit or sys.maxsize, self.recording.count(topics.image))
        used = [topics.image, *topics.reference]
        if topics.camera_info is not None:
            used.append(topics.camera_info)
            # The first image may come before the calibration that belongs to it.
            if (info := self.recording.first(topics.camera_info)) is not None:
                self.server.on_camera_info(info)
        done, interrupted = 0, False
        for topic, msgtype, received_ns, data in self.recording.messages(used):
            if interrupted := stop():
                self.events.append(f"stopped on request after {done} of {total} images")
                break
            self._take(topic, msgtype, received_ns, data)
            if topic == topics.image:
                done += 1
                progress(done, total)
            if done == limit:
                break
        self._gather(self.server.finish())
        return interrupted

    def _take(self, topic: str, msgtype: str, received_ns: int, data: bytes) -> None:
        try:
            message = self.recording.deserialize(data, msgtype)
            if topic == self.topics.image:
                self._gather(self.server.on_image(message))
            elif topic == self.topics.camera_info:
                self.server.on_camera_info(message)
            else:
                stamp = conversions.stamp_ns(message) or received_ns
                self.references[topic].add(stamp, conversions.read_pose(message))
                self._writer.copy(topic, data, stamp)
        except QvggtError as error:
            self.server.reject(f"{topic}: {error}", is_image=topic == self.topics.image)

    def _gather(self, reconstructions: tuple[Any, ...]) -> None:
        for reconstruction in reconstructions:
            self.results.add(reconstruction)


def _nothing_came_of_it(run: _Run) -> str:
    counters = run.server.counters
    reasons = "; ".join(
        f"{reason} ({count} times)" for reason, count in counters.rejected.most_common(3)
    )
    return (
        f"none of the {counters.received} images of {run.topics.image} in {run.recording.path} "
        f"could be reconstructed: {reasons or 'the network gave nothing'}"
    )


def _facts(run: _Run, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json holds and does not depend on the machine."""
    tracks = run.results.tracks
    status = run.server.status()
    warnings = [*run.recording.warnings, *([status.message] if status.level != "OK" else [])]
    if "note" in model:
        warnings.append(f"the network: {model['note']}")
    return {
        "format": METRICS_FORMAT,
        "recording": {
            "path": str(run.recording.path),
            "image_topic": run.topics.image,
            "camera_info_topic": run.topics.camera_info,
            "reference_topics": list(run.topics.reference),
        },
        "result": {
            **run.server.deterministic_values(),
            "unit": "units" if run.server.scale.metres_per_unit is None else "m",
            "segment_frames": [len(track) for track in tracks.values()],
            "path_lengths": [track.length for track in tracks.values()],
            "duration_s": sum(float(track.seconds[-1]) for track in tracks.values()),
        },
        "events": [*run.server.events, *run.events],
        "warnings": warnings,
        "model": dict(model),
        "parameters": run.parameters.model_dump(),
    }


def _write_results(partial: Path, run: _Run, metrics: dict[str, Any]) -> list[Path]:
    """Write trajectories, maps and parameters; add what they tell to the metrics."""
    files = [partial / "bag"]
    sizes = []
    for segment, track in run.results.tracks.items():
        cloud = run.results.cloud(segment)
        sizes.append(len(cloud))
        files += [
            partial / segment_file("trajectory.tum", segment),
            partial / segment_file("points.ply", segment),
        ]
        write_tum(files[-2], track)
        write_ply(files[-1], cloud)
    metrics["result"]["map_points"] = sizes
    files.append(partial / "effective_params.yaml")
    files[-1].write_text(run.parameters.to_yaml(), encoding="utf-8")
    comparison = _comparison(run)
    if comparison is not None:
        metrics["accuracy"] = {
            "reference_topic": comparison.topic,
            "ate": comparison.ate,
            "reference_length": comparison.reference_length,
            "compared_poses": len(comparison.seconds),
        }
    return files


def _write_report(partial: Path, run: _Run, metrics: dict[str, Any]) -> list[Path]:
    segment = run.results.main_segment
    report = Report(
        title=run.recording.path.name,
        metrics=metrics,
        samples=run.results.samples(5),
        track=run.results.tracks[segment],
        cloud=run.results.cloud(segment),
        comparison=_comparison(run),
    )
    return write_report(partial, report)


def _comparison(run: _Run) -> Comparison | None:
    """Compare the longest segment with what is called ground truth, else with what moves."""
    moving = {topic: track for topic, track in run.references.items() if len(track) > 1}
    named = [topic for topic in moving if "ground" in topic.lower() or "gt" in topic.split("/")]
    track = run.results.tracks[run.results.main_segment]
    comparisons = (compare(topic, track, moving[topic]) for topic in (*named, *moving))
    return next((found for found in comparisons if found is not None), None)


def _timings(run: _Run, reconstruction_s: float) -> dict[str, Any]:
    steps = {f"{name}_s": seconds for name, seconds in run.results.seconds.items()}
    return {
        "reconstruction_s": reconstruction_s,
        "frames_per_second": run.server.counters.decoded / max(reconstruction_s, 1e-9),
        "steps": steps,
        "read_write_and_rest_s": reconstruction_s - sum(steps.values()),
        "latency_s": latency_percentiles(run.server.counters.latencies),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _former(output: Path) -> Path:
    return output.with_name(output.name + ".former")


def _check_output(bag: Path, output: Path, overwrite: bool) -> None:
    if bag.resolve().is_relative_to(output.resolve()):
        raise RecordingError(f"the recording {bag} lies in the output {output}: choose another")
    for path in (output, _partial(output), _former(output)):
        if path.exists() and not _is_former_output(path):
            raise RecordingError(
                f"{path} exists and is no output of a replay: choose another, it is left alone"
            )
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise RecordingError(f"{output} exists: choose another, or replace it with --overwrite")
    shutil.rmtree(_partial(output), ignore_errors=True)


def _is_former_output(path: Path) -> bool:
    return path.is_dir() and all(entry.name.startswith(_OUTPUT_NAMES) for entry in path.iterdir())


def _put_in_place(partial: Path, output: Path) -> None:
    former = _former(output)
    shutil.rmtree(former, ignore_errors=True)
    if output.exists():
        output.rename(former)
    partial.rename(output)
    shutil.rmtree(former, ignore_errors=True)
