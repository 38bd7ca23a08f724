"""The content of metrics.json: its schema, its documentation, reading and writing."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.drift import Span
from qvggt_core.evaluate.trajectory import AlignmentKind
from qvggt_core.util.files import read_bounded_text

METRICS_VERSION = 2
"""Grows when a name goes or changes its meaning; new names may come without that."""

_MAX_BYTES = 1 << 26

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Numbers(_Part):
    """Errors in a few numbers."""

    rmse: float = Field(description="Root of the mean square.")
    mean: float = Field(description="Mean.")
    median: float = Field(description="Median.")
    std: float = Field(description="Standard deviation about the mean.")
    minimum: float = Field(description="Smallest.")
    maximum: float = Field(description="Largest.")


class RelativeError(_Part):
    """Relative pose error (RPE): motions over a fixed distance, time or number of frames."""

    span: Span = Field(description="What the poses of a pair are apart by.")
    delta: float = Field(description="How far apart: frames, metres of the true path, or seconds.")
    pairs: Count = Field(description="Number of pairs; one begins at every pose.")
    translation: Numbers = Field(description="Length of the wrong part, in the truth's unit.")
    rotation_deg: Numbers = Field(description="Angle of the wrong part, in degrees.")


class AlignedAccuracy(_Part):
    """Errors after one alignment."""

    scale: float = Field(description="Factor that the estimate was multiplied with.")
    translation: Numbers = Field(description="ATE: distances, in the truth's unit.")
    rotation_deg: Numbers = Field(description="ATE of the rotation: angles, in degrees.")
    relative: list[RelativeError] = Field(description="RPE, for each requested distance and time.")


class ScaleDrift(_Part):
    """How the map's scale changes along the path."""

    window: float = Field(description="Length of the true path in a window, in its unit.")
    windows: Count = Field(description="Number of windows; one begins at every pose.")
    change: float = Field(description="Scale of the last window by that of the first, minus 1.")
    spread: float = Field(description="Largest scale of a window by the smallest.")


class SegmentAccuracy(_Part):
    """One map segment against the truth."""

    segment: Count = Field(description="Number of the segment.")
    compared: Count = Field(description="Poses that have a true pose at their time.")
    truth_length: float | None = Field(description="Length of the true path between them.")
    largest_gap_s: float | None = Field(description="Largest difference of matched stamps.")
    alignments: dict[AlignmentKind, AlignedAccuracy] = Field(
        description="Errors per alignment: none, origin, scale, se3, sim3."
    )
    scale_drift: ScaleDrift | None = Field(description="Null where it is not defined.")
    problems: list[str] = Field(description="What could not be computed, and why.")


class DepthNumbers(_Part):
    """Mean errors of depth images, each image with the same weight."""

    abs_rel: float = Field(description="Mean of |estimate - truth| / truth.")
    rmse: float = Field(description="Root of the mean square error, in metres.")
    delta_1: Share = Field(description="Share of pixels within a factor of 1.25.")
    delta_2: Share = Field(description="Share of pixels within a factor of 1.25 squared.")
    delta_3: Share = Field(description="Share of pixels within a factor of 1.25 cubed.")
    scale: float = Field(description="Mean factor that the estimate was multiplied with.")
    valid: Share = Field(description="Share of the pixels with a true depth that have one.")


class DepthAccuracy(_Part):
    """Depth images against true ones."""

    topic: str = Field(description="Topic of the true depth.")
    frames: Count = Field(description="Number of compared images.")
    alignments: dict[Literal["none", "trajectory", "median"], DepthNumbers] = Field(
        description=(
            "Errors per scale: none (only where the map is in metres), that of the trajectory's "
            "Sim(3) alignment, and each image by the ratio of its medians."
        )
    )


class Truth(_Part):
    """Where the true poses come from."""

    source: str = Field(description="Topic, `/tf:PARENT.CHILD`, or name of the file.")
    kind: Literal["topic", "tf", "file"] = Field(description="What that is.")
    frame: str = Field(description="Name of the frame that moves; empty if unknown.")
    moved_to_camera: bool = Field(description="Whether TF's mounting of the camera was applied.")
    poses: Count = Field(description="Number of true poses.")
    length: float = Field(description="Length of their path, in their unit.")


class Accuracy(_Part):
    """The reconstruction against the truth."""

    truth: Truth = Field(description="Where the true poses come from.")
    tolerance_s: float = Field(description="Largest difference of stamps that belong together.")
    clock_offset_s: float = Field(description="Seconds added to the truth's stamps.")
    clock_offset_source: Literal["given", "first poses", "estimated"] = Field(
        description="Where the offset comes from."
    )
    alignment: AlignmentKind = Field(
        description="The one to quote: se3 where the map is in metres, sim3 where it is not."
    )
    segments: list[SegmentAccuracy] = Field(description="Each map segment.")
    depth: DepthAccuracy | None = Field(description="Null without true depth.")
    problems: list[str] = Field(description="What was assumed or could not be computed.")


class RecordingFacts(_Part):
    """What was reconstructed."""

    name: str = Field(description="Name of the recording.")
    image_topic: str = Field(description="Topic of the images.")
    camera_info_topic: str | None = Field(description="Topic of their calibration.")
    reference_topics: list[str] = Field(description="Topics with poses of another source.")
    odometry_topic: str | None = Field(
        None, description="Topic of the odometry that gave the scale; null if none was used."
    )
    scale_topics: list[str] = Field(
        default_factory=list, description="Other topics that lengths in metres were taken from."
    )
    imu_topic: str | None = Field(
        None, description="Topic of the IMU that was asked which way is up; null without."
    )
    focal_length_px: float | None = Field(
        None, description="Focal length that images without a calibration were given, pixels."
    )
    focal_length_sigma: float | None = Field(
        None, description="Standard deviation of its logarithm; 0 where the user gave it."
    )


class Result(_Part):
    """What was counted."""

    received: Count = Field(description="Image messages.")
    decoded: Count = Field(description="Images that became frames.")
    rejected: dict[str, int] = Field(description="Messages that could not be used, per reason.")
    uncalibrated: Count = Field(description="Frames without a calibration.")
    windows: Count = Field(description="Runs of the network.")
    published: Count = Field(description="Frames with geometry.")
    keyframes: Count = Field(description="Of these, those that stayed in the window.")
    gated: Count = Field(description="Frames dropped without geometry.")
    segments: Count = Field(description="Map segments.")
    metres_per_unit: float | None = Field(description="Scale of the map; null while unknown.")
    scale_source: str = Field(description="The source that has the largest part in it.")
    scale_state: Literal["unknown", "estimating", "metric", "stale"] | None = Field(
        None, description="How well it is known at the end; see docs/metres.md."
    )
    scale_sigma: float | None = Field(
        None, description="Standard deviation of its logarithm at the end; null while unknown."
    )
    scale_sources: list[str] = Field(
        default_factory=list, description="All sources that have a part in it."
    )
    up_source: str = Field(
        "first camera",
        description="What the map's vertical stands on: imu, ground plane, or first camera, which "
        "is then taken to be level.",
    )
    up_sigma_deg: float | None = Field(
        None, description="Standard deviation of the vertical; null where it is only taken so."
    )
    loops_accepted: int = Field(0, description="Places that were recognised when seen again.")
    loops_rejected: dict[str, int] = Field(
        default_factory=dict,
        description="Pairs of keyframes that were compared and taken for two places, per reason.",
    )
    loop_shift: float | None = Field(
        None, description="How far the last correction by loops moved the camera; null without one."
    )
    localisation: str | None = Field(
        None, description="Whether the camera was found in the loaded map; null without one."
    )
    unit: Literal["m", "units"] = Field(description="Unit of lengths in the map.")
    segment_frames: list[int] = Field(description="Frames of each segment.")
    path_lengths: list[float] = Field(description="Length of the path in each segment.")
    duration_s: float = Field(description="Time that the segments span.")
    map_points: list[int] = Field(description="Points of each segment's map.")
    interrupted: bool = Field(description="Whether the replay was stopped before the end.")


class Coverage(_Part):
    """What part of the recording the reconstruction covers."""

    frames: Share = Field(description="Frames with geometry by received images.")
    dropped: Count = Field(
        description="Images without geometry: unusable, skipped in haste, or showing nothing new."
    )
    depth: Share = Field(description="Valid pixels of all depth images.")
    largest_gap_s: float = Field(description="Longest time between poses that follow each other.")
    delay_images_median: float | None = Field(
        description="Images that came after a frame and before its geometry; null if not known."
    )
    delay_images_maximum: Count | None = Field(description="The most of these.")


class ConfirmationFacts(_Part):
    """What the images say of the network, see docs/confirmation.md."""

    verdicts: dict[str, int] = Field(
        description="Windows per verdict, before refinement: confirmed, undecided, contradicted."
    )
    lost: Count = Field(description="Published frames whose pose is only the last known one.")
    withheld: Count = Field(description="Frames kept back because the images contradict them.")


class Metrics(_Part):
    """The content of metrics.json.

    It depends on the recording, the network and the parameters alone. What depends on the machine
    and the moment (times, memory, paths, versions) is in run.json.
    """

    format: Literal["qvggt-metrics"] = Field("qvggt-metrics", description="Always this.")
    version: int = Field(METRICS_VERSION, description="Version of this schema.")
    recording: RecordingFacts = Field(description="What was reconstructed.")
    result: Result = Field(description="What was counted.")
    coverage: Coverage = Field(description="What part of the recording is covered.")
    confirmation: ConfirmationFacts | None = Field(
        None, description="Left out where the parameter `confirm` is off."
    )
    accuracy: Accuracy | None = Field(None, description="Null without a ground truth.")
    events: list[str] = Field(description="What happened on the way.")
    warnings: list[str] = Field(description="What an operator should know.")
    model: dict[str, Any] = Field(description="Facts about the network, from its file.")

    def to_json(self) -> str:
        """Return the text of metrics.json."""
        return self.model_dump_json(indent=2) + "\n"

    @model_serializer(mode="wrap")
    def _without_what_was_not_asked(self, serialize: SerializerFunctionWrapHandler) -> Any:
        content = serialize(self)
        if content.get("confirmation", 0) is None:
            del content["confirmation"]
        return content

    @classmethod
    def read(cls, path: Path) -> Metrics:
        """Read a metrics.json.

        Raises:
            EvaluationError: it is not there, of another version, or not of this schema.
        """
        try:
            text = read_bounded_text(path, _MAX_BYTES)
        except (OSError, ValueError) as error:
            raise EvaluationError(f"cannot read the metrics {path}: {error}") from error
        try:
            metrics = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise EvaluationError(
                f"{path} is no metrics.json of version {METRICS_VERSION} ({where}: "
                f"{first['msg']}): reconstruct again"
            ) from error
        if metrics.version > METRICS_VERSION:
            raise EvaluationError(
                f"{path} is of version {metrics.version}, this qvggt knows {METRICS_VERSION}: "
                "use a newer one"
            )
        return metrics


_PARTS: tuple[type[_Part], ...] = (
    Metrics,
    RecordingFacts,
    Result,
    Coverage,
    ConfirmationFacts,
    Accuracy,
    Truth,
    SegmentAccuracy,
    AlignedAccuracy,
    RelativeError,
    ScaleDrift,
    DepthAccuracy,
    DepthNumbers,
    Numbers,
)


def documentation() -> str:
    """Return docs/metrics.md: every name of the schema with its type and meaning."""
    lines = [
        "# metrics.json",
        "",
        "<!-- Written by `python -m qvggt_core.results.schema`; a test compares them. -->",
        "",
        f"Version {METRICS_VERSION}. The version grows when a name goes or changes its meaning; "
        "new names may come without that, so readers should skip what they do not know.",
        "",
        "The same recording, network and parameters give the same bytes, on one process or on "
        "many. What depends on the machine and the moment is beside it, in `run.json`, which has "
        "no stable form: `recording` (path), `timings` (seconds, memory), `series` (latency and "
        "memory over time), `parameters` (effective ones), `versions`.",
        "",
        "Beside it, where there is a ground truth: `errors.csv`, a line per compared pose, and "
        "`depth_errors.csv`, a line per compared depth image.",
    ]
    for part in _PARTS:
        lines += ["", f"## {part.__name__}", ""]
        lines += [" ".join((part.__doc__ or "").split()), ""]
        lines += ["| name | type | what it is |", "|---|---|---|"]
        for name, field in part.model_fields.items():
            lines.append(f"| `{name}` | {_type_name(field.annotation)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[1])} per name"
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, _Part):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {float: "number", int: "integer", str: "text", bool: "boolean", Any: "anything"}[kind]


if __name__ == "__main__":
    import sys

    sys.stdout.write(documentation())
