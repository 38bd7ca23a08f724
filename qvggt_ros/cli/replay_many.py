"""`qvggt replay-many`: many recordings in, a result each, and a page that compares them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvggt_core.errors import OutputError
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.util.files import write_atomically
from qvggt_core.util.options import option
from qvggt_core.util.output_files import directory_of
from qvggt_ros.cli import console
from qvggt_ros.cli.options import Evaluate, NetworkOptions, OutputDirectory
from qvggt_ros.drivers.options import ReplayOptions

if TYPE_CHECKING:
    from qvggt_core.results.result import Result
    from qvggt_ros.drivers.batch import Job, Outcome

NO_OPTIONS = ("camera_info_topic", "storage", "times", "depth_topic")
"""Options of `qvggt replay` that name something of one recording."""

_FILES = ("summary.json", "compare.html")
_PRINTED = ("run", "frames", "ATE rmse (m)", "by length", "rotation (deg)", "AbsRel", "images/s")


@dataclass(frozen=True)
class BatchOptions:
    """Who works, and what is done again."""

    workers: int = option(1, "Processes on this machine.")
    ray: str | None = option(
        None,
        "Ray cluster instead (extra: ray); 'local' starts one on this machine.",
        metavar="ADDRESS",
    )
    retries: int = option(1, "Further tries for a bag that failed for what may pass.")
    resume: bool = option(False, "Keep results that are there already.")


def replay_many(
    bags: Annotated[list[Path], typer.Argument(help="Recordings.")],
    output: OutputDirectory,
    batch: BatchOptions,
    network: NetworkOptions,
    options: ReplayOptions,
    compared: EvaluationOptions,
    evaluate: Evaluate = None,
) -> None:
    """Reconstruct many recordings; a bag that fails is named, and the others are not affected.

    In --ground-truth, {name} stands for the name of the recording. Each process computes with one
    thread unless a parameter sets more, so that the results are the same however many work.
    """
    from qvggt_ros.drivers.batch import (
        Job,
        former_results,
        output_names,
        with_one_thread,
    )
    from qvggt_ros.drivers.replay import Comparison

    _check_output(output, bags)
    parameters = with_one_thread(network.parameters())
    truth = compared.ground_truth
    jobs = [
        Job(
            bag,
            output / name,
            parameters,
            options,
            Comparison.requested(
                evaluate,
                replace(compared, ground_truth=truth and truth.replace("{name}", name)),
            ),
        )
        for bag, name in zip(bags, output_names(bags), strict=True)
    ]
    kept, outcomes = former_results(jobs) if batch.resume else ([], [])
    settled = {job.output for job in kept} | {outcome.job.output for outcome in outcomes}
    todo = [job for job in jobs if job.output not in settled]
    with (
        console.stop_on_interrupt() as stop,
        console.progress("reconstructing", "recordings") as progress,
    ):
        for outcome in _run(todo, batch, stop):
            outcomes.append(outcome)
            progress(len(outcomes), len(jobs) - len(kept))
        interrupted = stop()
    _print_results(output, jobs, outcomes, kept)
    if interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(console.EXIT_SOME_FAILED)


def _run(jobs: Sequence[Job], options: BatchOptions, stop: Any) -> Iterator[Outcome]:
    from qvggt_ros.drivers.batch import Batch, run_on_processes, run_on_ray

    batch = Batch(jobs, retries=options.retries, stop=stop)
    if options.ray is None:
        return run_on_processes(batch, options.workers)
    return run_on_ray(batch, options.ray)


def _check_output(output: Path, bags: Sequence[Path]) -> None:
    """Check that neither a recording nor files of others are written to, before hours of work."""
    for bag in bags:
        if bag.is_dir() and output.resolve() == bag.resolve():
            raise OutputError(f"the output {output} is the recording {bag}: choose another")
    if output.is_dir():
        directory_of(output, _FILES, _is_summary)


def _is_summary(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(
        isinstance(entry, dict) and "recording" in entry for entry in found
    )


def _print_results(
    output: Path, jobs: Sequence[Job], outcomes: Sequence[Outcome], kept: Sequence[Job]
) -> None:
    """Write the summary and the page, and print what became of each recording."""
    from qvggt_core.report import write_comparison
    from qvggt_core.results.result import Result

    failed = [outcome for outcome in outcomes if outcome.error]
    done = {job.output for job in kept} | {o.job.output for o in outcomes if not o.error}
    results = {job.output: Result.read(job.output) for job in jobs if job.output in done}
    output.mkdir(parents=True, exist_ok=True)
    summary, page = (output / name for name in _FILES)
    entries = _summary(jobs, outcomes, kept)
    write_atomically(summary, json.dumps(entries, indent=2) + "\n")
    if results:
        print_comparison(results)
        failures = [f"{outcome.job.bag} failed: {outcome.error}" for outcome in failed]
        write_comparison(page, results, title=output.resolve().name, failures=failures)
        console.wrote(page)
    for outcome in failed:
        tries = "1 try" if outcome.attempts == 1 else f"{outcome.attempts} tries"
        console.note("[bold red]failed:[/]", f"{outcome.job.bag} after {tries}: {outcome.error}")
    console.out.print(f"{len(results)} of {len(jobs)} recordings reconstructed")
    console.wrote(summary)


def _summary(
    jobs: Sequence[Job], outcomes: Sequence[Outcome], kept: Sequence[Job]
) -> list[dict[str, Any]]:
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
    return entries


def print_comparison(results: dict[Path, Result]) -> None:
    """Print a row of numbers per result; the page has more of them."""
    from qvggt_core.report.comparison import table

    head, rows = table(results)
    shown = [index for index, heading in enumerate(head) if heading in _PRINTED]
    console.print_table(
        [head[index] for index in shown], ([row[index] for index in shown] for row in rows)
    )
