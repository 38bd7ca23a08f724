"""`qvggt replay`: a recording in, its reconstruction out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from qvggt_core.results.options import EvaluationOptions
from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.evaluate import accuracy_rows, problems
from qvggt_ros.cli.options import Evaluate, NetworkOptions, OutputDirectory, RecordingPath
from qvggt_ros.drivers.options import MapOptions, ReplayOptions

if TYPE_CHECKING:
    from qvggt_ros.drivers.replay import ReplaySummary


@dataclass(frozen=True)
class LiveViewOptions:
    """Whether a reconstruction is shown while it runs, and where."""

    view: bool = option(False, "Show it live in the browser while it runs (extra: viz).")
    port: int = option(8080, "Of the live view, on this machine only.")


def replay(
    bag: RecordingPath,
    output: OutputDirectory,
    network: NetworkOptions,
    options: ReplayOptions,
    maps: MapOptions,
    compared: EvaluationOptions,
    live_view: LiveViewOptions,
    evaluate: Evaluate = None,
) -> None:
    """Reconstruct a recording: poses, depth and points, with pictures and a report."""
    parameters = network.parameters()
    from qvggt_core.stream.load_network import load_network
    from qvggt_ros.drivers.replay import Comparison, Watcher
    from qvggt_ros.drivers.replay import replay as replay_bag

    with console.err.status("loading the network"):
        loaded = load_network(parameters)
    if "memory" in loaded.facts:
        console.err.print(f"memory: {loaded.facts['memory']}")
    with (
        _live_view(live_view.port if live_view.view else None) as grown,
        console.stop_on_interrupt() as stop,
        console.progresses() as progress,
    ):
        searching = progress("looking for the focal length", "steps")
        summary = replay_bag(
            bag,
            output,
            loaded,
            options,
            maps=maps,
            comparison=Comparison.requested(evaluate, compared),
            watcher=Watcher(progress("reconstructing", "images"), stop, grown, searching),
        )
    _print_summary(summary)
    if summary.interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)


@contextmanager
def _live_view(port: int | None) -> Iterator[Callable[[Any, Any], None]]:
    """Yield a function that takes reconstructions as they become known."""
    if port is None:
        yield lambda reconstruction, built: None
        return
    from qvggt_ros.viewer import LiveView

    with LiveView(port) as live:
        console.note("live view:", live.address)
        yield live.add


def _print_summary(summary: ReplaySummary) -> None:
    result, timings = summary.metrics["result"], summary.run["timings"]
    unit = result["unit"]
    recording = summary.metrics["recording"]
    rows = [
        ("image topic", recording["image_topic"]),
        ("camera_info topic", _lens(recording)),
        ("odometry topic", recording["odometry_topic"] or "not used"),
        ("images", f"{result['received']} received, {sum(result['rejected'].values())} rejected"),
        ("frames with geometry", f"{result['published']} in {result['windows']} windows"),
        ("frames without calibration", str(result["uncalibrated"])),
        ("images left out", str(summary.metrics["coverage"]["dropped"])),
        ("map segments", str(result["segments"])),
        ("map points", ", ".join(f"{points:,}" for points in result["map_points"])),
        ("path", ", ".join(f"{length:.2f} {unit}" for length in result["path_lengths"])),
        ("scale", _scale(result)),
        ("speed", f"{timings['frames_per_second']:.1f} images/s"),
        ("latency, median and 95 %", _latency(timings["latency_s"])),
        ("peak memory", f"{timings['peak_memory_mb']:,.0f} MB"),
    ]
    console.print_facts(str(summary.output), [*rows, *accuracy_rows(summary.metrics)])
    for warning in summary.warnings:
        console.note("[yellow]warning:[/]", warning)
    for reason, count in result["rejected"].items():
        console.note("[yellow]left out:[/]", f"{reason} ({count} times)")
    for event in summary.metrics["events"] if result["segments"] > 1 else ():
        if event not in result["rejected"]:
            console.note("[yellow]note:[/]", event)
    for problem in problems(summary.metrics["accuracy"]):
        console.note("[yellow]note:[/]", problem)
    console.wrote(*summary.files)


def _lens(recording: dict[str, Any]) -> str:
    focal, sigma = recording["focal_length_px"], recording["focal_length_sigma"]
    if focal is None:
        return recording["camera_info_topic"] or "none: the network's own intrinsics"
    certainty = f", found from the images to {sigma:.1%}" if sigma else ""
    return f"none: focal length {focal:.0f} pixels{certainty}"


def _scale(result: dict[str, Any]) -> str:
    state, metres, sigma = (
        result[name] for name in ("scale_state", "metres_per_unit", "scale_sigma")
    )
    if metres is None:
        return state or "unknown"
    sources = ", ".join(result["scale_sources"]) or result["scale_source"]
    certainty = "" if sigma is None else f", to {sigma:.1%}"
    return f"{state}, {metres:.4g} m per unit by {sources}{certainty}"


def _latency(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.2f} s, {latency['p95']:.2f} s" if latency else "-"
