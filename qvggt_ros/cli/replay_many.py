"""`qvggt replay-many`: many recordings in, a result each, and a page that compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_ros.cli import console
from qvggt_ros.cli.evaluate import (
    ClockOffset,
    GroundTruth,
    RpeDistances,
    RpeTimes,
    Tolerance,
    TruthFrame,
    evaluation_options,
)
from qvggt_ros.cli.options import Checkpoint, Evaluate, ImageTopic, ParameterFile, Settings
from qvggt_ros.cli.parameters import read_parameters

if TYPE_CHECKING:
    from qvggt_ros.drivers.batch import Job, Outcome

_PRINTED = ("run", "frames", "ATE rmse (m)", "by length", "rotation (deg)", "AbsRel", "images/s")


def replay_many(
    bags: Annotated[list[Path], typer.Argument(help="Recordings.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the results.")],
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster instead (extra: ray); 'local' starts one on this machine.",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(help="Further tries for a bag that failed for what may pass.")
    ] = 1,
    resume: Annotated[bool, typer.Option(help="Keep results that are there already.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace results that are there already.")
    ] = False,
    checkpoint: Checkpoint = None,
    params: ParameterFile = None,
    settings: Settings = None,
    image_topic: ImageTopic = None,
    odometry: Annotated[
        bool, typer.Option("--odometry", help="Take the scale from the recordings' odometry.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="End each after so many images.")] = None,
    report: Annotated[bool, typer.Option(help="Write a report for each.")] = True,
    evaluate: Evaluate = None,
    ground_truth: GroundTruth = None,
    truth_frame: TruthFrame = "",
    tolerance: Tolerance = 0.01,
    clock_offset: ClockOffset = "0",
    rpe_distance: RpeDistances = None,
    rpe_time: RpeTimes = None,
) -> None:
    """Reconstruct many recordings; a bag that fails is named and costs only itself.

    In --ground-truth, {name} stands for the name of the recording. Each process computes with one
    thread unless the parameters say otherwise, so that the results are the same however many work.
    """
    from qvggt_ros.drivers.batch import (
        Job,
        output_names,
        run_on_processes,
        run_on_ray,
        with_one_thread,
    )

    parameters = with_one_thread(read_parameters(params, settings or [], checkpoint))
    names = output_names(bags)
    jobs = [
        Job(
            bag,
            output / name,
            parameters,
            None
            if evaluate is False
            else evaluation_options(
                ground_truth and ground_truth.replace("{name}", name),
                truth_frame=truth_frame,
                truth_times=None,
                tolerance=tolerance,
                clock_offset=clock_offset,
                rpe_distance=rpe_distance,
                rpe_time=rpe_time,
                depth_topic=None,
            ),
            truth_required=bool(evaluate) or ground_truth is not None,
            options={
                "image_topic": image_topic,
                "use_odometry": odometry,
                "limit": limit,
                "report": report,
                "overwrite": overwrite,
            },
        )
        for bag, name in zip(bags, names, strict=True)
    ]
    kept = [job for job in jobs if resume and (job.output / "metrics.json").exists()]
    todo = [job for job in jobs if job not in kept]
    outcomes: list[Outcome] = []
    with (
        console.stop_on_interrupt() as stop,
        console.progress("reconstructing", "recordings") as progress,
    ):
        run = (
            run_on_processes(todo, workers, retries=retries, stop=stop)
            if ray is None
            else run_on_ray(todo, ray, retries=retries, stop=stop)
        )
        for outcome in run:
            outcomes.append(outcome)
            progress(len(outcomes), len(todo))
        interrupted = stop()
    failed = [outcome for outcome in outcomes if outcome.error]
    done = {job.output for job in kept} | {o.job.output for o in outcomes if not o.error}
    results = [job.output for job in jobs if job.output in done]
    output.mkdir(parents=True, exist_ok=True)
    _write_summary(output / "summary.json", jobs, outcomes, kept)
    if results:
        print_results(results)
        _write_page(output / "compare.html", output, results, failed)
    for outcome in failed:
        console.err.print(
            f"[bold red]failed:[/] {escape(str(outcome.job.bag))} after {outcome.attempts} "
            f"{'try' if outcome.attempts == 1 else 'tries'}: {escape(outcome.error)}",
            soft_wrap=True,
            highlight=False,
        )
    console.out.print(f"{len(results)} of {len(jobs)} recordings reconstructed")
    console.out.print(f"wrote {output / 'summary.json'}", soft_wrap=True, highlight=False)
    if interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)
    if failed:
        raise typer.Exit(console.EXIT_SOME_FAILED)


def _write_summary(
    path: Path, jobs: Sequence[Job], outcomes: Sequence[Outcome], kept: Sequence[Job]
) -> None:
    known = {outcome.job.output: outcome for outcome in outcomes}
    entries = []
    for job in jobs:
        outcome = known.get(job.output)
        state = "kept" if job in kept else "not begun" if outcome is None else "done"
        entry: dict[str, Any] = {"recording": str(job.bag), "result": job.output.name}
        if outcome is not None:
            entry |= {"attempts": outcome.attempts, "seconds": round(outcome.seconds, 3)}
            if outcome.error:
                state, entry["error"] = "failed", outcome.error
        entries.append({**entry, "state": state})
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _write_page(
    path: Path, output: Path, results: Sequence[Path], failed: Sequence[Outcome]
) -> None:
    from qvggt_core.report import write_comparison

    failures = [f"{outcome.job.bag} failed: {outcome.error}" for outcome in failed]
    write_comparison(path, results, title=output.resolve().name, failures=failures)
    console.out.print(f"wrote {path}", soft_wrap=True, highlight=False)


def print_results(results: Sequence[Path]) -> None:
    """Print a row of numbers per result; the page has more of them."""
    from qvggt_core.report.comparison import table

    heads, rows = table(results)
    shown = [index for index, head in enumerate(heads) if head in _PRINTED]
    printed = Table()
    for index in shown:
        printed.add_column(heads[index], justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        printed.add_row(*(escape(row[index]) for index in shown))
    console.out.print(printed)
