"""What a data set gives to a protocol: scenes of posed frames, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import read_image, require_files
from qvggt_core.errors import DatasetError
from qvggt_core.geometry.camera import Camera

# JPEG leaves a few grey levels of what was black.
_BLACK = 4


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """One image of a data set, with what is known of it.

    Attributes:
        image_file: where its pixels are.
        camera: calibration of the image.
        world_from_camera: (4, 4) float64, optical axes; None where the data set has none.
        stamp_ns: capture time in integer nanoseconds; counted up where the data set has none.
        read_depth: returns (H, W) float32 metres along the optical axis in the image's pixels,
            NaN where invalid; None where the data set has no depth.
    """

    image_file: Path
    camera: Camera
    world_from_camera: NDArray[np.float64] | None
    stamp_ns: int
    read_depth: Callable[[], NDArray[np.float32]] | None = None

    def image(self) -> NDArray[np.uint8]:
        """Return the image (H, W, 3), RGB.

        Raises:
            DatasetError: it is missing, broken, or not of its calibration's size.
        """
        image = read_image(self.image_file)
        height, width = image.shape[:2]
        if (width, height) != (self.camera.width, self.camera.height):
            raise DatasetError(
                f"{self.image_file} has {width}x{height} pixels, its calibration is for "
                f"{self.camera.width}x{self.camera.height}: was it resized after the download?"
            )
        if image.max() < _BLACK:
            raise DatasetError(
                f"{self.image_file} is black: was it redacted, as the images of a challenge's test "
                "set are? What is made of it is not judged"
            )
        return image

    def depth(self) -> NDArray[np.float32]:
        """Return the depth (H, W) in metres, NaN where invalid.

        Raises:
            DatasetError: the data set has none, or it is missing or broken.
        """
        if self.read_depth is None:
            raise DatasetError(f"{self.image_file}: this data set has no depth images")
        return self.read_depth()


@dataclass(frozen=True)
class PosedScene:
    """The frames of one scene, in the order of time.

    Attributes:
        name: as in `Contents.scenes`.
        frames: all that the data set lists.
    """

    name: str
    frames: tuple[PosedFrame, ...]

    def require_images(self, chosen: list[int]) -> None:
        """Raise DatasetError if images of the chosen frames are missing; names them all."""
        require_files([self.frames[i].image_file for i in chosen], f"scene {self.name}")

    def poses(self, chosen: list[int]) -> NDArray[np.float64]:
        """Return world_from_camera (N, 4, 4) of the chosen frames.

        Raises:
            DatasetError: one of them has no known pose.
        """
        poses = []
        for i in chosen:
            pose = self.frames[i].world_from_camera
            if pose is None:
                raise DatasetError(f"scene {self.name}: the pose of frame {i} is not known")
            poses.append(pose)
        return np.stack(poses)


@dataclass(frozen=True)
class Contents:
    """What a directory holds of a data set.

    Attributes:
        scenes: names, sorted; the part before the last "/" is the group that tables show.
        problems: parts that are so incomplete that no scene of theirs can be named.
        absent: scenes or groups of the published benchmark that are not there at all.
    """

    scenes: tuple[str, ...]
    problems: tuple[DatasetError, ...] = ()
    absent: tuple[str, ...] = ()


class Dataset(Protocol):
    """A data set on disk, in its makers' layout."""

    def contents(self) -> Contents:
        """Return what is there, without reading images.

        Raises:
            DatasetError: nothing of this data set is there.
        """
        ...

    def load(self, name: str) -> PosedScene:
        """Return one scene.

        Raises:
            DatasetError: files are missing or broken; names each.
            ExcludedSceneError: the benchmark leaves this scene out.
        """
        ...


def group_of(scene: str) -> str:
    """Return the part of a scene's name before its last "/", or all of it."""
    return scene.rpartition("/")[0] or scene
