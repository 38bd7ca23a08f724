"""A result of a reconstruction against the truth: metrics.json, errors.csv and true depth."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.errors import EvaluationError, QvggtError, RecordingError
from qvggt_core.evaluate.association import DEFAULT_TOLERANCE_S, Association, associate
from qvggt_core.evaluate.depth import DepthErrors, depth_errors, mean_depth_errors
from qvggt_core.evaluate.drift import (
    ScaleOverTime,
    Span,
    pairs_apart,
    progress,
    relative_errors,
    scale_over_time,
)
from qvggt_core.evaluate.statistics import statistics
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory import (
    ALIGNMENTS,
    AbsoluteErrors,
    AlignmentKind,
    absolute_errors,
    straightness,
)
from qvggt_core.geometry.poses import inverse
from qvggt_core.parameters import Parameters
from qvggt_core.results import schema
from qvggt_core.results.reconstruction import Samples, read_tracks
from qvggt_ros.io.depth_truth import depth_pairs, depth_topic
from qvggt_ros.io.ground_truth import (
    GroundTruth,
    clock_offset,
    named_ground_truth,
    read_ground_truth,
)
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.reference_messages import frames_of

METRICS_FILE = "metrics.json"
RUN_FILE = "run.json"
SAMPLES_FILE = "frames.npz"
ERRORS_FILE = "errors.csv"
DEPTH_ERRORS_FILE = "depth_errors.csv"

EVALUATION_FILES = (ERRORS_FILE, DEPTH_ERRORS_FILE)

_SCALE_WINDOW_SHARE = 0.2
_STRAIGHT = 0.05
_MAX_RUN_BYTES = 1 << 27


@dataclass(frozen=True)
class EvaluationOptions:
    """How to compare.

    Attributes:
        ground_truth: topic, `/tf:PARENT.CHILD` or file; None takes the topic that is called so.
        truth_frame: frame that the true poses are of, where messages do not say.
        times: stamps of a KITTI file.
        tolerance_s: largest difference of stamps that belong together.
        clock_offset: seconds to add to the truth's stamps, "first" or "estimate".
        offset_reach_s: how far "estimate" searches.
        rpe_distances: metres of the true path for relative errors.
        rpe_times: seconds for relative errors.
        depth_topic: topic of true depth; None takes the one in the camera's frame.
    """

    ground_truth: str | None = None
    truth_frame: str = ""
    times: Path | None = None
    tolerance_s: float = DEFAULT_TOLERANCE_S
    clock_offset: str = "0"
    offset_reach_s: float = 5.0
    rpe_distances: tuple[float, ...] = (1.0,)
    rpe_times: tuple[float, ...] = (1.0,)
    depth_topic: str | None = None


def read_run(directory: Path) -> dict[str, Any]:
    """Return the content of a result's run.json.

    Raises:
        RecordingError: it is not there or cannot be read.
    """
    path = directory / RUN_FILE
    try:
        if path.stat().st_size > _MAX_RUN_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError("it holds no names")
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"{directory} is no result of this version: cannot read {path}: {error}; "
            "reconstruct again"
        ) from error
    return run


def evaluate(
    directory: Path, options: EvaluationOptions, recording: Path | None = None
) -> schema.Metrics:
    """Compare a result with the truth, and write what is found into its directory.

    Args:
        directory: a result, as `replay` makes it.
        options: how to compare.
        recording: what was reconstructed, if it is elsewhere now.

    Returns:
        The result's metrics with `accuracy`, as metrics.json has them then.

    Raises:
        EvaluationError: nothing can be compared; the message says why.
        RecordingError: the result or the truth cannot be read.
    """
    metrics = schema.Metrics.read(directory / METRICS_FILE)
    run = read_run(directory)
    parameters = Parameters.read(directory / "effective_params.yaml")
    tracks = read_tracks(directory)
    with ExitStack() as stack:
        result = stack.enter_context(open_recording(directory / "bag"))
        source = recording or Path(str(run.get("recording", "")))
        original = stack.enter_context(open_recording(source)) if source.exists() else None
        recordings = [result] if original is None else [original, result]
        camera_frame = camera_frame_of(original, metrics.recording.image_topic)
        truth = _ground_truth(options, recordings, camera_frame)
        problems = list(truth.notes)
        if original is None:
            problems.append(f"there is no recording at {source}: true depth and TF are not used")
        main = max(tracks, key=lambda segment: len(tracks[segment]))
        offset, offset_source = clock_offset(
            options.clock_offset, tracks[main], truth.track, options.offset_reach_s
        )
        compared = {
            segment: _Segment.of(segment, track, truth, offset, options)
            for segment, track in tracks.items()
        }
        headline = _headline(list(compared.values()), in_metres=metrics.result.unit == "m")
        depth = None
        if original is not None:
            depth = _compare_depth(
                directory, result, original, metrics, parameters, compared, options, problems
            )
    accuracy = schema.Accuracy(
        truth=schema.Truth(
            source=truth.source,
            kind=truth.kind,
            frame=truth.frame,
            moved_to_camera=truth.moved_to_camera,
            poses=len(truth.track),
            length=truth.track.length,
        ),
        tolerance_s=options.tolerance_s,
        clock_offset_s=offset,
        clock_offset_source=offset_source,
        alignment=headline,
        segments=[found.facts(options) for found in compared.values()],
        depth=depth,
        problems=problems,
    )
    _write_errors(directory / ERRORS_FILE, compared.values(), headline)
    metrics = metrics.model_copy(update={"accuracy": accuracy})
    (directory / METRICS_FILE).write_text(metrics.to_json(), encoding="utf-8")
    return metrics


def _headline(segments: Sequence[_Segment], *, in_metres: bool) -> AlignmentKind:
    """Return the alignment to quote; without a known scale only one is fair."""
    for alignment in ("se3", "origin", "none") if in_metres else ("sim3",):
        if any(alignment in segment.alignments for segment in segments):
            return alignment
    raise EvaluationError("; ".join(text for segment in segments for text in segment.problems))


def camera_frame_of(original: Recording | None, image_topic: str) -> str:
    """Return the frame that a recording's images are of; empty if nobody says."""
    if original is None or image_topic not in original.types:
        return ""
    image = original.first(image_topic)
    return "" if image is None else frames_of(image)[0]


def _ground_truth(
    options: EvaluationOptions, recordings: Sequence[Recording], camera_frame: str
) -> GroundTruth:
    source = options.ground_truth
    if source is None:
        named = (named_ground_truth(recording) for recording in recordings)
        source = next((topic for topic in named if topic is not None), None)
    if source is None:
        raise RecordingError(
            f"{recordings[0].path} has no topic that is called ground truth: name the topic or "
            "the file with --ground-truth"
        )
    return read_ground_truth(
        source,
        recordings,
        camera_frame=camera_frame,
        truth_frame=options.truth_frame,
        times=options.times,
    )


@dataclass
class _Segment:
    """One map segment, compared."""

    number: int
    track: Track
    truth: Track
    association: Association | None
    alignments: dict[AlignmentKind, AbsoluteErrors]
    drift: ScaleOverTime | None
    drift_window: float
    problems: list[str]

    @classmethod
    def of(
        cls,
        number: int,
        track: Track,
        truth: GroundTruth,
        offset: float,
        options: EvaluationOptions,
    ) -> _Segment:
        empty = Track()
        found = cls(number, empty, empty, None, {}, None, 0.0, [])
        shifted = [stamp - round(offset * 1e9) for stamp in track.stamps_ns]
        true = truth.at(shifted)
        try:
            found.association = associate(track, true, options.tolerance_s, offset)
        except EvaluationError as error:
            found.problems.append(f"segment {number}: {error}")
            return found
        found.track = track.at(found.association.own)
        found.truth = true.at(found.association.truth)
        for alignment in ALIGNMENTS:
            try:
                found.alignments[alignment] = absolute_errors(
                    found.track.matrices, found.truth.matrices, alignment
                )
            except EvaluationError as error:
                found.problems.append(f"segment {number}, {alignment} alignment: {error}")
        width = straightness(found.truth.positions)
        if width < _STRAIGHT and "se3" in found.alignments:
            found.problems.append(
                f"segment {number}: the true path is straight (its width is {width:.1%} of its "
                "length), so positions do not tell the turn about it: rotations after the se3 and "
                "sim3 alignments are arbitrary about that axis"
            )
        found.drift_window = _SCALE_WINDOW_SHARE * found.truth.length
        try:
            found.drift = scale_over_time(
                found.track.positions, found.truth.positions, found.drift_window
            )
        except EvaluationError as error:
            found.problems.append(f"segment {number}, scale drift: {error}")
        return found

    def facts(self, options: EvaluationOptions) -> schema.SegmentAccuracy:
        problems = list(self.problems)
        relative = {
            alignment: self._relative(errors, options, problems if index == 0 else [])
            for index, (alignment, errors) in enumerate(self.alignments.items())
        }
        return schema.SegmentAccuracy(
            segment=self.number,
            compared=len(self.track),
            truth_length=self.truth.length if len(self.truth) else None,
            largest_gap_s=(
                float(np.abs(self.association.gaps_s).max()) if self.association else None
            ),
            alignments={
                alignment: schema.AlignedAccuracy(
                    scale=errors.scale,
                    translation=_numbers(errors.translation),
                    rotation_deg=_numbers(errors.rotation),
                    relative=relative[alignment],
                )
                for alignment, errors in self.alignments.items()
            },
            scale_drift=(
                schema.ScaleDrift(
                    window=self.drift_window,
                    windows=len(self.drift.ratio),
                    change=self.drift.change,
                    spread=self.drift.spread,
                )
                if self.drift is not None
                else None
            ),
            problems=problems,
        )

    def _relative(
        self, errors: AbsoluteErrors, options: EvaluationOptions, problems: list[str]
    ) -> list[schema.RelativeError]:
        spans: list[tuple[Span, float]] = [
            ("frames", 1.0),
            *(("distance", delta) for delta in options.rpe_distances),
            *(("time", delta) for delta in options.rpe_times),
        ]
        found = []
        for span, delta in spans:
            way = progress(span, self.truth.positions, self.truth.seconds)
            try:
                pairs = pairs_apart(way, delta, tolerance=0.0 if span == "frames" else 0.1)
            except EvaluationError as error:
                problems.append(f"segment {self.number}, relative error by {span}: {error}")
                continue
            wrong = relative_errors(errors.aligned, self.truth.matrices, pairs)
            found.append(
                schema.RelativeError(
                    span=span,
                    delta=delta,
                    pairs=len(wrong.first),
                    translation=_numbers(wrong.translation),
                    rotation_deg=_numbers(wrong.rotation),
                )
            )
        return found


def _numbers(errors: Any) -> schema.Numbers:
    return schema.Numbers(**asdict(statistics(errors)))


def _compare_depth(
    directory: Path,
    result: Recording,
    original: Recording,
    metrics: schema.Metrics,
    parameters: Parameters,
    segments: dict[int, _Segment],
    options: EvaluationOptions,
    problems: list[str],
) -> schema.DepthAccuracy | None:
    """Compare the depth images, write depth_errors.csv, and keep the samples' true depth."""
    facts = metrics.recording
    topic = depth_topic(original, facts.image_topic, options.depth_topic)
    if topic is None:
        return None
    scales = {
        stamp: found.alignments["sim3"].scale
        for found in segments.values()
        if "sim3" in found.alignments
        for stamp in found.track.stamps_ns
    }
    in_metres = metrics.result.unit == "m"
    samples = Samples.read(directory / SAMPLES_FILE)
    truths = None if samples is None else np.full_like(samples.depths, np.nan)
    by_alignment: dict[str, list[DepthErrors]] = {}
    rows = []
    pairs = depth_pairs(
        result,
        original,
        topic,
        facts.camera_info_topic,
        parameters,
        tolerance_s=options.tolerance_s,
        rectified="image_rect" in facts.image_topic,
    )
    try:
        for pair in pairs:
            try:
                median = depth_errors(pair.depth, pair.truth)
            except EvaluationError:
                continue
            found = {"median": median}
            if pair.stamp_ns in scales:
                found["trajectory"] = depth_errors(pair.depth, pair.truth, scales[pair.stamp_ns])
            if in_metres:
                found["none"] = depth_errors(pair.depth, pair.truth, 1.0)
            for alignment, errors in found.items():
                by_alignment.setdefault(alignment, []).append(errors)
            rows.append((pair.stamp_ns, found))
            if samples is not None and truths is not None:
                for index in np.nonzero(samples.stamps_ns == pair.stamp_ns)[0]:
                    if truths[index].shape == pair.truth.shape:
                        truths[index] = pair.truth
    except QvggtError as error:
        problems.append(f"the depth of {topic} cannot be compared: {error}")
        return None
    if not rows:
        problems.append(
            f"no depth image of {topic} lies within {options.tolerance_s:g} s of a frame and "
            "shares valid pixels with it"
        )
        return None
    _write_depth_errors(directory / DEPTH_ERRORS_FILE, rows)
    if samples is not None:
        replace(samples, truths=truths).write(directory / SAMPLES_FILE)
    return schema.DepthAccuracy(
        topic=topic,
        frames=len(rows),
        alignments={
            alignment: schema.DepthNumbers(**vars(mean_depth_errors(by_alignment[alignment])))
            for alignment in ("none", "trajectory", "median")
            if alignment in by_alignment
        },
    )


_ERROR_COLUMNS = (
    "segment",
    "stamp_ns",
    "x",
    "y",
    "z",
    "truth_x",
    "truth_y",
    "truth_z",
    "translation_error",
    "rotation_error_deg",
    "scale_ratio",
)


def _write_errors(path: Path, segments: Iterable[_Segment], headline: AlignmentKind) -> None:
    """Write a line per compared pose: positions in the map, errors in the truth's unit."""
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_ERROR_COLUMNS)
        for segment in segments:
            if headline not in segment.alignments:
                continue
            errors = segment.alignments[headline]
            # The map's own coordinates are what every other file of the result is in.
            truth_in_map = _truth_in_map(segment, errors)
            ratios = [""] * len(segment.track)
            if segment.drift is not None:
                for index, ratio in zip(segment.drift.index, segment.drift.ratio, strict=True):
                    ratios[index] = repr(float(ratio))
            for index, stamp in enumerate(segment.track.stamps_ns):
                writer.writerow(
                    [
                        segment.number,
                        stamp,
                        *map(float, segment.track.positions[index]),
                        *map(float, truth_in_map[index]),
                        float(errors.translation[index]),
                        float(errors.rotation[index]),
                        ratios[index],
                    ]
                )


def _truth_in_map(segment: _Segment, errors: AbsoluteErrors) -> Any:
    first = segment.track.matrices[0].copy()
    first[:3, 3] *= errors.scale
    map_from_truth = first @ inverse(errors.aligned[0])
    moved = segment.truth.positions @ map_from_truth[:3, :3].T + map_from_truth[:3, 3]
    return moved / errors.scale


def _write_depth_errors(path: Path, rows: Sequence[tuple[int, dict[str, DepthErrors]]]) -> None:
    names = list(DepthErrors.__dataclass_fields__)
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stamp_ns", "scaled_by", *names])
        for stamp, found in rows:
            for alignment, errors in found.items():
                writer.writerow([stamp, alignment, *(getattr(errors, name) for name in names)])
