"""Photographs for surfaces: an atlas of square tiles, cut from the images that packages ship.

None of the images is part of qvggt. `SOURCES` names them to the file, with their licences; whoever
builds an atlas installs the packages, or unpacks them somewhere on Python's path.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import TrainingError

TILE = 256
"""Side of a tile, pixels."""

_CROPS_PER_IMAGE = 4
_SMALLEST_CROP = 160


@dataclass(frozen=True)
class PhotographSource:
    """Images of one package.

    Attributes:
        package: distribution and version on PyPI.
        licence: of the images.
        directory: below site-packages.
        patterns: globs below the directory.
        excluded: stems that are left out: no photographs, or with rights that are not clear.
    """

    package: str
    licence: str
    directory: str
    patterns: tuple[str, ...]
    excluded: tuple[str, ...] = ()


SOURCES = (
    PhotographSource(
        "scikit-image==0.26.0",
        "CC0 or public domain (skimage.data documents each)",
        "skimage/data",
        (
            "astronaut.png",
            "brick.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    PhotographSource(
        "scikit-learn==1.9.1",
        "CC-BY (china.jpg by Yuichi Sakuraba, flower.jpg by dany13)",
        "sklearn/datasets/images",
        ("china.jpg", "flower.jpg"),
    ),
    PhotographSource(
        "matplotlib==3.11.2",
        "public domain (U.S. Navy)",
        "matplotlib/mpl-data/sample_data",
        ("grace_hopper.jpg",),
    ),
    PhotographSource(
        "miniworld==2.1.0",
        "Apache-2.0; portraits are paintings in the public domain",
        "miniworld/textures",
        ("*.png", "portraits/*.png"),
        ("door_doom_1", "door_doom_2", "lava_1", "lava_2", "slime_1", "logo_mila_1", "white_1"),
    ),
    PhotographSource(
        "robosuite==1.5.2",
        "MIT",
        "robosuite/models/assets/textures",
        ("*.png",),
        ("lemon", "bread", "can", "cereal", "soda"),
    ),
)


def build_atlas(output: Path, site_packages: list[Path] | None = None, seed: int = 0) -> int:
    """Cut the images of `SOURCES` into tiles and write them; return the number of tiles.

    Args:
        output: .npy to write, (N, TILE, TILE, 3) uint8 sRGB.
        site_packages: directories that the packages are installed or unpacked in; None takes
            Python's path.
        seed: of the crops.

    Raises:
        TrainingError: a package is in none of the directories.
    """
    if site_packages is None:
        site_packages = [Path(entry) for entry in sys.path if entry]
    rng = np.random.default_rng([11, seed])
    tiles = [tile for path in photographs(site_packages) for tile in _tiles(path, rng)]
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp.npy")
    np.save(temporary, np.stack(tiles))
    temporary.replace(output)
    return len(tiles)


def photographs(site_packages: list[Path]) -> list[Path]:
    """Return the files of `SOURCES`, in order.

    Raises:
        TrainingError: a package is in none of the directories.
    """
    found = []
    for source in SOURCES:
        roots = [root / source.directory for root in site_packages]
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            raise TrainingError(
                f"{source.directory} is in none of {[str(p) for p in site_packages]}: install or "
                f"unpack {source.package} first"
            )
        for pattern in source.patterns:
            files = sorted(root.glob(pattern))
            found += [path for path in files if path.stem not in source.excluded]
    return found


def open_atlas(path: Path) -> NDArray[np.uint8]:
    """Return the tiles (N, TILE, TILE, 3), memory-mapped.

    Raises:
        TrainingError: there is no such file, or it is no atlas.
    """
    try:
        tiles = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"cannot open the atlas of photographs {path}: {error}; build it first"
        ) from error
    if tiles.dtype != np.uint8 or tiles.shape[1:] != (TILE, TILE, 3) or not len(tiles):
        raise TrainingError(f"{path} holds {tiles.dtype} {tiles.shape}, no tiles of photographs")
    return tiles


def _tiles(path: Path, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise TrainingError(f"cannot read the photograph {path}")
    image = image[..., ::-1]
    shorter = min(image.shape[:2])
    sides = [shorter]
    if shorter > _SMALLEST_CROP:
        sides += [int(rng.uniform(_SMALLEST_CROP, shorter)) for _ in range(_CROPS_PER_IMAGE - 1)]
    tiles = []
    for side in sides:
        row = int(rng.integers(image.shape[0] - side + 1))
        column = int(rng.integers(image.shape[1] - side + 1))
        crop = np.ascontiguousarray(image[row : row + side, column : column + side])
        method = cv2.INTER_AREA if side > TILE else cv2.INTER_CUBIC
        tile = cv2.resize(crop, (TILE, TILE), interpolation=method)
        tiles.append(tile.astype(np.uint8, copy=False))
    return tiles
