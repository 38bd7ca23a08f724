"""A recording of what the live node published, as a result that can be evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from qvggt_core.cloud import Cloud, VoxelMap, write_ply
from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import write_tum
from qvggt_core.parameters import Parameters
from qvggt_ros import conversions
from qvggt_ros import metrics as schema
from qvggt_ros.evaluation import METRICS_FILE, RUN_FILE, SAMPLES_FILE
from qvggt_ros.messages import TYPES
from qvggt_ros.recording import OWN_NAMESPACE, Recording, choose_topics, open_recording
from qvggt_ros.reference_messages import decode_depth, frames_of, read_cloud
from qvggt_ros.results import Samples, segment_file
from qvggt_ros.true_depth import sampling

_SAMPLES = 6
_COPIED = ("pose", "depth/image", "depth/camera_info")


def is_recording(path: Path) -> bool:
    """Return whether a path is a recording rather than a result's directory."""
    if path.is_file():
        return path.suffix in (".mcap", ".db3")
    return (path / "metadata.yaml").exists()


@dataclass
class _Gathered:
    """What was found in a recording."""

    tracks: dict[str, Track] = field(default_factory=dict)
    maps: dict[str, VoxelMap] = field(default_factory=dict)
    world_of: dict[int, str] = field(default_factory=dict)
    pose_received: dict[int, int] = field(default_factory=dict)
    image_received: dict[int, int] = field(default_factory=dict)
    valid: list[float] = field(default_factory=list)
    broken: int = 0


def gather(bag: Path, output: Path, *, parameters: Parameters | None = None) -> None:
    """Make a result's directory of a recording of the live node's topics.

    Segments are told apart by the names of their world frames. Latency is the time from an
    image's stamp to the recorder's receipt of its pose, so both must have the same clock.

    Args:
        bag: recording with /qvggt/pose; with the images, depth and points too, there is more to
            see.
        output: directory to make.
        parameters: those that the node ran with; the defaults if not given.

    Raises:
        RecordingError: the recording has no poses of the node, or the output is in the way.
    """
    if output.exists():
        raise RecordingError(f"{output} exists: choose another directory for the result")
    parameters = parameters or Parameters()
    with open_recording(bag) as recording:
        if recording.types.get(OWN_NAMESPACE + "pose") != TYPES["PoseStamped"]:
            raise RecordingError(
                f"{bag} has no {OWN_NAMESPACE}pose: record the node's topics, or replay the images "
                "with `qvggt replay`"
            )
        image_topic, info_topic, references = _inputs(recording)
        output.mkdir(parents=True)
        try:
            found = _read(recording, image_topic, parameters)
            if not found.tracks:
                raise RecordingError(f"{bag} holds no pose of the node that can be read")
            _copy(recording, output / "bag", references)
            _write(output, recording, found, image_topic, info_topic, references, parameters)
        except BaseException:
            shutil.rmtree(output)
            raise


def _inputs(recording: Recording) -> tuple[str, str | None, tuple[str, ...]]:
    """Return the topics of images, calibration and reference poses; images may be missing."""
    try:
        topics = choose_topics(recording)
    except RecordingError:
        return "", None, ()
    return topics.image, topics.camera_info, topics.reference


def _read(recording: Recording, image_topic: str, parameters: Parameters) -> _Gathered:
    found = _Gathered()
    names = {OWN_NAMESPACE + name: name for name in ("pose", "depth/image", "points")}
    if image_topic:
        names[image_topic] = "camera"
    clouds: dict[int, Cloud] = {}
    poses: dict[int, NDArray[np.float64]] = {}
    for topic, msgtype, received_ns, data in recording.messages(list(names)):
        try:
            message = recording.deserialize(data, msgtype)
            stamp = conversions.stamp_ns(message)
            if names[topic] == "pose":
                world = frames_of(message)[0]
                poses[stamp] = conversions.read_pose(message)
                found.tracks.setdefault(world, Track()).add(stamp, poses[stamp])
                found.world_of[stamp] = world
                found.pose_received[stamp] = received_ns
            elif names[topic] == "points":
                clouds[stamp] = read_cloud(message)
            elif names[topic] == "camera":
                found.image_received[stamp] = received_ns
            else:
                found.valid.append(float(np.isfinite(decode_depth(message)).mean()))
        except QvggtError:
            found.broken += 1
            continue
        # Pose and points of a frame come in any order.
        for ready in [stamp for stamp in clouds if stamp in poses]:
            cloud = clouds.pop(ready)
            world = found.world_of[ready]
            if len(cloud):
                voxels = found.maps.setdefault(world, VoxelMap(parameters.map_voxel))
                voxels.add(cloud.moved(poses[ready]), float(np.median(cloud.positions[:, 2])))
    found.tracks = {world: track.in_order() for world, track in found.tracks.items()}
    return found


def _copy(recording: Recording, path: Path, references: Sequence[str]) -> None:
    """Copy what an evaluation needs of the recording, stamped as it was received."""
    wanted = [*(OWN_NAMESPACE + name for name in _COPIED), *references]
    connections: dict[str, Connection] = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic in wanted:
            if topic in recording.types:
                connections[topic] = writer.add_connection(
                    topic, recording.types[topic], typestore=recording.reader.typestore
                )
        for topic, _, received_ns, data in recording.messages(list(connections)):
            writer.write(connections[topic], received_ns, data)


def _write(
    output: Path,
    recording: Recording,
    found: _Gathered,
    image_topic: str,
    info_topic: str | None,
    references: Sequence[str],
    parameters: Parameters,
) -> None:
    points = []
    for segment, (world, track) in enumerate(found.tracks.items()):
        write_tum(output / segment_file("trajectory.tum", segment), track)
        if world in found.maps:
            cloud = found.maps[world].cloud()
            write_ply(output / segment_file("points.ply", segment), cloud)
            points.append(len(cloud))
        else:
            points.append(0)
    (output / "effective_params.yaml").write_text(parameters.to_yaml(), encoding="utf-8")
    samples = _samples(recording, found, image_topic, info_topic, parameters)
    if samples is not None:
        samples.write(output / SAMPLES_FILE)
    unscaled = any(world.startswith(parameters.unscaled_frame) for world in found.tracks)
    published = sum(len(track) for track in found.tracks.values())
    received = max(len(found.image_received), published)
    delays = _delays(found)
    steps = [step for track in found.tracks.values() for step in np.diff(track.seconds)]
    warnings = list(recording.warnings)
    if unscaled:
        warnings.append("the scale is unknown: lengths are in the network's units, not in metres")
    if found.broken:
        warnings.append(f"{found.broken} messages could not be read")
    metrics = schema.Metrics(
        recording=schema.RecordingFacts(
            name=recording.path.resolve().name,
            image_topic=image_topic,
            camera_info_topic=info_topic,
            reference_topics=list(references),
        ),
        result=schema.Result(
            received=received,
            decoded=received,
            rejected={},
            uncalibrated=0 if info_topic else published,
            windows=0,
            published=published,
            keyframes=0,
            gated=0,
            segments=len(found.tracks),
            metres_per_unit=None,
            scale_source="unknown" if unscaled else "the node",
            unit="units" if unscaled else "m",
            segment_frames=[len(track) for track in found.tracks.values()],
            path_lengths=[track.length for track in found.tracks.values()],
            duration_s=sum(float(track.seconds[-1]) for track in found.tracks.values()),
            map_points=points,
            interrupted=False,
        ),
        coverage=schema.Coverage(
            frames=published / received,
            dropped=received - published,
            depth=float(np.mean(found.valid)) if found.valid else 0.0,
            largest_gap_s=float(max(steps, default=0.0)),
            delay_images_median=float(np.median(delays)) if delays else None,
            delay_images_maximum=max(delays) if delays else None,
        ),
        events=[],
        warnings=warnings,
        model={"file": "of the live node"},
    )
    (output / METRICS_FILE).write_text(metrics.to_json(), encoding="utf-8")
    run = _run_facts(recording, found, parameters)
    (output / RUN_FILE).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def _delays(found: _Gathered) -> list[int]:
    """Return, for each frame, how many images the recorder got between it and its pose."""
    received = np.sort(np.array(list(found.image_received.values()), dtype=np.int64))
    return [
        int(np.searchsorted(received, received_ns) - np.searchsorted(received, image_ns) - 1)
        for stamp, received_ns in found.pose_received.items()
        if (image_ns := found.image_received.get(stamp)) is not None and image_ns <= received_ns
    ]


def _run_facts(recording: Recording, found: _Gathered, parameters: Parameters) -> dict[str, Any]:
    stamps = list(found.pose_received)
    latencies = np.array([(found.pose_received[stamp] - stamp) * 1e-9 for stamp in stamps])
    timings: dict[str, Any] = {"latency_s": {}}
    series: dict[str, Any] = {}
    # Other signs and sizes are not latencies but the difference of two clocks.
    if len(latencies) and (latencies >= 0.0).all() and latencies.max() < 60.0:
        timings["latency_s"] = {
            "p50": float(np.percentile(latencies, 50)),
            "p95": float(np.percentile(latencies, 95)),
            "max": float(latencies.max()),
        }
        order = sorted(found.image_received) or sorted(stamps)
        number = {stamp: index for index, stamp in enumerate(order, start=1)}
        series["latency_s"] = [
            (number.get(stamp, index), float(latency))
            for index, (stamp, latency) in enumerate(zip(stamps, latencies, strict=True), start=1)
        ]
    return {
        "format": 1,
        "recording": str(recording.path.resolve()),
        "latency_is": (
            "Latency is the time from an image's stamp to the recorder's receipt of its pose."
        ),
        "timings": timings,
        "series": series,
        "parameters": parameters.model_dump(),
        "versions": {},
    }


def _samples(
    recording: Recording,
    found: _Gathered,
    image_topic: str,
    info_topic: str | None,
    parameters: Parameters,
) -> Samples | None:
    """Return frames of the longest segment with depth and image, as far as both are there."""
    main = max(found.tracks.values(), key=len)
    chosen = np.linspace(0, len(main) - 1, min(_SAMPLES, len(main))).round().astype(int)
    wanted = {main.stamps_ns[index] for index in chosen}
    depth_topic, matrix_topic = OWN_NAMESPACE + "depth/image", OWN_NAMESPACE + "depth/camera_info"
    parts: dict[str, dict[int, Any]] = {depth_topic: {}, matrix_topic: {}, image_topic: {}}
    for topic, msgtype, _, data in recording.messages([topic for topic in parts if topic]):
        message = recording.deserialize(data, msgtype)
        if (stamp := conversions.stamp_ns(message)) in wanted:
            parts[topic][stamp] = message
    info = recording.first(info_topic) if info_topic else None
    rows: list[tuple[int, NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]] = []
    for stamp in sorted(wanted):
        try:
            depth = decode_depth(parts[depth_topic][stamp])
            matrix = np.array(parts[matrix_topic][stamp].k, dtype=np.float64).reshape(3, 3)
            image = conversions.decode_image(parts[image_topic][stamp])
        except (KeyError, QvggtError):
            continue
        columns, lines = sampling(
            image.shape, depth.shape, matrix, info, parameters, "image_rect" in image_topic
        )
        view = np.asarray(
            cv2.remap(image, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            dtype=np.uint8,
        )
        if not rows or depth.shape == rows[0][2].shape:
            rows.append((stamp, view, depth, matrix))
    if not rows:
        return None
    stamps, images, depths, matrices = zip(*rows, strict=True)
    return Samples(
        np.array(stamps, dtype=np.int64),
        np.stack(images),
        np.stack(depths),
        np.full(np.shape(depths), np.nan, dtype=np.float32),
        np.stack(matrices),
    )
