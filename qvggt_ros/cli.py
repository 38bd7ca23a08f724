"""The `qvggt` command. What is heavy is imported where it is used, so that --help is instant."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qvggt_core.errors import ParameterError, QvggtError

if TYPE_CHECKING:
    from qvggt_core.model.download import PublishedModel
    from qvggt_core.parameters import Parameters
    from qvggt_ros.bag import ReplaySummary

app = typer.Typer(
    name="qvggt",
    help="Metric 3D from a robot's camera with a 4-bit VGGT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is explained ends with one line and status 2."""
    # Before PyTorch is imported: threads that spin at barriers on a shared core cost a
    # scheduler's slice each, many times what they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=arguments)
    except QvggtError as error:
        if "--debug" in arguments:
            raise
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(EXIT_ERROR) from None


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors, and all log lines.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR,
        format="%(name)s: %(message)s",
        handlers=[RichHandler(console=err, show_path=False)],
    )


@app.command()
def replay(
    bag: Annotated[Path, typer.Argument(help="rosbag2 directory, or a bare .mcap or .db3 file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Network; the small one that ships if not given.")
    ] = None,
    params: Annotated[
        Path | None, typer.Option(help="Parameter file, as config/reconstruct.yaml.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One parameter; may be repeated."),
    ] = None,
    image_topic: Annotated[str | None, typer.Option(help="Found by type if not given.")] = None,
    camera_info_topic: Annotated[
        str | None, typer.Option(help="Found beside the images if not given.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Storage of the result: mcap or sqlite3.")] = "mcap",
    limit: Annotated[int | None, typer.Option(help="End after so many images.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a former output.")] = False,
    report: Annotated[bool, typer.Option(help="Draw pictures and write report.html.")] = True,
) -> None:
    """Reconstruct a recording: poses, depth and points, with pictures and a report."""
    parameters = _read_parameters(params, settings or [], checkpoint)
    from qvggt_ros.bag import replay as replay_bag
    from qvggt_ros.network import load_network

    with err.status("loading the network"):
        loaded = load_network(parameters)
    with _stop_on_interrupt() as stop, _progress("reconstructing", "images") as progress:
        summary = replay_bag(
            bag,
            output,
            loaded.network,
            loaded.parameters,
            image_topic=image_topic,
            camera_info_topic=camera_info_topic,
            storage=storage,
            limit=limit,
            overwrite=overwrite,
            report=report,
            model=loaded.facts,
            progress=progress,
            stop=stop,
        )
    _print_summary(summary)
    if summary.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Full-precision VGGT: .pt or .safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .safetensors.")],
    recipe: Annotated[str, typer.Option(help="How weights are rounded.")] = "rtn",
    plan: Annotated[
        str, typer.Option(help="What has 4 bits: uniform, qvggt-paper, or a YAML file.")
    ] = "uniform",
    group_size: Annotated[int, typer.Option(help="Weights per scale: 128, 64 or 32.")] = 128,
    point_head: Annotated[bool, typer.Option(help="Keep the point head.")] = False,
) -> None:
    """Make a 4-bit checkpoint that runs without the full-precision one."""
    from qvggt_core.quantize import PRESETS, quantize_checkpoint

    heads = ("camera", "depth", "points") if point_head else ("camera", "depth")
    with _progress("quantizing", "tensors") as progress:
        report = quantize_checkpoint(
            checkpoint,
            output,
            recipe=recipe,
            plan=plan,
            group_size=group_size,
            heads=heads,
            progress=lambda index, total, name: progress(index, total),
        )
    for rule in report.unused_rules if plan not in PRESETS else ():
        err.print(f"[yellow]note:[/] the plan's rule {rule!r} fits no weight")
    info(output)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt or .safetensors.")],
) -> None:
    """Show what a checkpoint holds: size and bits per part, and what it says of itself."""
    from qvggt_core.model import part_sizes, read_checkpoint

    checkpoint = read_checkpoint(file)
    table = Table(title=str(file), title_justify="left")
    for column in ("part", "weights", "MB", "bits per weight"):
        table.add_column(column, justify="left" if column == "part" else "right")
    sizes = part_sizes(checkpoint)
    total = (sum(weights for weights, _ in sizes.values()), sum(size for _, size in sizes.values()))
    for part, (weights, size) in sizes.items():
        table.add_row(part, *_size_cells(weights, size))
    table.add_section()
    table.add_row("in all", *_size_cells(*total), style="bold")
    out.print(table)
    facts = Table(show_header=False, box=None)
    for name, value in {**checkpoint.metadata, "config": checkpoint.config}.items():
        facts.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    out.print(facts)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="vggt-1b or vggt-1b-commercial.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory.")] = Path(
        "checkpoints"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licence that is shown.")] = False,
) -> None:
    """Get VGGT-1B's published weights, after its licence."""
    from qvggt_core.model.download import download as download_weights

    def agree(model: PublishedModel) -> bool:
        out.print(f"{model.repository}, {model.size_gb:g} GB\n{escape(model.licence)}\n")
        return yes or typer.confirm("Do you agree?")

    out.print(f"wrote {download_weights(name, output, agree)}")


@app.command()
def synth(
    output: Annotated[Path, typer.Option("--output", "-o", help="Recording to make.")],
    world: Annotated[str, typer.Option(help="room, corridor, arena or terrain.")] = "room",
    flight: Annotated[
        str, typer.Option(help="hover, straight, arc, orbit, look_around, wander or survey.")
    ] = "orbit",
    seed: Annotated[int, typer.Option(help="Of the flight, the noise and the drift.")] = 0,
    world_seed: Annotated[int, typer.Option(help="Of the world's layout.")] = 0,
    frames: Annotated[int, typer.Option(help="Number of images.")] = 80,
    width: Annotated[int, typer.Option(help="Image columns.")] = 320,
    height: Annotated[int, typer.Option(help="Image rows.")] = 240,
    rate: Annotated[float, typer.Option(help="Images per second.")] = 10.0,
    step: Annotated[float, typer.Option(help="Metres between images.")] = 0.08,
    distortion: Annotated[bool, typer.Option(help="Bend the images as a wide lens does.")] = False,
    compressed: Annotated[bool, typer.Option(help="Write PNG images instead of raw ones.")] = False,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    overwrite: Annotated[bool, typer.Option(help="Replace a former recording.")] = False,
) -> None:
    """Render a flight through a synthetic world as a recording with exact ground truth."""
    from qvggt_ros.synthetic_bag import write_bag

    with err.status("rendering"):
        bag = write_bag(
            output,
            world=world,
            flight=flight,
            seed=seed,
            world_seed=world_seed,
            frames=frames,
            width=width,
            height=height,
            rate_hz=rate,
            step=step,
            distortion=distortion,
            compressed=compressed,
            storage=storage,
            overwrite=overwrite,
        )
    out.print(f"{bag.frames} images along {bag.path_length:.2f} m: {', '.join(bag.topics)}")
    out.print(f"wrote {bag.path}", soft_wrap=True, highlight=False)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the run.")],
    steps: Annotated[int | None, typer.Option(help="Stop at this step.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the run in the directory.")] = True,
) -> None:
    """Train a small network in synthetic worlds, or go on with a run."""
    from qvggt_core.synthetic.train import TrainConfig
    from qvggt_core.synthetic.train import train as train_network

    with _progress("training", "steps") as progress:
        result = train_network(
            TrainConfig.read(config),
            output,
            steps=steps,
            resume=resume,
            device=device,
            progress=lambda step, length, terms: progress(step, length),
        )
    if result.metrics is not None:
        out.print(result.metrics)
    out.print(f"wrote {result.checkpoint} after {result.step} steps", soft_wrap=True)


@app.command()
def params() -> None:
    """Print the table of parameters, in Markdown."""
    from qvggt_core.parameters import Parameters

    typer.echo(parameter_table(Parameters))


def parameter_table(parameters: type[Parameters]) -> str:
    """Return the parameters with defaults, ranges and descriptions as a Markdown table."""
    rows = ["| parameter | default | allowed | what it is |", "|---|---|---|---|"]
    for name, schema in parameters.model_json_schema()["properties"].items():
        default = yaml.safe_dump(schema["default"]).split("\n")[0].replace("'", '"')
        fixed = " Fixed once the network is loaded." if schema.get("read_only") else ""
        rows.append(
            f"| `{name}` | `{default}` | {_allowed(schema)} | {schema['description']}{fixed} |"
        )
    return "\n".join(rows)


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return ", ".join(bounds) or {"boolean": "`true`, `false`"}.get(schema["type"], "text")


def _read_parameters(
    path: Path | None, settings: Sequence[str], checkpoint: Path | None
) -> Parameters:
    from qvggt_core.parameters import Parameters

    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(f"--set {setting} has no value: write NAME=VALUE")
        try:
            overrides[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ParameterError(f"--set {setting}: the value cannot be read: {error}") from error
    if checkpoint is not None:
        overrides["checkpoint"] = str(checkpoint)
    return Parameters.build(overrides) if path is None else Parameters.read(path, overrides)


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed; pressed twice, it interrupts at once."""
    pressed = False

    def press(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, former)
        err.print("finishing what there is; press Ctrl-C again to stop at once")

    former = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that moves a progress bar."""
    with Progress(
        TextColumn(what),
        BarColumn(),
        TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
        TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        # Shown from the first item on: an error before it needs no empty bar.
        task = bar.add_task(what, total=None, rate="-", visible=False)

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            rate = "-" if speed is None else f"{speed:.1f}"
            bar.update(task, completed=done, total=total, rate=rate, visible=True)

        yield update


def _size_cells(weights: int, size: int) -> tuple[str, str, str]:
    return f"{weights:,}", f"{size / 1e6:,.1f}", f"{8 * size / max(weights, 1):.2f}"


def _print_summary(summary: ReplaySummary) -> None:
    result, timings = summary.metrics["result"], summary.metrics["timings"]
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
    if accuracy := summary.metrics.get("accuracy"):
        share = accuracy["ate"] / max(accuracy["reference_length"], 1e-9)
        rows.append(
            (
                f"ATE to {accuracy['reference_topic']}",
                f"{accuracy['ate']:.4g} after Sim(3) alignment, {share:.1%} of the path",
            )
        )
    table = Table(show_header=False, title=f"{summary.output}", title_justify="left")
    for name, value in rows:
        table.add_row(name, escape(value))
    out.print(table)
    for warning in summary.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    for file in summary.files:
        out.print(f"wrote {file}", soft_wrap=True, highlight=False)


def _latency(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.2f} s, {latency['p95']:.2f} s" if latency else "-"


if __name__ == "__main__":
    main()
