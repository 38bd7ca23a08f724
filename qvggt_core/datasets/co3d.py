"""CO3Dv2: object videos with PyTorch3D cameras in gzipped JSON.

Layout (github.com/facebookresearch/co3d): `<category>/frame_annotations.jgz`,
`<category>/sequence_annotations.jgz`, `<category>/set_lists/*.json`,
`<category>/<sequence>/images/frame000001.jpg`, `.../depths/frame000001.jpg.geometric.png`,
`.../depth_masks/frame000001.png`. Paths in the annotations are relative to the root.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.datasets.files import (
    below,
    read_json,
    read_png16,
    require_files,
    rigid,
    subdirectories,
)
from qvggt_core.datasets.scene import Contents, PosedFrame, PosedScene
from qvggt_core.errors import DatasetError, ExcludedSceneError, ImageError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.util.quoting import short

_NAMES = (
    "apple backpack banana baseballbat baseballglove bench bicycle bottle bowl broccoli cake car "
    "carrot cellphone chair cup donut hairdryer handbag hydrant keyboard laptop microwave "
    "motorcycle mouse orange parkingmeter pizza plant stopsign teddybear toaster toilet toybus "
    "toyplane toytrain toytruck tv umbrella vase wineglass"
)
CATEGORIES = tuple(_NAMES.split())
"""The 41 categories that VGGT's evaluation (and PoseDiffusion's before it) averages over."""

FRAME_ANNOTATIONS = "frame_annotations.jgz"
SEQUENCE_ANNOTATIONS = "sequence_annotations.jgz"
OPTICAL_FROM_PYTORCH3D: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""PyTorch3D cameras look along +z with x to the left and y up."""

# Sums of T beyond this mark reconstructions that went wrong; VGGT's evaluation skips them.
_MAX_TRANSLATION = 1e5
_SHOWN = 6


@dataclass(frozen=True)
class Viewpoint:
    """A camera as CO3D's annotations write it: PyTorch3D's row vectors and NDC units.

    A world point x comes to `x @ R + T` in the view; x to the left, y up, z forward. In
    "ndc_isotropic" intrinsics one unit is half of the image's shorter side on both axes; in
    "ndc_norm_image_bounds" it is half of the image's own side on each axis.

    Attributes:
        R: (3, 3).
        T: (3,).
        focal_length: along x and y, NDC.
        principal_point: NDC; the origin is the image's centre, x to the left, y up.
        intrinsics_format: "ndc_isotropic" or "ndc_norm_image_bounds".
    """

    R: NDArray[np.float64]
    T: NDArray[np.float64]
    focal_length: tuple[float, float]
    principal_point: tuple[float, float]
    intrinsics_format: str = "ndc_isotropic"

    def camera_from_world(self) -> NDArray[np.float64]:
        """Return the (4, 4) pose with optical axes (OpenCV's)."""
        view_from_world = np.eye(4)
        view_from_world[:3, :3] = self.R.T
        view_from_world[:3, 3] = self.T
        return OPTICAL_FROM_PYTORCH3D @ view_from_world

    def intrinsics(self, width: int, height: int) -> NDArray[np.float64]:
        """Return the (3, 3) pinhole matrix in pixels, pixel centres at integer coordinates.

        NDC reaches from edge to edge of the image, so the image's centre is at
        ((width - 1) / 2, (height - 1) / 2).

        Raises:
            DatasetError: the format of the intrinsics is unknown.
        """
        unit_x, unit_y = self.units(width, height)
        fx, fy = self.focal_length
        px, py = self.principal_point
        return np.array(
            [
                [fx * unit_x, 0.0, 0.5 * width - px * unit_x - 0.5],
                [0.0, fy * unit_y, 0.5 * height - py * unit_y - 0.5],
                [0.0, 0.0, 1.0],
            ]
        )

    def units(self, width: int, height: int) -> tuple[float, float]:
        """Return the pixels in one NDC unit along x and y."""
        if self.intrinsics_format == "ndc_isotropic":
            return 0.5 * min(width, height), 0.5 * min(width, height)
        if self.intrinsics_format == "ndc_norm_image_bounds":
            return 0.5 * width, 0.5 * height
        raise DatasetError(
            f"intrinsics_format {short(self.intrinsics_format)} is unknown; known: ndc_isotropic, "
            "ndc_norm_image_bounds"
        )


class Co3d:
    """The sequences of a set list whose camera paths are trustworthy."""

    def __init__(
        self,
        root: Path,
        set_list: str = "set_lists_fewview_dev",
        subset: str = "test",
        min_quality: float = 0.5,
        min_images: int = 50,
    ) -> None:
        """Look at a directory.

        Args:
            root: holds the categories.
            set_list: name of the file in `set_lists/`, without its suffix.
            subset: "train", "val" or "test" of the set list.
            min_quality: sequences whose `viewpoint_quality_score` is not above are left out.
            min_images: sequences with fewer images in the subset are left out.
        """
        self._root = root
        self._set_list = set_list
        self._subset = subset
        self._min_quality = min_quality
        self._min_images = min_images
        # Of one category at a time: a large one's annotations take a gigabyte of memory.
        self._category = ""
        self._listed: dict[str, list[tuple[int, str]]] = {}
        self._annotations: dict[str, dict[int, Any]] = {}

    def contents(self) -> Contents:
        """Return the sequences as `<category>/<sequence>`."""
        scenes: list[str] = []
        problems: list[DatasetError] = []
        categories = [path for path in subdirectories(self._root) if _is_category(path)]
        if not categories:
            raise DatasetError(
                f"{self._root} holds no CO3D category: looked for "
                f"{self._root}/<category>/{FRAME_ANNOTATIONS}"
            )
        for category in categories:
            try:
                require_files([category / FRAME_ANNOTATIONS], f"category {category.name}")
                frames = self._subset_frames(category)
                good = self._good_sequences(category)
            except DatasetError as problem:
                problems.append(problem)
                continue
            scenes += [
                f"{category.name}/{sequence}"
                for sequence in sorted(frames)
                if sequence in good and len(frames[sequence]) >= self._min_images
            ]
        present = {path.name for path in categories}
        absent = tuple(name for name in CATEGORIES if name not in present)
        return Contents(tuple(scenes), tuple(problems), absent)

    def load(self, name: str) -> PosedScene:
        """Return a sequence's frames of the subset, in the order of the set list."""
        category, _, sequence = name.partition("/")
        self._open(category)
        entries = self._listed.get(sequence, [])
        annotations = self._annotations.get(sequence, {})
        unknown = [number for number, _ in entries if number not in annotations]
        if not entries or unknown:
            raise DatasetError(
                f"{name}: {self._root / category / FRAME_ANNOTATIONS} lacks {len(unknown)} of the "
                f"{len(entries)} frames that the set list names"
            )
        require_files([below(self._root, path) for _, path in entries], f"sequence {name}")
        frames = tuple(
            self._frame(annotations[number], index, name)
            for index, (number, _) in enumerate(entries)
        )
        return PosedScene(name, frames)

    def _subset_frames(self, category: Path) -> dict[str, list[tuple[int, str]]]:
        """Return (frame number, image path) per sequence."""
        path = category / "set_lists" / f"{self._set_list}.json"
        others = sorted(each.name for each in path.parent.glob("*.json"))
        if others and not path.exists():
            raise DatasetError(
                f"{path} is not there, but {', '.join(others[:_SHOWN])}: this protocol draws from "
                f"{self._set_list}, which CO3Dv2's single-sequence subset lacks; it needs the full "
                "data set (or pass set_list to qvggt_core.datasets.Co3d)",
                (path,),
            )
        content = read_json(path)
        try:
            frames = defaultdict(list)
            for sequence, number, image in content[self._subset]:
                frames[str(sequence)].append((int(number), str(image)))
            return dict(frames)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path} is no CO3D set list with a subset {self._subset!r}: {short(error)}"
            ) from error

    def _good_sequences(self, category: Path) -> set[str]:
        path = category / SEQUENCE_ANNOTATIONS
        try:
            return {
                entry["sequence_name"]
                for entry in read_json(path)
                if (entry.get("viewpoint_quality_score") or 0.0) > self._min_quality
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path} is no list of CO3D sequences: {short(error)}") from error

    def _open(self, category: str) -> None:
        """Read the annotations of a category's subset, unless they are those that are held."""
        if category == self._category:
            return
        listed = self._subset_frames(self._root / category)
        path = self._root / category / FRAME_ANNOTATIONS
        found: dict[str, dict[int, Any]] = defaultdict(dict)
        try:
            for entry in read_json(path):
                if entry["sequence_name"] in listed:
                    found[entry["sequence_name"]][int(entry["frame_number"])] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} is no list of CO3D frames: {short(error)}") from error
        self._category, self._listed, self._annotations = category, listed, dict(found)

    def _frame(self, entry: dict[str, Any], index: int, name: str) -> PosedFrame:
        where = f"{name}, frame {entry.get('frame_number')}"
        try:
            height, width = (int(side) for side in entry["image"]["size"])
            viewpoint = read_viewpoint(entry["viewpoint"])
            image_file = below(self._root, entry["image"]["path"])
            camera = Camera(width, height, viewpoint.intrinsics(width, height))
        except (KeyError, TypeError, ValueError, ImageError) as error:
            raise DatasetError(f"{where}: the annotation cannot be used: {short(error)}") from error
        if viewpoint.T.sum() > _MAX_TRANSLATION:
            raise ExcludedSceneError(
                f"{where}: T = {viewpoint.T.tolist()} is out of all bounds; left out"
            )
        camera_from_world = rigid(viewpoint.camera_from_world(), where)
        depth = entry.get("depth")
        return PosedFrame(
            image_file=image_file,
            camera=camera,
            world_from_camera=inverse(camera_from_world),
            stamp_ns=index,
            read_depth=partial(self._depth, depth, (height, width)) if depth else None,
        )

    def _depth(self, entry: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.float32]:
        path = below(self._root, entry["path"])
        # The 16 bits are those of a float16.
        depth = read_png16(path).view(np.float16).astype(np.float32)
        if depth.shape != shape:
            raise DatasetError(f"{path} has shape {depth.shape}, its image {shape}")
        depth = depth * np.float32(entry["scale_adjustment"])
        valid = np.isfinite(depth) & (depth > 0)
        if entry.get("mask_path"):
            mask_file = below(self._root, entry["mask_path"])
            require_files([mask_file], "the data set")
            mask = cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE)
            if mask is None or mask.shape != shape:
                raise DatasetError(f"{mask_file} is no mask of {shape[1]}x{shape[0]} pixels")
            valid &= mask > 0
        return np.where(valid, depth, np.float32(np.nan)).astype(np.float32)


def read_viewpoint(entry: dict[str, Any]) -> Viewpoint:
    """Return the viewpoint of a frame annotation.

    Raises:
        KeyError: an entry is missing.
        ValueError: an entry is not of its shape.
    """
    focal_x, focal_y = entry["focal_length"]
    principal_x, principal_y = entry["principal_point"]
    return Viewpoint(
        R=np.array(entry["R"], dtype=np.float64).reshape(3, 3),
        T=np.array(entry["T"], dtype=np.float64).reshape(3),
        focal_length=(float(focal_x), float(focal_y)),
        principal_point=(float(principal_x), float(principal_y)),
        # Annotations of the first CO3D do not have it.
        intrinsics_format=entry.get("intrinsics_format", "ndc_norm_image_bounds"),
    )


def _is_category(path: Path) -> bool:
    parts = (FRAME_ANNOTATIONS, SEQUENCE_ANNOTATIONS, "set_lists")
    return any((path / part).exists() for part in parts)
