"""The reconstruction of a sequence of images in a few lines of Python; see `qvggt_core`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import ImageError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.parameters import Parameters
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.stream.frame import Frame, FrameGeometry
from qvggt_core.stream.keyframe_placement import WORLD
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_core.stream.load_network import load_network as load
from qvggt_core.stream.loaded_map import loops_of
from qvggt_core.stream.reconstructor import Reconstructor

_PERIOD_NS = 100_000_000


def load_network(checkpoint: str | Path = "", **parameters: Any) -> LoadedNetwork:
    """Load a network.

    Args:
        checkpoint: .safetensors or .pt file; the small network that ships if not given.
        parameters: see docs/parameters.md, such as `window_size=4` or `device="cuda"`.

    Raises:
        CheckpointError: the file is missing or does not fit.
        ParameterError: a parameter is unknown or refused.
    """
    return load(Parameters.build({**parameters, "checkpoint": str(checkpoint)}))


class Reconstruction:
    """Poses, depth and points of images that are added one after the other.

    The map's frame is z-up with the first camera's position as its origin and its forward as x;
    cameras are optical (REP-103). Lengths are in the network's unit unless the parameters give
    `metres_per_unit` or a scale network. Images that show nothing new, by the parameter
    `keyframe_min_motion`, stay without geometry. Where images do not continue what was before, a
    new map segment begins; what is returned is that of the longest segment.

    Attributes:
        events: sentences about what happened, such as why a new segment began.
    """

    def __init__(self, network: LoadedNetwork) -> None:
        """Start with no image."""
        network, loops = loops_of(network)
        self.events: list[str] = []
        self._parameters = network.parameters
        self._reconstructor = Reconstructor(
            network.network, network.parameters, network.metric_depth, loops
        )
        self._built = ResultBuilder(network.parameters)
        self._frames: dict[int, list[FrameGeometry]] = {}
        self._count = 0
        self._finished = False

    def add(self, image: NDArray[np.uint8], camera: Camera | None = None) -> None:
        """Add the next image.

        Args:
            image: (H, W, 3) uint8, RGB.
            camera: its calibration; estimated by the network if not given.

        Raises:
            ImageError: the image or its calibration cannot be used; it is left out.
        """
        if self._finished:
            raise ImageError("this reconstruction is finished: begin another one")
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ImageError(
                f"an image of shape {image.shape} and type {image.dtype}: (H, W, 3) uint8, RGB "
                "is needed"
            )
        stamp_ns = self._count * _PERIOD_NS
        self._count += 1
        self._take(self._reconstructor.add(Frame(stamp_ns, np.ascontiguousarray(image), camera)))

    def finish(self) -> None:
        """Give the last images their geometry; no image can be added after that."""
        if not self._finished:
            self._finished = True
            self._take(self._reconstructor.flush())

    @property
    def frames(self) -> tuple[FrameGeometry, ...]:
        """Geometry of the N images of the longest segment, in order."""
        return tuple(self._frames.get(self._longest, ()))

    @property
    def is_in_loaded_map(self) -> bool:
        """Whether their poses are in the map that the parameter `load_map` names."""
        return bool(self._parameters.load_map) and self._longest == WORLD

    @property
    def images(self) -> NDArray[np.int64]:
        """(N,) numbers of these images, in the order in which they were added, from 0."""
        return np.array([f.view.stamp_ns // _PERIOD_NS for f in self.frames], dtype=np.int64)

    @property
    def poses(self) -> NDArray[np.float64]:
        """(N, 4, 4) map_from_camera."""
        return np.array([frame.map_from_camera for frame in self.frames]).reshape(-1, 4, 4)

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """(N, 3, 3) pinhole matrices of the depth images, in their pixels."""
        return np.array([frame.intrinsics for frame in self.frames]).reshape(-1, 3, 3)

    @property
    def depth(self) -> NDArray[np.float32]:
        """(N, H, W) along the optical axis in the map's unit, NaN where invalid."""
        return np.array([frame.depth for frame in self.frames], dtype=np.float32)

    @property
    def points(self) -> Cloud:
        """The coloured map, one point a voxel."""
        return self._built.cloud(self._longest)

    @property
    def _longest(self) -> int:
        return max(self._frames, key=lambda segment: len(self._frames[segment]), default=0)

    def _take(self, results: tuple[Any, ...]) -> None:
        for result in results:
            self._built.add(result)
            self.events += result.events
            self._frames.setdefault(result.segment, []).extend(result.frames)
