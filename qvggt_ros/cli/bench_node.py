"""`qvggt bench-node`: how live reconstruction keeps up with a camera, by network and parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvggt_ros.cli import console
from qvggt_ros.cli.options import ImageTopic, OutputFile, RecordingPath

if TYPE_CHECKING:
    from qvggt_ros.drivers.live_benchmark import LiveTiming

_COLUMNS = {
    "rate, Hz": "{rate_hz:.1f}",
    "interval, 95 %, ms": "{interval_ms_p95:.0f}",
    "latency, mean / 95 %, ms": "{latency_ms:.0f} / {latency_ms_p95:.0f}",
    "jitter, mean / 95 %, ms": "{jitter_ms:.0f} / {jitter_ms_p95:.0f}",
    "image's age, ms": "{image_age_ms:.0f}",
    "missed, %": "{missed:.1%}",
    "processors": "{processors:.2f}",
    "memory, MiB": "{memory_mib:.0f}",
}


def bench_node(
    bag: RecordingPath,
    output: OutputFile,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Network; may be repeated. [default: the small one that ships]"),
    ] = None,
    params: Annotated[
        list[Path] | None,
        typer.Option(help="Parameter file, such as a preset; may be repeated."),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Of the camera, in Hz.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, help="For each network and file.")] = 30.0,
    image_topic: ImageTopic = None,
) -> None:
    """Measure rate, latency, jitter, missed images, processor and memory of live reconstruction."""
    from qvggt_core.errors import BenchmarkError
    from qvggt_core.measure.provenance import write_results
    from qvggt_core.model import shipped_checkpoint
    from qvggt_core.parameters import Parameters
    from qvggt_core.util.output_files import check_file, json_with
    from qvggt_ros.drivers.live_benchmark import measure_live, read_camera

    check_file(output, json_with("machine", "camera_hz"), [bag])
    camera = read_camera(bag, image_topic)
    measured: list[tuple[str, str, LiveTiming]] = []
    failed: list[dict[str, str]] = []
    networks = checkpoint or [shipped_checkpoint()]
    about = {
        "camera_hz": rate,
        "seconds": seconds,
        "recording": bag.name,
    }
    for network in networks:
        for file in [None, *(params or [])]:
            given = Parameters.read(file) if file else Parameters()
            parameters = given.with_values(checkpoint=str(network))
            name = file.stem if file else "default"
            try:
                with console.err.status(f"measuring {network.name}, {name}"):
                    timing = measure_live(camera, parameters, rate, seconds)
                measured.append((network.name, name, timing))
            except BenchmarkError as error:
                # One that is too slow takes nothing from the others.
                console.note("[yellow]not measured:[/]", f"{network.name}, {name}: {error}")
                failed.append({"network": network.name, "parameters": name, "failed": str(error)})
            # After each, so that a run that is stopped keeps what it measured.
            results = about | {"cases": [*(_case(*each) for each in measured), *failed]}
            write_results(output, results, *networks)
    if not measured:
        raise BenchmarkError("nothing could be measured, for the reasons above")
    console.out.print(_table(measured))
    console.wrote(output)


def _case(network: str, parameters: str, timing: LiveTiming) -> dict[str, str | float]:
    return {"network": network, "parameters": parameters, **timing.as_dict()}


def _table(measured: list[tuple[str, str, LiveTiming]]) -> console.Table:
    columns = dict(_COLUMNS)
    if any(timing.gpu_memory_mib for _, _, timing in measured):
        columns["GPU memory, MiB"] = "{gpu_memory_mib:.0f}"
    table = console.Table("network", "parameters", *columns)
    for network, name, timing in measured:
        cells = (form.format(**timing.as_dict()) for form in columns.values())
        table.add_row(network, name, *cells)
    return table
