"""`qvggt evaluate`: a result against its ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_ros.cli import console

if TYPE_CHECKING:
    from qvggt_ros.evaluation import EvaluationOptions

GroundTruth = Annotated[
    str | None,
    typer.Option(
        help="Topic (PoseStamped, Odometry, TransformStamped), /tf:PARENT.CHILD, or a TUM, EuRoC "
        "or KITTI file; the topic that is called ground truth if not given."
    ),
]
TruthFrame = Annotated[
    str,
    typer.Option(
        help="Frame that the true poses are of, where messages do not say; TF moves them to the "
        "camera."
    ),
]
TruthTimes = Annotated[
    Path | None, typer.Option(help="Times of a KITTI file; times.txt beside it if not given.")
]
Tolerance = Annotated[
    float, typer.Option(help="Seconds that stamps which belong together may differ.")
]
ClockOffset = Annotated[
    str,
    typer.Option(
        help="Seconds to add to the truth's stamps; 'first': both begin at once; 'estimate': "
        "found from the motion."
    ),
]
RpeDistances = Annotated[
    list[float] | None,
    typer.Option(help="Relative errors over so many metres; may be repeated. 1 if not given."),
]
RpeTimes = Annotated[
    list[float] | None,
    typer.Option(help="Relative errors over so many seconds; may be repeated. 1 if not given."),
]
DepthTopic = Annotated[
    str | None,
    typer.Option(help="True depth; found by type in the camera's frame if not given."),
]


def evaluate(
    result: Annotated[
        Path, typer.Argument(help="Directory that `qvggt replay` or `qvggt collect` made.")
    ],
    ground_truth: GroundTruth = None,
    truth_frame: TruthFrame = "",
    truth_times: TruthTimes = None,
    tolerance: Tolerance = 0.01,
    clock_offset: ClockOffset = "0",
    rpe_distance: RpeDistances = None,
    rpe_time: RpeTimes = None,
    depth_topic: DepthTopic = None,
    recording: Annotated[
        Path | None, typer.Option(help="What was reconstructed, if it is elsewhere now.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write pictures and report.html anew.")] = True,
) -> None:
    """Compare a result with the ground truth; its metrics.json and report.html tell it."""
    from qvggt_core.report import write_report
    from qvggt_ros.evaluation import METRICS_FILE
    from qvggt_ros.evaluation import evaluate as evaluate_result

    options = evaluation_options(
        ground_truth,
        truth_frame=truth_frame,
        truth_times=truth_times,
        tolerance=tolerance,
        clock_offset=clock_offset,
        rpe_distance=rpe_distance,
        rpe_time=rpe_time,
        depth_topic=depth_topic,
    )
    with console.err.status("comparing"):
        metrics = evaluate_result(result, options, recording)
        files = [result / METRICS_FILE, *(write_report(result) if report else ())]
    print_table(str(result), accuracy_rows(metrics.model_dump()))
    if metrics.accuracy is not None:
        for problem in _problems(metrics.model_dump()["accuracy"]):
            console.err.print(f"[yellow]note:[/] {escape(problem)}", soft_wrap=True)
    for file in files:
        console.out.print(f"wrote {file}", soft_wrap=True, highlight=False)


def evaluation_options(
    ground_truth: str | None,
    *,
    truth_frame: str,
    truth_times: Path | None,
    tolerance: float,
    clock_offset: str,
    rpe_distance: list[float] | None,
    rpe_time: list[float] | None,
    depth_topic: str | None,
) -> EvaluationOptions:
    """Return the options of the command line."""
    from qvggt_ros.evaluation import EvaluationOptions

    return EvaluationOptions(
        ground_truth=ground_truth,
        truth_frame=truth_frame,
        times=truth_times,
        tolerance_s=tolerance,
        clock_offset=clock_offset,
        rpe_distances=tuple(rpe_distance or (1.0,)),
        rpe_times=tuple(rpe_time or (1.0,)),
        depth_topic=depth_topic,
    )


def accuracy_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a table for the errors in the content of metrics.json."""
    accuracy = metrics["accuracy"]
    if accuracy is None:
        return []
    name = accuracy["alignment"]
    rows = [("ground truth", f"{accuracy['truth']['source']}, {name} alignment")]
    for segment in accuracy["segments"]:
        found = segment["alignments"].get(name)
        which = f" of segment {segment['segment']}" if len(accuracy["segments"]) > 1 else ""
        if found is None:
            rows.append((f"ATE{which}", "-"))
            continue
        rmse, length = found["translation"]["rmse"], segment["truth_length"]
        share = f", {rmse / length:.1%} of {length:.2f} m" if length else ""
        rows += [
            (f"ATE{which}, rmse", f"{rmse:.4g} m{share}"),
            (f"rotation{which}, rmse", f"{found['rotation_deg']['rmse']:.3g} deg"),
            (f"poses compared{which}", f"{segment['compared']:,}"),
        ]
        rows += [
            (
                f"RPE{which} over {relative['delta']:g} {_UNITS[relative['span']]}, rmse",
                f"{relative['translation']['rmse']:.4g} m, "
                f"{relative['rotation_deg']['rmse']:.3g} deg",
            )
            for relative in found["relative"]
        ]
        if drift := segment["scale_drift"]:
            rows.append((f"scale{which}, first to last", f"{drift['change']:+.1%}"))
    if depth := accuracy["depth"]:
        for scaled_by, errors in depth["alignments"].items():
            rows.append(
                (
                    f"depth, {_SCALED[scaled_by]}",
                    f"AbsRel {errors['abs_rel']:.4f}, RMSE {errors['rmse']:.3f} m, "
                    f"{errors['delta_1']:.1%} within 1.25",
                )
            )
    return rows


_SCALED = {
    "none": "as it is",
    "trajectory": "scaled by trajectory",
    "median": "scaled by median",
}
_UNITS = {"frames": "frame", "distance": "m", "time": "s"}


def _problems(accuracy: Mapping[str, Any]) -> Iterable[str]:
    yield from accuracy["problems"]
    for segment in accuracy["segments"]:
        yield from segment["problems"]


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values."""
    table = Table(show_header=False, title=escape(title), title_justify="left")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    console.out.print(table)
