"""`qvggt synth` and `qvggt train`: synthetic recordings, and networks that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros.cli import console


def synth(
    output: Annotated[Path, typer.Option("--output", "-o", help="What to make.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="bag, or a data set's layout: co3d, re10k, 7scenes, nrgbd, tum, euroc."
        ),
    ] = "bag",
    world: Annotated[str, typer.Option(help="studio, room, corridor, arena or terrain.")] = "room",
    flight: Annotated[
        str | None,
        typer.Option(
            help="hover, straight, arc, orbit, look_around, wander or survey; orbit for a bag, "
            "survey for a layout if not given."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the flight, the noise and the drift; 0 for a bag, 1 for a layout."),
    ] = None,
    world_seed: Annotated[int, typer.Option(help="Of the world's layout.")] = 0,
    scenes: Annotated[
        int | None, typer.Option(help="Layouts: number of flights, 2 if not given.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(help="Number of images of a flight; 80, or what the layout's protocol needs."),
    ] = None,
    width: Annotated[int, typer.Option(help="Image columns.")] = 320,
    height: Annotated[int, typer.Option(help="Image rows.")] = 240,
    fov: Annotated[float, typer.Option(help="Horizontal field of view, degrees.")] = 80.0,
    dataset_camera: Annotated[
        bool, typer.Option(help="Layouts: the real data set's camera and image size.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Images per second.")] = 10.0,
    step: Annotated[
        float | None, typer.Option(help="Metres between images; 0.08, or what suits the layout.")
    ] = None,
    shutter: Annotated[
        float,
        typer.Option(help="Bag: length of an exposure, as a share of the time between images."),
    ] = 0.1,
    distortion: Annotated[
        bool, typer.Option(help="Bend the images as a wide lens does (bag and euroc).")
    ] = False,
    compressed: Annotated[bool, typer.Option(help="Bag: PNG images instead of raw ones.")] = False,
    storage: Annotated[str, typer.Option(help="Bag: mcap or sqlite3.")] = "mcap",
    overwrite: Annotated[bool, typer.Option(help="Replace what was made there before.")] = False,
) -> None:
    """Render flights through a synthetic world, with exact ground truth."""
    if form != "bag":
        from qvggt_core.synthetic.dataset_layouts import (
            CameraChoices,
            FlightChoices,
            write_layout,
        )

        flights = FlightChoices(
            world=world,
            world_seed=world_seed,
            kind=flight or "survey",
            seed=1 if seed is None else seed,
            scenes=2 if scenes is None else scenes,
            frames=frames,
            step=step,
            rate_hz=rate,
        )
        camera = CameraChoices(width, height, fov, dataset_camera, distortion)
        with console.progress("rendering", "images") as progress:
            dataset = write_layout(
                output, form, flights, camera, overwrite=overwrite, progress=progress
            )
        for name, length in zip(dataset.scenes, dataset.path_lengths, strict=True):
            console.out.print(f"{name}: {dataset.frames} images along {length:.2f} m")
        console.out.print(f"wrote {dataset.path}", soft_wrap=True, highlight=False)
        return
    from qvggt_core.errors import ParameterError
    from qvggt_ros.drivers.synthesize import write_bag

    if dataset_camera or scenes is not None:
        raise ParameterError("--scenes and --dataset-camera are for data sets' layouts, not bags")
    with console.err.status("rendering"):
        bag = write_bag(
            output,
            world=world,
            flight=flight or "orbit",
            seed=seed or 0,
            world_seed=world_seed,
            frames=80 if frames is None else frames,
            width=width,
            height=height,
            rate_hz=rate,
            step=0.08 if step is None else step,
            horizontal_fov=fov,
            shutter=shutter,
            distortion=distortion,
            compressed=compressed,
            storage=storage,
            overwrite=overwrite,
        )
    console.out.print(f"{bag.frames} images along {bag.path_length:.2f} m: {', '.join(bag.topics)}")
    console.out.print(f"wrote {bag.path}", soft_wrap=True, highlight=False)


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the run.")],
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
