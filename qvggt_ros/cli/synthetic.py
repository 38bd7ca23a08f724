"""`qvggt synth` and `qvggt train`: synthetic recordings, and networks that learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import OutputDirectory, OutputPath


@dataclass(frozen=True)
class SynthOptions:
    """Options of `qvggt synth`; what is not given depends on the format."""

    form: str = option(
        "bag",
        "bag, or a data set's layout: co3d, re10k, 7scenes, nrgbd, tum, euroc.",
        "--format",
    )
    world: str = option("room", "studio, room, corridor, arena or terrain.")
    flight: str | None = option(
        None,
        "hover, straight, arc, orbit, look_around, wander or survey; orbit for a bag, survey for "
        "a layout if not given.",
    )
    seed: int | None = option(
        None, "Of the flight, the noise and the drift; 0 for a bag, 1 for a layout."
    )
    world_seed: int = option(0, "Of the world's layout.")
    scenes: int | None = option(None, "Layouts: number of flights, 2 if not given.")
    frames: int | None = option(
        None, "Number of images of a flight; 80, or what the layout's protocol needs."
    )
    width: int = option(320, "Image columns.")
    height: int = option(240, "Image rows.")
    fov: float = option(80.0, "Horizontal field of view, degrees.")
    dataset_camera: bool = option(False, "Layouts: the real data set's camera and image size.")
    rate: float = option(10.0, "Images per second.")
    step: float | None = option(None, "Metres between images; 0.08, or what suits the layout.")
    jitter: float = option(1.0, "Bag: strength of the camera's shaking; 0 for none.")
    baseline: float = option(
        0.0, "Bag: metres to a second camera, to the right of the first; 0 for one camera."
    )
    shutter: float = option(
        0.1, "Bag: length of an exposure, as a share of the time between images."
    )
    distortion: bool = option(False, "Bend the images as a wide lens does (bag and euroc).")
    compressed: bool = option(False, "Bag: PNG images instead of raw ones.")
    storage: str = option("mcap", "Bag: mcap or sqlite3.")
    overwrite: bool = option(False, "Replace what was made there before.")


def synth(output: OutputPath, options: SynthOptions) -> None:
    """Render flights through a synthetic world, with exact ground truth."""
    if options.form == "bag":
        _write_bag(output, options)
    else:
        _write_layout(output, options)


def _write_layout(output: Path, options: SynthOptions) -> None:
    from qvggt_core.synthetic.dataset_layouts import CameraChoices, FlightChoices, write_layout
    from qvggt_core.synthetic.lens import LensChoice

    flights = FlightChoices(
        world=options.world,
        world_seed=options.world_seed,
        kind=options.flight or "survey",
        seed=1 if options.seed is None else options.seed,
        scenes=2 if options.scenes is None else options.scenes,
        frames=options.frames,
        step=options.step,
        rate_hz=options.rate,
    )
    camera = CameraChoices(
        LensChoice(options.width, options.height, options.fov),
        options.dataset_camera,
        options.distortion,
    )
    with console.progress("rendering", "images") as progress:
        dataset = write_layout(
            output, options.form, flights, camera, overwrite=options.overwrite, progress=progress
        )
    for name, length in zip(dataset.scenes, dataset.path_lengths, strict=True):
        console.out.print(f"{name}: {dataset.frames} images along {length:.2f} m")
    console.wrote(dataset.path)


def _write_bag(output: Path, options: SynthOptions) -> None:
    from qvggt_core.errors import ParameterError
    from qvggt_core.synthetic.lens import LensChoice
    from qvggt_ros.drivers.synthesize import BagOptions, ImageFlaws, write_bag

    if options.dataset_camera or options.scenes is not None:
        raise ParameterError("--scenes and --dataset-camera are for data sets' layouts, not bags")
    flight = BagOptions(
        world=options.world,
        flight=options.flight or "orbit",
        seed=options.seed or 0,
        world_seed=options.world_seed,
        frames=80 if options.frames is None else options.frames,
        rate_hz=options.rate,
        step=0.08 if options.step is None else options.step,
        jitter=options.jitter,
        baseline=options.baseline,
        lens=LensChoice(options.width, options.height, options.fov),
        flaws=ImageFlaws(distortion=options.distortion, shutter=options.shutter),
        compressed=options.compressed,
        storage=options.storage,
    )
    with console.err.status("rendering"):
        bag = write_bag(output, flight, overwrite=options.overwrite)
    console.out.print(f"{bag.frames} images along {bag.path_length:.2f} m: {', '.join(bag.topics)}")
    console.wrote(bag.path)


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    output: OutputDirectory,
    steps: Annotated[int | None, typer.Option(help="Stop at this step.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the run in the directory.")] = True,
) -> None:
    """Train a small network in synthetic worlds, or go on with a run."""
    from qvggt_core.training.config import TrainConfig
    from qvggt_core.training.trainer import train as train_network

    with console.progress("training", "steps") as progress:
        result = train_network(
            TrainConfig.read(config),
            output,
            steps=steps,
            resume=resume,
            device=device,
            progress=lambda step, length, terms: progress(step, length),
        )
    if result.metrics is not None:
        console.out.print(result.metrics)
    console.out.print(f"wrote {result.checkpoint} after {result.step} steps", soft_wrap=True)
