"""A recording in, its reconstruction out: the node's session, run synchronously and repeatably."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import EvaluationError, ParameterError, QvggtError, RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.report import write_report
from qvggt_core.results import layout, schema
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.results.facts import Series, metrics_of, peak_memory_mb, percentiles, versions
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.result import Result, write_reconstruction
from qvggt_core.stream.deferred import DeferredReconstructor
from qvggt_core.stream.frame import Reconstruction
from qvggt_core.stream.load_network import LoadedNetwork, checkpoint_sha256
from qvggt_core.stream.loaded_map import loops_of, map_so_far
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.reconstructor import Reconstructor
from qvggt_core.stream.saved_map import MAP, write_map_files
from qvggt_core.util.directories import new_output
from qvggt_ros.drivers.assumed_lens import AssumedLens, assumed_lens, check_focal_length
from qvggt_ros.drivers.bag_writer import STORAGES, BagWriter
from qvggt_ros.drivers.options import MapOptions, ReplayOptions
from qvggt_ros.drivers.stereo_pairs import FIRST, SECOND, StereoPairs
from qvggt_ros.evaluation import camera_frame_of, compare, truth_of
from qvggt_ros.io.conversions import frames_of, read_pose, stamp_ns
from qvggt_ros.io.ground_truth import named_ground_truth
from qvggt_ros.io.image_order import Received, in_order_of_stamps
from qvggt_ros.io.messages import rosbags_messages
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.tf_tree import TransformTree
from qvggt_ros.io.topics import (
    Topics,
    choose_topics,
    odometry_topic,
    sensor_topic,
    with_mask,
    with_stereo,
)
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

logger = logging.getLogger(__name__)

_LATENCY_IS = (
    "The recording was read as fast as it could be, so latency is the time that the "
    "frames of a window waited for each other and for the network."
)


@dataclass(frozen=True)
class Watcher:
    """What follows a replay.

    Attributes:
        progress: called with the number of images done and the number of images in all.
        stop: called before each image; true ends the replay as the end of the recording would.
        grown: called with each reconstruction as it becomes known, and all that was built so far.
        searching: called before the first image, while the focal length is looked for, with the
            number of steps done and the number of steps in all.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    stop: Callable[[], bool] = lambda: False
    grown: Callable[[Reconstruction, ResultBuilder], None] = lambda reconstruction, built: None
    searching: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Comparison:
    """How a replay is compared with the ground truth.

    Attributes:
        options: what is compared with what; None does not compare.
        required: whether it is an error if there is no ground truth, or nothing of it can be
            compared; otherwise it is a warning at most.
    """

    options: EvaluationOptions | None = field(default_factory=EvaluationOptions)
    required: bool = False

    @classmethod
    def requested(cls, evaluate: bool | None, options: EvaluationOptions) -> Comparison:
        """Return the comparison that a command requests: yes, no, or if there is a truth."""
        required = bool(evaluate) or options.ground_truth is not None
        return cls(None if evaluate is False else options, required)


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay did and where it is.

    Attributes:
        output: the directory.
        files: what was written, the recording first.
        metrics: the content of metrics.json.
        run: the content of run.json.
        interrupted: whether it was stopped before the end.
    """

    output: Path
    files: tuple[Path, ...]
    metrics: dict[str, Any]
    run: Mapping[str, Any]
    interrupted: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know."""
        return tuple(self.metrics["warnings"])


def replay(
    bag: Path,
    output: Path,
    loaded: LoadedNetwork,
    options: ReplayOptions | None = None,
    *,
    maps: MapOptions | None = None,
    comparison: Comparison | None = None,
    watcher: Watcher | None = None,
) -> ReplaySummary:
    """Reconstruct a recording, and compare it with its ground truth if there is one.

    The output directory appears when everything is in it. If something fails on the way, what was
    done until then stays beside it, in `OUTPUT.partial`. The same recording, network and
    parameters give the same messages and the same metrics.json, byte for byte.

    Args:
        bag: rosbag2 directory, or a bare .mcap or .db3 file.
        output: directory to make, for the recording `bag`, trajectory.tum, points.ply,
            effective_params.yaml, metrics.json, run.json, pictures and report.html.
        loaded: the network, the parameters and facts for the report.
        options: what is read and written.
        maps: which map is loaded, or made beside the output; with either, loops are looked for.
        comparison: how to compare with the ground truth.
        watcher: what follows it.

    Raises:
        RecordingError: the recording or its truth cannot be used.
        OutputError: the output is in the way or cannot be written.
        ParameterError: the storage or the limit is refused.
        MapError: a map cannot be loaded, or there is none to save.
        EvaluationError: a truth that is required cannot be compared; the output is in place.
    """
    options, comparison = options or ReplayOptions(), comparison or Comparison()
    maps = maps or MapOptions()
    _check(options)
    started = time.perf_counter()
    loaded, loops, network = _with_maps(loaded, maps)
    with open_recording(bag) as recording:
        topics = choose_topics(recording, options.image_topic, options.camera_info_topic)
        topics = with_mask(recording, topics, options.mask_topic)
        topics = with_stereo(recording, topics, options.stereo_topic)
        evaluation = _known_truth(recording, topics, comparison)
        sources = _scale_sources(recording, options, loaded.parameters)
        with (
            _map_output(maps.save_map, options.overwrite) as map_directory,
            new_output(output, layout.RESULT, overwrite=options.overwrite, inputs=[bag]) as partial,
        ):
            run = _Run(recording, topics, sources, loaded, watcher or Watcher())
            run.through(partial / layout.BAG, options, loops)
            if map_directory is not None:
                run.save_map(map_directory, loops, network)
            result = Result.of(run.built, run.metrics(), run.facts(started))
            files = [partial / layout.BAG]
            files += write_reconstruction(partial, run.built, loaded.parameters)
            files += result.write_facts(partial)
            result, problem = _compared(result, evaluation, recording, loaded.parameters, partial)
            files += result.write_comparison(partial)
            if options.report:
                files += write_report(result, partial, title=recording.path.name)
            result.run["timings"]["total_s"] = time.perf_counter() - started
            result.write_facts(partial)
    if problem is not None and comparison.required:
        raise EvaluationError(f"{problem}; the reconstruction is in {output}") from problem
    return ReplaySummary(
        output=output,
        files=tuple(output / file.relative_to(partial) for file in files),
        metrics=result.metrics.model_dump(mode="json"),
        run=result.run,
        interrupted=run.interrupted,
    )


def _with_maps(loaded: LoadedNetwork, maps: MapOptions) -> tuple[LoadedNetwork, LoopClosure, str]:
    """Return the network with the parameters for maps, what finds loops or a place, and a hash."""
    if maps.load_map is not None:
        parameters = loaded.parameters.with_values(load_map=str(maps.load_map))
        loaded = replace(loaded, parameters=parameters)
    if maps.save_map is None:
        return (*loops_of(loaded), "")
    if loaded.parameters.load_map and loaded.parameters.localization_only:
        raise ParameterError(
            "a map that is loaded is not changed, so there is none to save: choose --load-map or "
            "--save-map, or let the map grow by --set localization_only=false"
        )
    loaded = replace(loaded, parameters=loaded.parameters.with_values(loop_closure=True))
    return (*loops_of(loaded), checkpoint_sha256(loaded.parameters))


@contextmanager
def _map_output(directory: Path | None, overwrite: bool) -> Iterator[Path | None]:
    if directory is None:
        yield None
        return
    with new_output(directory, MAP, overwrite=overwrite) as partial:
        yield partial


def _check(options: ReplayOptions) -> None:
    if options.storage not in STORAGES:
        raise ParameterError(
            f"storage {options.storage!r} is unknown: choose {' or '.join(STORAGES)}"
        )
    check_focal_length(options.focal_length)
    if options.limit is not None and options.limit < 1:
        raise ParameterError(f"a limit of {options.limit} images leaves nothing to reconstruct")


@dataclass(frozen=True)
class _ScaleSources:
    """The topics of a recording that know metres; None for what it does not have."""

    odometry: str | None = None
    fix: str | None = None
    range: str | None = None
    imu: str | None = None

    @property
    def others(self) -> list[str]:
        """Those beside odometry."""
        return [topic for topic in (self.fix, self.range) if topic is not None]


def _scale_sources(
    recording: Recording, options: ReplayOptions, parameters: Parameters
) -> _ScaleSources:
    odometry = odometry_topic(recording)
    needed = options.odometry or parameters.condition_on == "odometry"
    if needed and odometry is None:
        topics = ", ".join(f"{name} [{kind}]" for name, kind in recording.types.items())
        raise RecordingError(f"{recording.path} has no nav_msgs/Odometry; it has {topics}")
    if options.odometry is False and not needed:
        odometry = None
    return _ScaleSources(
        odometry,
        sensor_topic(recording, "NavSatFix"),
        sensor_topic(recording, "Range"),
        sensor_topic(recording, "Imu"),
    )


def _known_truth(
    recording: Recording, topics: Topics, comparison: Comparison
) -> EvaluationOptions | None:
    """Return how to compare, or None if there is nothing to compare with.

    What is named must be there before hours are spent on a reconstruction.
    """
    options = comparison.options
    if options is None:
        return None
    if options.ground_truth is not None:
        truth_of([recording], camera_frame_of(recording, topics.image), options)
        return options
    if (topic := named_ground_truth(recording)) is not None:
        return replace(options, ground_truth=topic)
    if comparison.required:
        raise RecordingError(
            f"{recording.path} has no topic that is called ground truth: name one, or a file, "
            f"with --ground-truth; topics with poses: {', '.join(topics.reference) or 'none'}"
        )
    return None


def _compared(
    result: Result,
    options: EvaluationOptions | None,
    recording: Recording,
    parameters: Parameters,
    directory: Path,
) -> tuple[Result, QvggtError | None]:
    """Return the result, compared if it can be, and why it cannot."""
    if options is None:
        return result, None
    try:
        with open_recording(directory / layout.BAG) as bag:
            return compare(result, parameters, bag, recording, options), None
    except QvggtError as error:
        return result.with_warning(f"not compared with the ground truth: {error}"), error


class _Run:
    """One pass through a recording."""

    def __init__(
        self,
        recording: Recording,
        topics: Topics,
        sources: _ScaleSources,
        loaded: LoadedNetwork,
        watcher: Watcher,
    ) -> None:
        self.built = ResultBuilder(loaded.parameters)
        self.interrupted = False
        self._recording = recording
        self._topics = topics
        self._sources = sources
        self._loaded = loaded
        self._watcher = watcher
        self._events: list[str] = []
        self._delays: list[int] = []
        self._series = Series()
        self._images: dict[int, int] = {}
        self._image_count = 0
        self._odometry_stamps: list[int] = []
        self._pairs = StereoPairs(loaded.parameters.sync_slop_s)
        self._cameras = [FIRST, SECOND] if topics.stereo else loaded.parameters.cameras
        needs_mounts = any((topics.stereo, sources.odometry, sources.others, sources.imu))
        self._tree = TransformTree.read(recording) if needs_mounts else TransformTree()
        self._lens: AssumedLens | None = None
        self._writer: BagWriter
        self._session: ReconstructionSession

    def save_map(self, directory: Path, loops: LoopClosure, network: str) -> None:
        """Write the map into a directory that is there.

        Raises:
            MapError: there is none.
        """
        up = str(self._session.up_values["up_source"])
        write_map_files(directory, map_so_far(loops, network, up))

    def through(self, bag: Path, options: ReplayOptions, loops: LoopClosure) -> None:
        """Run, and write what is published; the written recording is whole in any case.

        Raises:
            RecordingError: no image could be reconstructed; the output is removed.
        """
        parameters = self._loaded.parameters
        reconstructor = DeferredReconstructor(
            Reconstructor(self._loaded.network, parameters, self._loaded.metric_depth, loops),
            hopes_for_metres=bool(
                self._sources.odometry
                or self._sources.others
                or self._loaded.metric_depth
                or parameters.camera_height
                or self._topics.stereo
                or loops.knows_metres
            ),
            hopes_for_up=self._knows_imu_mount(),
        )
        self._writer = BagWriter(bag, options.storage, self._recording, self._topics)
        self._session = ReconstructionSession(
            reconstructor,
            parameters.with_values(publish_tf="world_to_camera", cameras=self._cameras),
            Driver(rosbags_messages(), self._emit, lookup=self._lookup),
            rectified=self._cameras if self._topics.rectified else (),
        )
        self._assume_lens(options)
        try:
            self._read_all(options.limit)
        finally:
            self._writer.close()
        if self._session.counters.published == 0:
            layout.RESULT.remove(bag.parent)
            raise RecordingError(self._why_nothing())

    def _assume_lens(self, options: ReplayOptions) -> None:
        """Let images without a calibration have the lens that is given or found."""
        parameters = self._loaded.parameters
        if options.focal_length is None and not (parameters.confirm or parameters.refine):
            return
        self._lens = assumed_lens(
            self._recording, self._topics, options.focal_length, self._watcher.searching
        )
        if self._lens is None:
            return
        self._events.append(self._lens.note)
        if self._lens.focal_length is not None:
            camera = self._lens.focal_length.camera(self._lens.width, self._lens.height)
            self._session.assume(camera, self._cameras[0])

    def _emit(self, topic: str, message: Any, stamp_ns: int) -> None:
        # A result holds one camera's outputs.
        if not topic.startswith(f"{SECOND}/"):
            self._writer.emit(topic, message, stamp_ns)

    def _knows_imu_mount(self) -> bool:
        topic = self._sources.imu
        first = None if topic is None else self._recording.first(topic)
        return first is not None and frames_of(first)[0] in self._tree.frames

    def _lens_facts(self) -> dict[str, float]:
        found = self._lens and self._lens.focal_length
        return {"focal_length_px": found.pixels, "focal_length_sigma": found.sigma} if found else {}

    def metrics(self) -> schema.Metrics:
        """Return what metrics.json holds before it is compared."""
        session, model = self._session, self._loaded.facts
        status = session.status()
        warnings = [*self._recording.warnings, *self._topics.notes, *self._tree.warnings]
        warnings += self._odometry_warnings()
        if status.level != "OK":
            warnings.append(status.message)
        if "note" in model:
            warnings.append(f"the network: {model['note']}")
        in_metres = session.scale.metres_per_unit is not None
        return metrics_of(
            self.built,
            schema.RecordingFacts(
                name=self._recording.path.name,
                image_topic=self._topics.image,
                camera_info_topic=self._topics.camera_info,
                reference_topics=list(self._topics.reference),
                odometry_topic=self._sources.odometry,
                scale_topics=[
                    *self._sources.others,
                    *([self._topics.stereo] if self._topics.stereo else []),
                ],
                imu_topic=self._sources.imu,
                **self._lens_facts(),
            ),
            {
                **session.counters.values(session.scale),
                **session.up_values,
                **session.loop_values,
                "unit": "m" if in_metres else "units",
                "interrupted": self.interrupted,
            },
            images=session.counters.received,
            delays=self._delays,
            events=[*session.counters.events, *self._events],
            warnings=warnings,
            model=model,
        )

    def facts(self, started: float) -> dict[str, Any]:
        """Return what run.json holds: what depends on the machine and the moment."""
        counters = self._session.counters
        seconds = time.perf_counter() - started
        steps = {f"{name}_s": value for name, value in self.built.seconds.items()}
        return {
            "format": layout.RUN_FORMAT,
            "recording": str(self._recording.path.resolve()),
            "latency_is": _LATENCY_IS,
            "timings": {
                "reconstruction_s": seconds,
                "frames_per_second": counters.decoded / max(seconds, 1e-9),
                "steps": steps,
                "read_write_and_rest_s": seconds - sum(steps.values()),
                "latency_s": percentiles(counters.latencies),
                "peak_memory_mb": peak_memory_mb(),
            },
            "series": self._series.values,
            "windows": self.built.windows,
            "parameters": self._loaded.parameters.model_dump(),
            "versions": versions(),
        }

    def _lookup(self, target: str, source: str, stamp: int) -> NDArray[np.float64] | None:
        try:
            found = self._tree.track(target, source, [stamp])
        except RecordingError:
            return None
        return found.poses[0] if len(found) else None

    def _read_all(self, limit: int | None) -> None:
        topics = self._topics
        total = min(limit or sys.maxsize, self._recording.count(topics.image))
        used = {topics.image, *topics.reference}
        sources = self._sources
        others = (sources.odometry, *sources.others, sources.imu, topics.camera_info, topics.mask)
        others += (topics.stereo, topics.stereo_info)
        used |= {topic for topic in others if topic is not None}
        # The first image may come before the calibration that belongs to it.
        for topic, camera in ((topics.camera_info, self._cameras[0]), (topics.stereo_info, SECOND)):
            info = topic and self._recording.first(topic)
            if info is not None:
                self._session.on_camera_info(info, camera)
        done = 0
        stream = in_order_of_stamps(self._recording, sorted(used), topics.image)
        for received in stream:
            if self._watcher.stop():
                self.interrupted = True
                self._events.append(f"stopped on request after {done} of {total} images")
                break
            self._take(received)
            if received.topic == topics.image:
                done += 1
                self._series.add_memory(done)
                self._watcher.progress(done, total)
            if done == limit:
                break
        self._give(self._pairs.rest())
        self._gather(self._session.finish())

    def _take(self, received: Received) -> None:
        topic, message = received.topic, received.message
        is_image = topic == self._topics.image
        try:
            if received.error:
                raise RecordingError(received.error)
            if is_image:
                # Stamps may repeat, where a camera sets none.
                self._images[received.stamp_ns] = self._image_count
                self._image_count += 1
                self._give(
                    self._pairs.first(message)
                    if self._topics.stereo
                    else [{self._cameras[0]: message}]
                )
            elif topic == self._topics.stereo:
                self._give(self._pairs.other(message))
            elif topic == self._topics.stereo_info:
                self._session.on_camera_info(message, SECOND)
            elif topic == self._topics.camera_info:
                self._session.on_camera_info(message, self._cameras[0])
            elif topic == self._topics.mask:
                self._session.on_mask(message, self._cameras[0])
            elif topic == self._sources.fix:
                self._session.on_fix(message)
            elif topic == self._sources.imu:
                self._session.on_imu(message)
            elif topic == self._sources.range:
                self._session.on_range(message)
            else:
                read_pose(message)  # what is no pose is not copied
                if topic == self._sources.odometry:
                    self._odometry_stamps.append(stamp_ns(message))
                    self._session.on_odometry(message)
                self._writer.copy(topic, received.data, stamp_ns(message) or received.received_ns)
        except QvggtError as error:
            self._session.reject(f"{topic}: {error}", is_image=is_image)

    def _give(self, sets: list[dict[str, Any]]) -> None:
        for images in sets:
            self._gather(self._session.on_images(images))

    def _gather(self, reconstructions: tuple[Reconstruction, ...]) -> None:
        published = 0
        for every in reconstructions:
            own = tuple(frame for frame in every.frames if frame.view.source != SECOND)
            reconstruction = replace(every, frames=own)
            self.built.add(reconstruction)
            self._watcher.grown(reconstruction, self.built)
            published += len(reconstruction.frames)
            for geometry in reconstruction.frames:
                self._delays.append(self._image_count - 1 - self._images[geometry.view.stamp_ns])
        latencies = self._session.counters.latencies
        for latency in list(latencies)[max(0, len(latencies) - published) :]:
            self._series.add_latency(self._image_count, latency)

    def _odometry_warnings(self) -> list[str]:
        """Return why odometry gave no scale, where its times do not fit the images'."""
        topic = self._sources.odometry
        if topic is None or self._session.scale.metres_per_unit is not None:
            return []
        if not self._odometry_stamps:
            return [f"{topic} holds no pose that can be used, so there is no scale"]
        images, odometry = sorted(self._images), sorted(self._odometry_stamps)
        gap_ns = max(odometry[0] - images[-1], images[0] - odometry[-1])
        if gap_ns <= 0:
            return []
        return [
            f"{topic} and the images have no time in common, {gap_ns * 1e-9:.1f} s lie "
            "between them, so there is no scale: were their clocks the same?"
        ]

    def _why_nothing(self) -> str:
        counters = self._session.counters
        return (
            f"none of the {counters.received} images of {self._topics.image} in "
            f"{self._recording.path} could be reconstructed: "
            f"{counters.why_rejected() or 'the network gave nothing'}"
        )
