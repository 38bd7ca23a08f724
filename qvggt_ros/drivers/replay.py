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
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qvggt_kernels import native
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from qvggt_core.errors import EvaluationError, ParameterError, QvggtError, RecordingError
from qvggt_core.evaluate.trajectory_files import write_tum
from qvggt_core.geometry.cloud import write_ply
from qvggt_core.parameters import Parameters
from qvggt_core.report import write_report
from qvggt_core.results import schema
from qvggt_core.results.reconstruction import Results, Samples, segment_file
from qvggt_core.stream.deferred import DeferredReconstructor
from qvggt_core.stream.frame import Reconstruction
from qvggt_core.stream.metric_depth import MetricDepthNetwork
from qvggt_core.stream.network import Network
from qvggt_core.stream.reconstructor import Reconstructor
from qvggt_ros.evaluation import (
    EVALUATION_FILES,
    METRICS_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    EvaluationOptions,
    camera_frame_of,
    evaluate,
)
from qvggt_ros.io import conversions
from qvggt_ros.io.ground_truth import named_ground_truth, read_ground_truth
from qvggt_ros.io.messages import LATCHED, TYPES, Messages, rosbags_messages, rosbags_typestore
from qvggt_ros.io.recording import (
    OWN_NAMESPACE,
    Recording,
    Topics,
    choose_topics,
    odometry_topic,
    open_recording,
)
from qvggt_ros.io.reference_messages import read_reference_pose
from qvggt_ros.io.tf_tree import TransformTree
from qvggt_ros.session import OUTPUTS, ReconstructionServer, latency_percentiles

logger = logging.getLogger(__name__)

RUN_FORMAT = 1

_OUTPUT_NAMES = (
    "bag",
    "pictures",
    "trajectory",
    "points",
    "effective_params.yaml",
    METRICS_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    *EVALUATION_FILES,
    "report.html",
)
_STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_SERIES_KEPT = 1000
_SAMPLES = 6
_VERSIONS_OF = ("qvggt_ros", "numpy", "torch", "opencv-python-headless", "rosbags")

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of images in all."""

Watch = Callable[[Reconstruction], None]
"""Called with each reconstruction as it becomes known."""

_BY_NAME = EvaluationOptions()


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay did and where it is.

    Attributes:
        output: the directory.
        files: what was written, the recording first.
        metrics: the content of metrics.json.
        run: the content of run.json.
        warnings: what an operator should know.
        interrupted: whether it was stopped before the end.
    """

    output: Path
    files: tuple[Path, ...]
    metrics: dict[str, Any]
    run: dict[str, Any]
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
    use_odometry: bool = False,
    metric_depth: MetricDepthNetwork | None = None,
    storage: str = "mcap",
    limit: int | None = None,
    overwrite: bool = False,
    report: bool = True,
    evaluation: EvaluationOptions | None = _BY_NAME,
    truth_required: bool = False,
    model: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda reconstruction: None,
) -> ReplaySummary:
    """Reconstruct a recording, and compare it with its ground truth if there is one.

    The output directory appears when everything is in it. If something fails on the way, what was
    done until then stays beside it, in `OUTPUT.partial`. The same recording, network and
    parameters give the same messages and the same metrics.json, byte for byte.

    Args:
        bag: rosbag2 directory, or a bare .mcap or .db3 file.
        output: directory to make, for the recording `bag`, trajectory.tum, points.ply,
            effective_params.yaml, metrics.json, run.json, pictures and report.html.
        network: what predicts the geometry of windows.
        parameters: how to reconstruct.
        image_topic: Image or CompressedImage topic; found by type if not given.
        camera_info_topic: its CameraInfo; found by name if not given.
        use_odometry: whether the recording's odometry tells the scale; each segment is then in
            metres from its first frame.
        metric_depth: gives the scale, see `Reconstructor`.
        storage: "mcap" or "sqlite3".
        limit: number of images after which to end.
        overwrite: replace an output of a former replay.
        report: draw pictures and write report.html.
        evaluation: how to compare with the ground truth; None does not.
        truth_required: whether it is an error if there is no ground truth, or nothing of it can
            be compared; otherwise it is a warning at most.
        model: facts about the network for the report.
        progress: called after each image.
        stop: asked before each image; true ends the replay as the end of the recording would.
        watch: called with each reconstruction as it becomes known.

    Raises:
        RecordingError: the recording or its truth cannot be used, or the output is in the way.
        ParameterError: the storage or the limit is refused.
        EvaluationError: a truth that is required cannot be compared; the output is in place.
    """
    if storage not in _STORAGES:
        raise ParameterError(f"storage {storage!r} is unknown: choose {' or '.join(_STORAGES)}")
    if limit is not None and limit < 1:
        raise ParameterError(f"a limit of {limit} images leaves nothing to reconstruct")
    _check_output(bag, output, overwrite)
    started = time.perf_counter()
    with open_recording(bag) as recording:
        topics = choose_topics(recording, image_topic, camera_info_topic)
        evaluation = _known_truth(recording, topics, evaluation, truth_required)
        partial = _partial(output)
        wants_odometry = use_odometry or parameters.condition_on == "odometry"
        odometry = _odometry(recording) if wants_odometry else None
        live = Reconstructor(network, parameters, metric_depth)
        run = _Run(recording, topics, odometry, live, parameters, partial / "bag", storage, watch)
        interrupted = run.through(limit, progress, stop)
        if run.server.counters.published == 0:
            shutil.rmtree(partial)
            raise RecordingError(_nothing_came_of_it(run))
        reconstructed = time.perf_counter()
    files = write_results(partial, run.results, run.parameters)
    metrics = _facts(run, model or {}, interrupted)
    files += [partial / METRICS_FILE, partial / RUN_FILE]
    files[-2].write_text(metrics.to_json(), encoding="utf-8")
    facts = _run_facts(run, reconstructed - started)
    files[-1].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    problem: QvggtError | None = None
    if evaluation is not None:
        try:
            metrics = evaluate(partial, evaluation)
        except QvggtError as error:
            problem = error
            warning = f"not compared with the ground truth: {error}"
            metrics = metrics.model_copy(update={"warnings": [*metrics.warnings, warning]})
            (partial / METRICS_FILE).write_text(metrics.to_json(), encoding="utf-8")
    files += [file for name in EVALUATION_FILES if (file := partial / name).exists()]
    if report:
        files += write_report(partial, title=recording.path.name)
    facts["timings"]["total_s"] = time.perf_counter() - started
    (partial / RUN_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _put_in_place(partial, output)
    if problem is not None and truth_required:
        raise EvaluationError(f"{problem}; the reconstruction is in {output}") from problem
    return ReplaySummary(
        output=output,
        files=tuple(output / file.relative_to(partial) for file in files),
        metrics=metrics.model_dump(mode="json"),
        run=facts,
        warnings=tuple(metrics.warnings),
        interrupted=interrupted,
    )


def _odometry(recording: Recording) -> str:
    topic = odometry_topic(recording)
    if topic is None:
        topics = ", ".join(f"{name} [{kind}]" for name, kind in recording.types.items())
        raise RecordingError(f"{recording.path} has no nav_msgs/Odometry; it has {topics}")
    return topic


def _known_truth(
    recording: Recording,
    topics: Topics,
    evaluation: EvaluationOptions | None,
    required: bool,
) -> EvaluationOptions | None:
    """Return how to compare, or None if there is nothing to compare with.

    What is named must be there before hours are spent on a reconstruction.
    """
    if evaluation is None:
        return None
    if evaluation.ground_truth is not None:
        read_ground_truth(
            evaluation.ground_truth,
            [recording],
            camera_frame=camera_frame_of(recording, topics.image),
            truth_frame=evaluation.truth_frame,
            times=evaluation.times,
        )
        return evaluation
    if (topic := named_ground_truth(recording)) is not None:
        return replace(evaluation, ground_truth=topic)
    if required:
        raise RecordingError(
            f"{recording.path} has no topic that is called ground truth: name one, or a file, "
            f"with --ground-truth; topics with poses: {', '.join(topics.reference) or 'none'}"
        )
    return None


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
                offered_qos_profiles=LATCHED if topic == "path" else (),
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
        odometry: str | None,
        live: Reconstructor,
        parameters: Parameters,
        bag: Path,
        storage: str,
        watch: Watch,
    ) -> None:
        self.recording = recording
        self.topics = topics
        self.parameters = parameters
        self.messages: Messages = rosbags_messages()
        self.results = Results(parameters)
        self.events: list[str] = []
        self.delays: list[int] = []
        self.series = _Series()
        self._watch = watch
        self._images: dict[int, int] = {}
        self._image_count = 0
        self._odometry = odometry
        self._tree = TransformTree() if odometry is None else TransformTree.read(recording)
        reconstructor = live if odometry is None else DeferredReconstructor(live)
        self._writer = _BagWriter(bag, storage, recording, topics)
        self.server = ReconstructionServer(
            reconstructor,
            parameters,
            self.messages,
            self._writer.emit,
            rectified=topics.rectified,
            transform_mode="world_to_camera",
            lookup=self._lookup,
        )

    def _lookup(self, target: str, source: str, stamp_ns: int) -> NDArray[np.float64] | None:
        try:
            found = self._tree.track(target, source, [stamp_ns])
        except RecordingError:
            return None
        return found.poses[0] if len(found) else None

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
        if self._odometry is not None and self._odometry not in used:
            used.append(self._odometry)
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
                self.series.add_memory(done)
                progress(done, total)
            if done == limit:
                break
        self._gather(self.server.finish())
        return interrupted

    def _take(self, topic: str, msgtype: str, received_ns: int, data: bytes) -> None:
        try:
            message = self.recording.deserialize(data, msgtype)
            if topic == self.topics.image:
                # Stamps may repeat, where a camera sets none.
                self._images[conversions.stamp_ns(message)] = self._image_count
                self._image_count += 1
                self._gather(self.server.on_image(message))
            elif topic == self.topics.camera_info:
                self.server.on_camera_info(message)
            else:
                read_reference_pose(message)  # what is no pose is not copied
                if topic == self._odometry:
                    self.server.on_odometry(message)
                self._writer.copy(topic, data, conversions.stamp_ns(message) or received_ns)
        except QvggtError as error:
            self.server.reject(f"{topic}: {error}", is_image=topic == self.topics.image)

    def _gather(self, reconstructions: tuple[Any, ...]) -> None:
        for reconstruction in reconstructions:
            self.results.add(reconstruction)
            self._watch(reconstruction)
            for geometry in reconstruction.frames:
                self.delays.append(self._image_count - 1 - self._images[geometry.view.stamp_ns])
        published = sum(len(reconstruction.frames) for reconstruction in reconstructions)
        latencies = self.server.counters.latencies
        for latency in list(latencies)[max(0, len(latencies) - published) :]:
            self.series.add_latency(self._image_count, latency)


def _nothing_came_of_it(run: _Run) -> str:
    counters = run.server.counters
    reasons = "; ".join(
        f"{reason} ({count} times)" for reason, count in counters.rejected.most_common(3)
    )
    return (
        f"none of the {counters.received} images of {run.topics.image} in {run.recording.path} "
        f"could be reconstructed: {reasons or 'the network gave nothing'}"
    )


class _Series:
    """Latency and memory over the images, thinned evenly to a bounded length."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, float]]] = {"latency_s": [], "memory_mb": []}
        self._strides = dict.fromkeys(self.values, 1)
        self._seen = dict.fromkeys(self.values, 0)

    def add_latency(self, image: int, seconds: float) -> None:
        self._add("latency_s", image, seconds)

    def add_memory(self, image: int) -> None:
        self._add("memory_mb", image, _resident_mb())

    def _add(self, name: str, image: int, value: float) -> None:
        if self._seen[name] % self._strides[name] == 0:
            self.values[name].append((image, value))
        self._seen[name] += 1
        if len(self.values[name]) > _SERIES_KEPT:
            self.values[name] = self.values[name][::2]
            self._strides[name] *= 2


def _resident_mb() -> float:
    """Return the process's memory now, in MB; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 1e6


def _facts(run: _Run, model: Mapping[str, Any], interrupted: bool) -> schema.Metrics:
    """Return what metrics.json holds before it is compared: nothing depends on the machine."""
    tracks = run.results.tracks
    status = run.server.status()
    warnings = [*run.recording.warnings, *([status.message] if status.level != "OK" else [])]
    if "note" in model:
        warnings.append(f"the network: {model['note']}")
    values = run.server.deterministic_values()
    steps = [step for track in tracks.values() for step in np.diff(track.seconds)]
    return schema.Metrics(
        recording=schema.RecordingFacts(
            name=run.recording.path.name,
            image_topic=run.topics.image,
            camera_info_topic=run.topics.camera_info,
            reference_topics=list(run.topics.reference),
        ),
        result=schema.Result(
            **{name: value for name, value in values.items() if name in schema.Result.model_fields},
            unit="units" if run.server.scale.metres_per_unit is None else "m",
            segment_frames=[len(track) for track in tracks.values()],
            path_lengths=[track.length for track in tracks.values()],
            duration_s=sum(float(track.seconds[-1]) for track in tracks.values()),
            map_points=[len(run.results.cloud(segment)) for segment in tracks],
            interrupted=interrupted,
        ),
        coverage=schema.Coverage(
            frames=values["published"] / max(values["received"], 1),
            dropped=max(values["received"] - values["published"], 0),
            depth=run.results.valid_depth / max(values["published"], 1),
            largest_gap_s=float(max(steps, default=0.0)),
            delay_images_median=float(np.median(run.delays)),
            delay_images_maximum=max(run.delays),
        ),
        events=[*run.server.events, *run.events],
        warnings=warnings,
        model=dict(model),
    )


def _run_facts(run: _Run, reconstruction_s: float) -> dict[str, Any]:
    """Return what run.json holds: what depends on the machine and the moment."""
    return {
        "format": RUN_FORMAT,
        "recording": str(run.recording.path.resolve()),
        "latency_is": (
            "The recording was read as fast as it could be, so latency is the time that the "
            "frames of a window waited for each other and for the network."
        ),
        "timings": _timings(run, reconstruction_s),
        "series": run.series.values,
        "parameters": run.parameters.model_dump(),
        "versions": versions(),
    }


def write_results(directory: Path, results: Results, parameters: Parameters) -> list[Path]:
    """Write trajectories, maps, parameters and sample frames; return the recording's path too."""
    files = [directory / "bag"]
    for segment, track in results.tracks.items():
        files += [
            directory / segment_file("trajectory.tum", segment),
            directory / segment_file("points.ply", segment),
        ]
        write_tum(files[-2], track)
        write_ply(files[-1], results.cloud(segment))
    files += [directory / "effective_params.yaml", directory / SAMPLES_FILE]
    files[-2].write_text(parameters.to_yaml(), encoding="utf-8")
    Samples.of(results.samples(_SAMPLES)).write(files[-1])
    return files


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


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on, and whether the C++ kernels took part."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "C++ kernels": native.status(),
    }
    for name in _VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
