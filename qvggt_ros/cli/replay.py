"""`qvggt replay`: a recording in, its reconstruction out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from qvggt_ros.cli import console
from qvggt_ros.cli.evaluate import (
    ClockOffset,
    DepthTopic,
    GroundTruth,
    RpeDistances,
    RpeTimes,
    Tolerance,
    TruthFrame,
    TruthTimes,
    accuracy_rows,
    evaluation_options,
    print_table,
)
from qvggt_ros.cli.options import (
    Checkpoint,
    Evaluate,
    ImageTopic,
    ParameterFile,
    Recording,
    Settings,
)
from qvggt_ros.cli.parameters import read_parameters

if TYPE_CHECKING:
    from qvggt_core.parameters import Parameters
    from qvggt_ros.drivers.replay import ReplaySummary


def replay(
    bag: Recording,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    checkpoint: Checkpoint = None,
    params: ParameterFile = None,
    settings: Settings = None,
    image_topic: ImageTopic = None,
    camera_info_topic: Annotated[
        str | None, typer.Option(help="Found beside the images if not given.")
    ] = None,
    odometry: Annotated[
        bool,
        typer.Option("--odometry", help="Take the scale from the recording's odometry."),
    ] = False,
    storage: Annotated[str, typer.Option(help="Storage of the result: mcap or sqlite3.")] = "mcap",
    limit: Annotated[int | None, typer.Option(help="End after so many images.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a former output.")] = False,
    report: Annotated[bool, typer.Option(help="Draw pictures and write report.html.")] = True,
    evaluate: Evaluate = None,
    ground_truth: GroundTruth = None,
    truth_frame: TruthFrame = "",
    truth_times: TruthTimes = None,
    tolerance: Tolerance = 0.01,
    clock_offset: ClockOffset = "0",
    rpe_distance: RpeDistances = None,
    rpe_time: RpeTimes = None,
    depth_topic: DepthTopic = None,
    view: Annotated[
        bool, typer.Option(help="Show it live in the browser while it runs (extra: viz).")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the live view, on this machine only.")] = 8080,
) -> None:
    """Reconstruct a recording: poses, depth and points, with pictures and a report."""
    parameters = read_parameters(params, settings or [], checkpoint)
    from qvggt_core.stream.load_network import load_network
    from qvggt_ros.drivers.replay import replay as replay_bag

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
    with console.err.status("loading the network"):
        loaded = load_network(parameters)
    if "memory" in loaded.facts:
        console.err.print(f"memory: {loaded.facts['memory']}")
    with (
        _live_view(port if view else None, loaded.parameters) as watch,
        console.stop_on_interrupt() as stop,
        console.progress("reconstructing", "images") as progress,
    ):
        summary = replay_bag(
            bag,
            output,
            loaded.network,
            loaded.parameters,
            image_topic=image_topic,
            camera_info_topic=camera_info_topic,
            use_odometry=odometry,
            metric_depth=loaded.metric_depth,
            storage=storage,
            limit=limit,
            overwrite=overwrite,
            report=report,
            evaluation=None if evaluate is False else options,
            truth_required=bool(evaluate) or ground_truth is not None,
            model=loaded.facts,
            progress=progress,
            stop=stop,
            watch=watch,
        )
    _print_summary(summary)
    if summary.interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)


@contextmanager
def _live_view(port: int | None, parameters: Parameters) -> Iterator[Callable[[Any], None]]:
    """Yield what takes reconstructions as they become known."""
    if port is None:
        yield lambda reconstruction: None
        return
    from qvggt_ros.viewer import LiveView

    with LiveView(port, parameters=parameters) as live:
        console.err.print(f"live view: {live.address}", soft_wrap=True, highlight=False)
        yield live.add


def _print_summary(summary: ReplaySummary) -> None:
    result, timings = summary.metrics["result"], summary.run["timings"]
    unit = result["unit"]
    metres = result["metres_per_unit"]
    rows = [
        ("images", f"{result['received']} received, {sum(result['rejected'].values())} rejected"),
        ("frames with geometry", f"{result['published']} in {result['windows']} windows"),
        ("map segments", str(result["segments"])),
        ("map points", ", ".join(f"{points:,}" for points in result["map_points"])),
        ("path", ", ".join(f"{length:.2f} {unit}" for length in result["path_lengths"])),
        ("scale", "unknown" if metres is None else f"{metres:g} m per unit"),
        ("speed", f"{timings['frames_per_second']:.1f} images/s"),
        ("latency, median and 95 %", _latency(timings["latency_s"])),
        ("peak memory", f"{timings['peak_memory_mb']:,.0f} MB"),
    ]
    print_table(str(summary.output), [*rows, *accuracy_rows(summary.metrics)])
    for warning in summary.warnings:
        console.err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    for file in summary.files:
        console.out.print(f"wrote {file}", soft_wrap=True, highlight=False)


def _latency(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.2f} s, {latency['p95']:.2f} s" if latency else "-"
