"""`qvggt evaluate`: a result against its ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qvggt_core.results.options import EvaluationOptions
from qvggt_ros.cli import console


def evaluate(
    result: Annotated[
        Path, typer.Argument(help="Directory that `qvggt replay` or `qvggt collect` made.")
    ],
    options: EvaluationOptions,
    recording: Annotated[
        Path | None, typer.Option(help="What was reconstructed, if it is elsewhere now.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write pictures and report.html anew.")] = True,
) -> None:
    """Compare a result with the ground truth; metrics.json and report.html hold what is found."""
    from qvggt_core.report import write_report
    from qvggt_core.results.layout import METRICS_FILE
    from qvggt_ros.evaluation import evaluate_directory

    with console.err.status("comparing"):
        compared = evaluate_directory(result, options, recording)
        files = [result / METRICS_FILE, *(write_report(compared, result) if report else ())]
    metrics = compared.metrics.model_dump()
    console.print_facts(str(result), accuracy_rows(metrics))
    for problem in problems(metrics["accuracy"]):
        console.note("[yellow]note:[/]", problem)
    console.wrote(*files)


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
            *_scale_free_rows(which, accuracy["alignment"], segment["alignments"]),
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


def _scale_free_rows(
    which: str, quoted: str, alignments: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return what the quoted error would be if the scale were the truth's."""
    free = alignments.get("sim3")
    if quoted == "sim3" or free is None:
        return []
    text = f"{free['translation']['rmse']:.4g} m, the truth is {free['scale']:.4f} times as long"
    return [(f"ATE{which}, rmse with a free scale", text)]


_SCALED = {
    "none": "as it is",
    "trajectory": "scaled by trajectory",
    "median": "scaled by median",
}
_UNITS = {"frames": "frame", "distance": "m", "time": "s"}


def problems(accuracy: Mapping[str, Any] | None) -> Iterable[str]:
    """Yield what could not be compared, and why."""
    if accuracy is None:
        return
    yield from accuracy["problems"]
    for segment in accuracy["segments"]:
        yield from segment["problems"]
