"""A result of a reconstruction against the truth: poses by segment, and depth images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from qvggt_core.errors import EvaluationError, QvggtError
from qvggt_core.evaluate.association import (
    Association,
    associate,
    estimate_offset,
    first_to_first,
)
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
from qvggt_core.results import schema
from qvggt_core.results.errors import DepthErrorRow, PoseErrors
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.result import Result
from qvggt_core.results.samples import Samples
from qvggt_core.results.truth import DepthPair, DepthTruth, GroundTruth

LEAST_POSES = 10
"""Associated poses from which errors are given: two always fit, whatever the estimate is."""

_SCALE_WINDOW_SHARE = 0.2
_STRAIGHT = 0.05
_OFFSET_REACH_S = 5.0
# No source of the scale is off by so much, and a foot is 0.3 m.
_OTHER_UNIT = 3.0

OffsetSource = Literal["given", "first poses", "estimated"]


def evaluate(
    result: Result,
    truth: GroundTruth,
    options: EvaluationOptions,
    *,
    depth: DepthTruth | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Compare a result with the truth.

    Args:
        result: in memory, or read from its directory.
        truth: the true poses.
        options: tolerance, clock offset and spans of relative errors.
        depth: true depth images beside those of the result.
        notes: sentences for `problems`, about what was assumed or left out.

    Returns:
        The result with `accuracy` in its metrics, errors, and the samples' true depth.

    Raises:
        EvaluationError: nothing can be compared; the message has the reason.
    """
    truth = truth.steady()
    offset, offset_source = _clock_offset(options.clock_offset, result.track, truth.track)
    segments = [
        _Segment.of(number, track, truth, offset, options)
        for number, track in result.tracks.items()
    ]
    headline = _headline(segments, in_metres=result.metrics.result.unit == "m")
    problems = [*truth.notes, *notes]
    if result.metrics.result.unit == "m":
        problems += [text for found in segments if (text := found.other_unit())]
    compared = None
    if depth is not None:
        compared = _DepthComparison(result, segments)
        compared.run(depth, options.tolerance_s, problems)
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
        segments=[found.facts(options) for found in segments],
        depth=None if compared is None or depth is None else compared.facts(depth.source),
        problems=problems,
    )
    errors = {each.number: each.errors(headline) for each in segments if headline in each.errors_by}
    evaluated = replace(
        result,
        metrics=result.metrics.model_copy(update={"accuracy": accuracy}),
        pose_errors=errors,
        depth_errors=(),
    )
    return evaluated if compared is None else compared.added_to(evaluated)


def _clock_offset(choice: str, track: Track, truth: Track) -> tuple[float, OffsetSource]:
    """Return the seconds to add to the truth's stamps, and where the number comes from."""
    if choice == "first":
        return first_to_first(track, truth), "first poses"
    if choice == "estimate":
        return estimate_offset(track, truth, _OFFSET_REACH_S), "estimated"
    try:
        seconds = float(choice)
    except ValueError:
        seconds = np.nan
    if not np.isfinite(seconds):
        raise EvaluationError(
            f"a clock offset of {choice!r} is no number: give seconds, 'first' or 'estimate'"
        )
    return seconds, "given"


def _headline(segments: Sequence[_Segment], *, in_metres: bool) -> AlignmentKind:
    """Return the alignment to quote; without a known scale only one is fair."""
    for alignment in ("se3", "origin", "none") if in_metres else ("sim3",):
        if any(alignment in segment.errors_by for segment in segments):
            return alignment
    raise EvaluationError("; ".join(text for segment in segments for text in segment.problems))


@dataclass
class _Segment:
    """One map segment, compared."""

    number: int
    track: Track = field(default_factory=Track)
    truth: Track = field(default_factory=Track)
    association: Association | None = None
    errors_by: dict[AlignmentKind, AbsoluteErrors] = field(default_factory=dict)
    drift: ScaleOverTime | None = None
    drift_window: float = 0.0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        number: int,
        track: Track,
        truth: GroundTruth,
        offset: float,
        options: EvaluationOptions,
    ) -> _Segment:
        found = cls(number)
        true = truth.at([stamp - round(offset * 1e9) for stamp in track.stamps_ns])
        try:
            found.association = associate(track, true, options.tolerance_s, offset)
        except EvaluationError as error:
            found.problems.append(f"segment {number}: {error}")
            return found
        count = len(found.association.own)
        if count < LEAST_POSES:
            found.problems.append(
                f"segment {number}: only {count} of its {len(track)} poses have a true one: fewer "
                f"than {LEAST_POSES} fit whatever is estimated, so there is no score"
            )
            return found
        found.track = track.at(found.association.own)
        found.truth = true.at(found.association.truth)
        found._align()
        found._measure_drift()
        return found

    def _align(self) -> None:
        for alignment in ALIGNMENTS:
            try:
                self.errors_by[alignment] = absolute_errors(
                    self.track.matrices, self.truth.matrices, alignment
                )
            except EvaluationError as error:
                self.problems.append(f"segment {self.number}, {alignment} alignment: {error}")
        width = straightness(self.truth.positions)
        if width < _STRAIGHT and "se3" in self.errors_by:
            self.problems.append(
                f"segment {self.number}: the true path is straight (its width is {width:.1%} of "
                "its length), so positions do not fix the turn about it: rotations after the se3 "
                "and sim3 alignments are arbitrary about that axis"
            )

    def _measure_drift(self) -> None:
        self.drift_window = _SCALE_WINDOW_SHARE * self.truth.length
        try:
            self.drift = scale_over_time(
                self.track.positions, self.truth.positions, self.drift_window
            )
        except EvaluationError as error:
            self.problems.append(f"segment {self.number}, scale drift: {error}")

    def other_unit(self) -> str:
        """Return a sentence if the truth can hardly be in the map's metres; else nothing."""
        scale = self.errors_by["sim3"].scale if "sim3" in self.errors_by else 1.0
        if 1 / _OTHER_UNIT < scale < _OTHER_UNIT:
            return ""
        return (
            f"segment {self.number}: the true path is {scale:.3g} times as long as that of the map "
            "in metres: the truth is in another unit (millimetres?), or the scale is wrong"
        )

    def facts(self, options: EvaluationOptions) -> schema.SegmentAccuracy:
        problems = list(self.problems)
        relative = {
            alignment: self._relative(errors, options, problems if index == 0 else [])
            for index, (alignment, errors) in enumerate(self.errors_by.items())
        }
        gaps = None if self.association is None else self.association.gaps_s
        return schema.SegmentAccuracy(
            segment=self.number,
            compared=len(self.track),
            truth_length=self.truth.length if len(self.truth) else None,
            largest_gap_s=None if gaps is None else float(np.abs(gaps).max()),
            alignments={
                alignment: schema.AlignedAccuracy(
                    scale=errors.scale,
                    translation=_numbers(errors.translation),
                    rotation_deg=_numbers(errors.rotation),
                    relative=relative[alignment],
                )
                for alignment, errors in self.errors_by.items()
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

    def errors(self, alignment: AlignmentKind) -> PoseErrors:
        """Return the errors pose by pose, in the map's own coordinates as all other files."""
        errors = self.errors_by[alignment]
        ratio = np.full(len(self.track), np.nan)
        if self.drift is not None:
            ratio[self.drift.index] = self.drift.ratio
        first = self.track.matrices[0].copy()
        first[:3, 3] *= errors.scale
        map_from_truth = first @ inverse(errors.aligned[0])
        moved = self.truth.positions @ map_from_truth[:3, :3].T + map_from_truth[:3, 3]
        return PoseErrors(
            segment=self.number,
            stamps_ns=np.array(self.track.stamps_ns, dtype=np.int64),
            positions=self.track.positions,
            truth=moved / errors.scale,
            translation=errors.translation,
            rotation=errors.rotation,
            scale_ratio=ratio,
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
            along = progress(span, self.truth.positions, self.truth.seconds)
            try:
                pairs = pairs_apart(along, delta, tolerance=0.0 if span == "frames" else 0.1)
            except EvaluationError as error:
                problems.append(f"segment {self.number}, relative error by {span}: {error}")
                continue
            relative = relative_errors(errors.aligned, self.truth.matrices, pairs)
            found.append(
                schema.RelativeError(
                    span=span,
                    delta=delta,
                    pairs=len(relative.first),
                    translation=_numbers(relative.translation),
                    rotation_deg=_numbers(relative.rotation),
                )
            )
        return found


def _numbers(errors: Any) -> schema.Numbers:
    return schema.Numbers(**asdict(statistics(errors)))


class _DepthComparison:
    """Compares depth images one by one, and keeps the true depth of the sample frames."""

    def __init__(self, result: Result, segments: Sequence[_Segment]) -> None:
        self._scales = {
            stamp: found.errors_by["sim3"].scale
            for found in segments
            if "sim3" in found.errors_by
            for stamp in found.track.stamps_ns
        }
        self._in_metres = result.metrics.result.unit == "m"
        self._samples = result.load_samples()
        self._truths = None if self._samples is None else np.full_like(self._samples.depths, np.nan)
        self._rows: list[DepthErrorRow] = []

    def run(self, depth: DepthTruth, tolerance_s: float, problems: list[str]) -> None:
        """Compare all pairs; add to `problems` why there is nothing."""
        try:
            for pair in depth.pairs:
                self._add(pair)
        except QvggtError as error:
            problems.append(f"the depth of {depth.source} cannot be compared: {error}")
            self._rows = []
            return
        if not self._rows:
            problems.append(
                f"no depth image of {depth.source} lies within {tolerance_s:g} s of a frame and "
                "shares valid pixels with it"
            )

    def _add(self, pair: DepthPair) -> None:
        scales: dict[str, float | None] = {"median": None}
        if pair.stamp_ns in self._scales:
            scales["trajectory"] = self._scales[pair.stamp_ns]
        if self._in_metres:
            scales["none"] = 1.0
        for name, scale in scales.items():
            try:
                errors = depth_errors(pair.depth, pair.truth, scale)
            except EvaluationError:
                return
            self._rows.append(DepthErrorRow(pair.stamp_ns, name, errors))
        if self._samples is not None and self._truths is not None:
            for index in np.nonzero(self._samples.stamps_ns == pair.stamp_ns)[0]:
                if self._truths[index].shape == pair.truth.shape:
                    self._truths[index] = pair.truth

    def facts(self, source: str) -> schema.DepthAccuracy | None:
        by_scaling: dict[str, list[DepthErrors]] = {}
        for row in self._rows:
            by_scaling.setdefault(row.scaled_by, []).append(row.errors)
        if not by_scaling:
            return None
        return schema.DepthAccuracy(
            topic=source,
            frames=len(by_scaling["median"]),
            alignments={
                name: schema.DepthNumbers(**vars(mean_depth_errors(by_scaling[name])))
                for name in ("none", "trajectory", "median")
                if name in by_scaling
            },
        )

    def added_to(self, result: Result) -> Result:
        """Return the result with the errors of its depth and the truth of its samples."""
        if not self._rows:
            return result
        samples: Samples | None = None
        if self._samples is not None:
            samples = replace(self._samples, truths=self._truths)
        return replace(result, depth_errors=self._rows, load_samples=lambda: samples)
