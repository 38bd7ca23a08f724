"""Flights through synthetic worlds, written in the layouts of public data sets.

What lands on disk is what `qvggt_core.datasets` reads: the same files, units, axes and rounding as
in the real data sets, with exact poses and depth behind them. So protocols can be tried and tested
without the data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qvggt_core.datasets import nrgbd, seven_scenes, tum
from qvggt_core.errors import DatasetError, ParameterError
from qvggt_core.synthetic.dataset_writers import (
    Flight,
    write_co3d,
    write_euroc,
    write_nrgbd,
    write_realestate10k,
    write_seven_scenes,
    write_text,
    write_tum,
)
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.lens import Lens, LensChoice
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene

_MARKER = "synthetic.json"
_MAX_FRAMES = 1_000_000
# k1 k2 p1 p2 of EuRoC's left camera.
_EUROC_DISTORTION = (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
_EUROC_CAMERA = (458.654, 457.296, 367.215, 248.375)
_EUROC_SIZE = (752, 480)


@dataclass(frozen=True)
class SyntheticDataset:
    """What was written.

    Attributes:
        path: directory of the data set.
        scenes: their names, as the data set's loader calls them.
        frames: images per scene.
        path_lengths: metres that the camera travelled in each.
    """

    path: Path
    scenes: tuple[str, ...]
    frames: int
    path_lengths: tuple[float, ...]


@dataclass(frozen=True)
class FlightChoices:
    """Which flights to render; equal choices give equal flights.

    Attributes:
        world: family, see `make_world`.
        world_seed: of the world's layout.
        kind: of flight, see `fly`.
        seed: of the first flight; each further one's is larger by 2, so that all are of one split
            (odd seeds were never trained on).
        scenes: number of flights.
        frames: images per scene; None takes what the data set's protocol needs.
        step: metres between images; None takes what keeps a scene within a few metres.
        rate_hz: images per second, where the layout has times.
    """

    world: str = "room"
    world_seed: int = 0
    kind: str = "survey"
    seed: int = 1
    scenes: int = 2
    frames: int | None = None
    step: float | None = None
    rate_hz: float = 10.0


@dataclass(frozen=True)
class CameraChoices:
    """What camera flies.

    Attributes:
        lens: size and field of view.
        of_dataset: take the real data set's camera instead of this lens.
        distorted: whether the images are bent as EuRoC's are (only that layout can hold it).
    """

    lens: LensChoice = field(default_factory=LensChoice)
    of_dataset: bool = False
    distorted: bool = False


@dataclass(frozen=True)
class _Layout:
    """How one data set lies on disk.

    Attributes:
        write: writes flights below a root and returns the scenes' names.
        camera: the real data set's own camera, if it has one.
        frames: images per scene that its protocol needs.
        step: metres between images that make a scene of a few metres of them.
    """

    write: Callable[[Path, str, list[Flight]], list[str]]
    camera: Lens | None
    frames: int
    step: float


def write_layout(
    output: Path,
    layout: str,
    flights: FlightChoices | None = None,
    camera: CameraChoices | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticDataset:
    """Render flights and write them as a data set lies on disk; equal arguments, equal bytes.

    Args:
        output: directory to create.
        layout: one of LAYOUTS.
        flights: which to render; None takes the defaults.
        camera: which flies; None takes the defaults.
        overwrite: whether a former synthetic data set at `output` is replaced.
        progress: called with the images done and the images in all.

    Raises:
        ParameterError: an argument is unknown or out of range, or no such flight fits.
        DatasetError: `output` exists and is not to be replaced, or is not of our making.
    """
    if layout not in _LAYOUTS:
        raise ParameterError(f"there is no layout {layout!r}; known: {', '.join(LAYOUTS)}")
    form = _LAYOUTS[layout]
    choices = flights or FlightChoices()
    frames = form.frames if choices.frames is None else choices.frames
    step = form.step if choices.step is None else choices.step
    lens = _lens(layout, form, camera or CameraChoices())
    if choices.scenes < 1 or choices.rate_hz <= 0 or choices.scenes * frames > _MAX_FRAMES:
        raise ParameterError(
            f"{choices.scenes} scenes of {frames} frames at {choices.rate_hz} Hz: there must be at "
            f"least one scene, a positive rate, and at most {_MAX_FRAMES} frames"
        )
    scene = Scene(make_world(choices.world, choices.world_seed))
    seeds = [choices.seed + 2 * i for i in range(choices.scenes)]
    rendered = _counter(choices.scenes * frames, progress)
    flown = []
    for number, seed in enumerate(seeds, start=1):
        poses = fly(scene.world, choices.kind, frames, seed, step=step)
        flown.append(Flight(seed, number, poses, scene, lens, choices.rate_hz, rendered))
    _make_way(output, overwrite)
    made = {
        "layout": layout,
        "world": choices.world,
        "world_seed": choices.world_seed,
        "flight": choices.kind,
        "seeds": seeds,
        "frames": frames,
        "step": step,
    }
    write_text(output / _MARKER, json.dumps(made) + "\n")
    names = form.write(output, choices.world, flown)
    lengths = [np.linalg.norm(np.diff(f.poses[:, :3, 3], axis=0), axis=1).sum() for f in flown]
    return SyntheticDataset(output, tuple(names), frames, tuple(float(n) for n in lengths))


def _counter(total: int, progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Return what is called after each image."""
    done = 0

    def rendered() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return rendered


def _lens(layout: str, form: _Layout, camera: CameraChoices) -> Lens:
    if camera.distorted and layout != "euroc":
        raise ParameterError(f"the layout {layout} has no distortion: leave it out, or take euroc")
    if camera.of_dataset:
        if form.camera is None:
            raise ParameterError(f"the data set {layout} has no one camera: leave the choice out")
        return form.camera
    return camera.lens.lens(_EUROC_DISTORTION if camera.distorted else ())


def _make_way(output: Path, overwrite: bool) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise DatasetError(f"{output} exists: choose another path or ask to overwrite it")
        # Only what was made here is ever removed.
        if not (output / _MARKER).is_file():
            raise DatasetError(f"{output} is no synthetic data set and is not overwritten")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


def _real_lens(
    values: tuple[float, ...], size: tuple[int, int], distortion: tuple[float, ...] = ()
) -> Lens:
    fx, fy, cx, cy = values
    matrix = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return Lens(matrix, size[1], size[0], distortion)


_NRGBD_CAMERA = (nrgbd.FOCAL_LENGTH, nrgbd.FOCAL_LENGTH, 320.0, 240.0)
_LAYOUTS: dict[str, _Layout] = {
    "co3d": _Layout(write_co3d, None, 60, 0.1),
    "re10k": _Layout(write_realestate10k, None, 60, 0.1),
    "7scenes": _Layout(
        write_seven_scenes,
        _real_lens(seven_scenes.COLOUR_CAMERA, seven_scenes.SIZE),
        601,
        0.004,
    ),
    "nrgbd": _Layout(write_nrgbd, _real_lens(_NRGBD_CAMERA, nrgbd.SIZE), 41, 0.05),
    "tum": _Layout(write_tum, _real_lens(tum.CALIBRATIONS["freiburg3"], tum.SIZE), 150, 0.05),
    "euroc": _Layout(
        write_euroc, _real_lens(_EUROC_CAMERA, _EUROC_SIZE, _EUROC_DISTORTION), 150, 0.05
    ),
}
LAYOUTS = tuple(_LAYOUTS)
