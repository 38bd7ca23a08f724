"""The formats: which there are, which a name means, and how each is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from qvggt_core.errors import OutputError, ParameterError
from qvggt_core.export.colmap import MODEL, write_colmap
from qvggt_core.export.glb import write_glb
from qvggt_core.export.nerfstudio import (
    DEPTH_FOLDER,
    POINTS_FILE,
    TRANSFORMS_FILE,
    write_nerfstudio,
)
from qvggt_core.export.pcd import write_pcd
from qvggt_core.export.scene import Scene
from qvggt_core.geometry.cloud import write_ply
from qvggt_core.util.directories import OutputKind, new_output
from qvggt_core.util.files import atomic_path, read_bounded_text, write_atomically
from qvggt_core.util.output_files import check_file

FILE_FORMATS = ("ply", "pcd", "glb")
DIRECTORY_FORMATS = ("colmap", "colmap-text", "nerfstudio")
FACTS_FILE, IMAGE_FOLDER = "qvggt_export.json", "images"

_FORMAT = "qvggt-export"
_MAX_FACTS_BYTES = 1 << 16
_MODEL_FILES = ("cameras", "images", "points3D")


def format_of(output: Path, name: str | None) -> str:
    """Return the format that a name or else the suffix of an output means.

    Raises:
        ParameterError: neither is one.
    """
    known = (*FILE_FORMATS, *DIRECTORY_FORMATS)
    if name is None and output.suffix.lower().lstrip(".") in FILE_FORMATS:
        return output.suffix.lower().lstrip(".")
    if name not in known:
        found = f"format {name!r} is unknown" if name else f"{output.name} shows no format"
        raise ParameterError(f"{found}: choose --format {', '.join(known)}")
    return name


def write_scene(
    output: Path, scene: Scene, name: str, *, overwrite: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Write a scene, whole or not at all.

    Args:
        output: file or directory to make.
        scene: what is written.
        name: one of `FILE_FORMATS` or `DIRECTORY_FORMATS`.
        overwrite: whether a file that is there, or a former export, is replaced.
        inputs: directories that must not lie in the output, nor a file in them.

    Raises:
        OutputError: something is in the way, the place cannot be written, or the scene lacks what
            the format needs.
    """
    if name in FILE_FORMATS:
        check_file(output, lambda path: True, inputs)
        if output.exists() and not overwrite:
            raise OutputError(f"{output} exists: choose another, or replace it with --overwrite")
        _write_file(output, scene, name)
        return
    if not scene.images:
        raise OutputError(
            f"the format {name} needs images, and the source has none of this segment: export a "
            "map that `qvggt replay --save-map` saved"
        )
    with new_output(
        output, EXPORT, overwrite=overwrite, inputs=inputs, keep_unfinished=False
    ) as partial:
        try:
            _write_directory(partial, scene, name)
        except OSError as error:
            raise OutputError(f"the export cannot be written to {output}: {error}") from error


def _write_file(output: Path, scene: Scene, name: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(output) as partial:
            if name == "ply":
                write_ply(partial, scene.cloud)
            elif name == "pcd":
                write_pcd(partial, scene.cloud)
            else:
                write_glb(partial, scene.cloud, scene.is_metric)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}") from error


def _write_directory(directory: Path, scene: Scene, name: str) -> None:
    folder = directory / IMAGE_FOLDER
    folder.mkdir(exist_ok=True)
    for image in scene.images:
        path = folder / f"{image.name}.png"
        if not cv2.imwrite(str(path), image.image[..., ::-1]):
            raise OutputError(f"the image {path} cannot be written")
    if name == "nerfstudio":
        write_nerfstudio(directory, scene, IMAGE_FOLDER)
    else:
        write_colmap(directory, scene, as_text=name == "colmap-text")
    facts = {
        "format": _FORMAT,
        "kind": name,
        "images": len(scene.images),
        "points": len(scene.cloud),
        "unit": "m" if scene.is_metric else "own",
        "up_source": scene.up_source,
    }
    write_atomically(directory / FACTS_FILE, json.dumps(facts, indent=2) + "\n")


def _entries(directory: Path) -> list[Path]:
    """Return what has a name of ours: images are called by their time."""
    names = [Path(FACTS_FILE), Path(TRANSFORMS_FILE), Path(POINTS_FILE)]
    names += [MODEL / f"{stem}{suffix}" for stem in _MODEL_FILES for suffix in (".bin", ".txt")]
    for folder in (IMAGE_FOLDER, DEPTH_FOLDER):
        names += [
            Path(folder) / path.name
            for path in (directory / folder).glob("*.png")
            if path.stem.lstrip("-").isdigit()
        ]
    folders = [Path(IMAGE_FOLDER), Path(DEPTH_FOLDER), MODEL.parent, MODEL]
    return [path for path in [*names, *folders] if (directory / path).exists()]


def _is_marked(directory: Path) -> bool:
    facts: Any = None
    try:
        facts = json.loads(read_bounded_text(directory / FACTS_FILE, _MAX_FACTS_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.get("format") == _FORMAT


EXPORT = OutputKind("export of a map", _entries, _is_marked)
"""What `write_scene` makes of the formats that are directories."""
