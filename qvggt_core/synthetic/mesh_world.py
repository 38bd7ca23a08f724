"""Textured meshes as worlds: what Gazebo drives in, read from its files.

A world file places models, a model's visuals name meshes; of all that, what a camera sees is kept:
triangles with texture coordinates, in the world's frame (REP-103, z up, metres).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import DatasetError
from qvggt_core.geometry.poses import transform
from qvggt_core.optional import import_optional

TILE = 256
"""Side in pixels to which all textures are brought."""

_MODEL_SCHEME = "model://"
_MAX_FILE_BYTES = 16 * 2**20
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class TexturedMeshes:
    """Triangles of a whole world.

    Attributes:
        corners: (T, 3, 3) float32 metres.
        uv: (T, 3, 2) float32 texture coordinates of the corners, to the right and upwards.
        tile: (T,) int64 number of each triangle's texture.
        tiles: (N, TILE, TILE, 3) uint8 sRGB textures.
    """

    corners: NDArray[np.float32]
    uv: NDArray[np.float32]
    tile: NDArray[np.int64]
    tiles: NDArray[np.uint8]


def read_gazebo_world(path: Path, models: Path) -> TexturedMeshes:
    """Read what cameras see of a world in SDF.

    Models whose meshes are missing or cannot be read are left out.

    Args:
        path: `.world` file.
        models: directory of the models that it includes.

    Raises:
        DatasetError: the file is no world, or none of its models can be read.
        MissingPackageError: trimesh or what it needs for COLLADA is not installed.
    """
    parts: list[_Part] = []
    cache: dict[str, list[_Part]] = {}
    for name, world_from_model in _placed_models(_parse(path)):
        if name not in cache:
            cache[name] = list(_model_parts(models / name, models))
        parts += [part.moved(world_from_model) for part in cache[name]]
    if not parts:
        raise DatasetError(f"{path} shows nothing: are its models in {models}?")
    images = {id(part.image): part.image for part in parts}
    numbers = {key: index for index, key in enumerate(images)}
    return TexturedMeshes(
        corners=np.concatenate([part.corners for part in parts]).astype(np.float32),
        uv=np.concatenate([part.uv for part in parts]).astype(np.float32),
        tile=np.concatenate([np.full(len(p.corners), numbers[id(p.image)]) for p in parts]),
        tiles=np.stack(list(images.values())),
    )


@dataclass(frozen=True)
class _Part:
    """Triangles (T, 3, 3) with one texture (TILE, TILE, 3)."""

    corners: NDArray[np.float64]
    uv: NDArray[np.float64]
    image: NDArray[np.uint8]

    def moved(self, pose: NDArray[np.float64]) -> _Part:
        return _Part(self.corners @ pose[:3, :3].T + pose[:3, 3], self.uv, self.image)


def _parse(path: Path) -> ElementTree.Element:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DatasetError(f"{path} is larger than any description of a world or model")
        # Expat itself ends files that expand without bound (since 2.4.1).
        return ElementTree.parse(path).getroot()  # noqa: S314
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def _placed_models(root: ElementTree.Element) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the name and pose of each model that a world includes."""
    for element in root.iter("world"):
        for include in element.findall("include"):
            yield _model_name(include), _pose(include)
        for model in element.findall("model"):
            for include in model.findall("include"):
                yield _model_name(include), _pose(model) @ _pose(include)


def _model_name(include: ElementTree.Element) -> str:
    # The last part alone: a name cannot lead out of the directory of models.
    return Path((include.findtext("uri") or "").removeprefix(_MODEL_SCHEME)).name


def _pose(element: ElementTree.Element) -> NDArray[np.float64]:
    text = element.findtext("pose")
    x, y, z, roll, pitch, yaw = (float(value) for value in (text or "0 0 0 0 0 0").split())
    return transform(
        Rotation.from_euler("xyz", [roll, pitch, yaw]).as_matrix(), np.array([x, y, z])
    )


def _model_parts(directory: Path, models: Path) -> Iterator[_Part]:
    """Yield what is visible of a model, in its frame; nothing if it cannot be read."""
    try:
        root = _parse(directory / "model.sdf")
    except DatasetError:
        return
    for link in root.iter("link"):
        for visual in link.findall("visual"):
            uri = visual.findtext("geometry/mesh/uri") or ""
            path = models / uri.removeprefix(_MODEL_SCHEME)
            if not uri or not path.resolve().is_relative_to(models.resolve()):
                continue
            scale = [float(v) for v in (visual.findtext("geometry/mesh/scale") or "1 1 1").split()]
            pose = _pose(link) @ _pose(visual) @ np.diag([*scale, 1.0])
            for part in _mesh_parts(path):
                yield part.moved(pose)


def _mesh_parts(path: Path) -> Iterator[_Part]:
    trimesh = import_optional("trimesh")
    try:
        scene = trimesh.load_scene(path, resolver=_ModelFiles(path.parent))
        metres = trimesh.units.unit_conversion(scene.units or "meters", "meters")
        meshes = scene.dump()
    except (OSError, ValueError, KeyError, AttributeError):
        return
    for mesh in meshes:
        uv = getattr(mesh.visual, "uv", None)
        if uv is None:
            uv = np.zeros((len(mesh.vertices), 2))
        yield _Part(metres * mesh.vertices[mesh.faces], uv[mesh.faces], _texture(mesh))


class _ModelFiles:
    """Opens what a mesh names: files of its model, also from beside the meshes' directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> bytes:
        path = (self._directory / name).resolve()
        if not path.is_relative_to(self._directory.parent.resolve()):
            raise FileNotFoundError(f"{name} lies outside of the model")
        return path.read_bytes()

    __getitem__ = get


def _texture(mesh: object) -> NDArray[np.uint8]:
    """Return the picture on a trimesh, or its one colour, as a tile."""
    material = getattr(getattr(mesh, "visual", None), "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is None:
        colour = getattr(material, "main_color", None)
        rgb = np.array(_GREY if colour is None else colour[:3], dtype=np.uint8)
        return np.tile(rgb, (TILE, TILE, 1))
    pixels = np.asarray(image.convert("RGB"))
    tile = cv2.resize(pixels, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return tile.astype(np.uint8, copy=False)
