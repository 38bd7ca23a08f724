"""`qvggt synth` and `qvggt train`: synthetic recordings, and networks that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvggt_ros import console


def synth(
    output: Annotated[Path, typer.Option("--output", "-o", help="Recording to make.")],
    world: Annotated[str, typer.Option(help="studio, room, corridor, arena or terrain.")] = "room",
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
    shutter: Annotated[
        float, typer.Option(help="Length of an exposure, as a share of the time between images.")
    ] = 0.1,
    distortion: Annotated[bool, typer.Option(help="Bend the images as a wide lens does.")] = False,
    compressed: Annotated[bool, typer.Option(help="Write PNG images instead of raw ones.")] = False,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    overwrite: Annotated[bool, typer.Option(help="Replace a former recording.")] = False,
) -> None:
    """Render a flight through a synthetic world as a recording with exact ground truth."""
    from qvggt_ros.synthetic_bag import write_bag

    with console.err.status("rendering"):
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
    from qvggt_core.synthetic.train import TrainConfig
    from qvggt_core.synthetic.train import train as train_network

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
