"""The papers' protocols: which frames, which alignment, which numbers. See docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qvggt_core.datasets import Co3d, Euroc, Nrgbd, RealEstate10k, SevenScenes, TumRgbd
from qvggt_core.errors import ParameterError
from qvggt_core.protocols.benchmark import Benchmark, Column
from qvggt_core.protocols.camera_pose import CameraPose
from qvggt_core.protocols.reconstruction import SurfaceReconstruction
from qvggt_core.protocols.runner import Run, SceneResults, run_scenes
from qvggt_core.protocols.streamed_trajectory import StreamedTrajectory

_Kind = type[CameraPose] | type[SurfaceReconstruction] | type[StreamedTrajectory]
_DEFINITIONS: dict[str, tuple[_Kind, dict[str, Any]]] = {
    "co3d": (CameraPose, {"dataset": Co3d}),
    "re10k": (CameraPose, {"dataset": RealEstate10k}),
    "7scenes": (SurfaceReconstruction, {"dataset": SevenScenes, "every": 200}),
    "nrgbd": (SurfaceReconstruction, {"dataset": Nrgbd, "every": 500, "at_least_two": True}),
    "tum": (StreamedTrajectory, {"dataset": TumRgbd}),
    "euroc": (StreamedTrajectory, {"dataset": Euroc}),
}
PROTOCOLS = tuple(_DEFINITIONS)

__all__ = [
    "PROTOCOLS",
    "Benchmark",
    "CameraPose",
    "Column",
    "Run",
    "SceneResults",
    "StreamedTrajectory",
    "SurfaceReconstruction",
    "make_benchmark",
    "run_scenes",
]


def make_benchmark(name: str, **options: Any) -> Benchmark:
    """Return a protocol by name, with some of its choices replaced.

    Args:
        name: one of PROTOCOLS.
        options: attributes of the protocol; None leaves the protocol's own choice.

    Raises:
        ParameterError: there is no such protocol, it has no such choice, or the value is refused.
    """
    if name not in _DEFINITIONS:
        raise ParameterError(f"there is no protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    kind, choices = _DEFINITIONS[name]
    given = {option: value for option, value in options.items() if value is not None}
    known = [field.name for field in fields(kind) if field.name != "dataset"]
    for option in given:
        if option not in known:
            raise ParameterError(
                f"the protocol {name} has no choice {option!r}; it has: {', '.join(known)}"
            )
    return kind(**(choices | given))
