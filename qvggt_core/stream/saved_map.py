"""A map on the disk: its keyframes, by which a camera finds itself in it another day.

The format is in docs/map_format.md. A file of somebody else's making is refused with a reason,
whatever is in it: sizes are compared before anything is read, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qvggt_core.errors import MapError, OutputError
from qvggt_core.geometry.poses import exactly_rigid
from qvggt_core.geometry.similarities import rigid, scale_of
from qvggt_core.stream.image_features import Features
from qvggt_core.stream.keyframe_placement import WORLD
from qvggt_core.stream.keyframe_store import MAX_KEYFRAMES, StoredKeyframe
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.loop_verification import Corners
from qvggt_core.util.directories import OutputKind, new_output
from qvggt_core.util.files import read_bounded_text, write_atomically
from qvggt_core.util.quoting import short

FORMAT, VERSION = "qvggt-map", 1
MANIFEST_FILE, KEYFRAMES_FILE = "map.json", "keyframes.safetensors"

_MAX_MANIFEST_BYTES = 1 << 16
_MAX_BYTES = 1 << 30
_MAX_SIDE = 4096
_MAX_CORNERS = 4000
_MAX_LENGTH = 1e7
_ROTATION_TOLERANCE = 1e-6
_DESCRIPTOR = 128


@dataclass(frozen=True)
class SavedMap:
    """Keyframes of one world.

    Attributes:
        name: of the map, for an operator: its directory's.
        network: SHA-256 of the checkpoint whose tokens the keyframes have.
        is_metric: whether the unit is the metre; else it is one of its own.
        up_source: what its vertical stands on, see `Up.source`.
        poses: (N, 4, 4) map_from_camera, rigid.
        keyframes: N; their lengths are in the map's unit, in order of time.
        places: (N, D) float32, what each is recognised by, see `place_descriptor`.
    """

    name: str
    network: str
    is_metric: bool
    up_source: str
    poses: NDArray[np.float64]
    keyframes: tuple[StoredKeyframe, ...]
    places: NDArray[np.float32]

    @classmethod
    def of(cls, finder: LoopFinder, network: str, up_source: str, name: str = "map") -> SavedMap:
        """Return the keyframes of the largest world, where loops put them.

        Of a map that was loaded it is the one that the loaded map has grown to.
        Images of another size than most of them have are left out.

        Raises:
            MapError: there are none.
        """
        stored, chains = finder.store.keyframes, finder.chains
        if not stored:
            raise MapError("there is no map to save: no keyframe has got its geometry yet")
        worlds, moves = finder.placed()
        numbers, counts = np.unique(worlds, return_counts=True)
        world = WORLD if finder.map_name else int(numbers[counts.argmax()])
        own = np.flatnonzero(worlds == world)
        kinds = [_kind(stored[index]) for index in own]
        usual = max(set(kinds), key=lambda kind: (kinds.count(kind), str(kind)))
        own = own[[kind == usual for kind in kinds]]
        scales = scale_of(moves[own])
        return cls(
            name,
            network,
            finder.is_metric(world, worlds),
            up_source,
            exactly_rigid(rigid(moves[own] @ chains.poses[own])),
            tuple(stored[i].scaled(float(s)) for i, s in zip(own, scales, strict=True)),
            np.stack([finder.store.index.row(int(index)) for index in own]),
        )

    def check_network(self, network: str) -> None:
        """Refuse a network whose tokens are not those of the map.

        Raises:
            MapError: it is another one.
        """
        if network != self.network:
            raise MapError(
                f"the map {self.name} was made with another network (its checkpoint's SHA-256 is "
                f"{short(self.network)}, this one's {short(network)}): places are not recognised "
                "by other tokens; load that checkpoint, or map anew"
            )


def _kind(keyframe: StoredKeyframe) -> tuple[Any, ...]:
    """Return what keyframes must have in common to be in one file."""
    tokens = keyframe.tokens if isinstance(keyframe.tokens, np.ndarray) else np.empty((0, 0))
    return keyframe.image.shape, tokens.shape


def write_map(directory: Path, saved: SavedMap, overwrite: bool = False) -> None:
    """Write a map, whole or not at all.

    Args:
        directory: to make.
        saved: the map.
        overwrite: whether a former map is replaced; anything else is left alone.

    Raises:
        OutputError: something is in the way, or the place cannot be written.
    """
    with new_output(directory, MAP, overwrite=overwrite, keep_unfinished=False) as partial:
        write_map_files(partial, saved)


def write_map_files(directory: Path, saved: SavedMap) -> None:
    """Write a map's files into a directory that becomes the map when all is in it.

    Raises:
        OutputError: they cannot be written.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "keyframes": len(saved.keyframes),
        "unit": "m" if saved.is_metric else "own",
        "up_source": saved.up_source,
        "network_sha256": saved.network,
    }
    try:
        save_file(_tensors(saved), directory / KEYFRAMES_FILE)
        write_atomically(directory / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"the map cannot be written to {directory}: {short(error)}") from error


def _tensors(saved: SavedMap) -> dict[str, NDArray[Any]]:
    keyframes = saved.keyframes
    corners = [keyframe.corners for keyframe in keyframes]
    tensors = {
        "poses": saved.poses,
        "stamps_ns": np.array([each.stamp_ns for each in keyframes], np.int64),
        "intrinsics": np.stack([each.intrinsics for each in keyframes]),
        "images": np.stack([each.image for each in keyframes]),
        "depth": np.stack([each.depth for each in keyframes]),
        "depth_unit": np.array([each.unit for each in keyframes], np.float64),
        "places": saved.places,
        "corners": np.array([len(each.features) for each in corners], np.int64),
        "corner_pixels": np.concatenate([each.features.pixels for each in corners]),
        "corner_descriptors": np.concatenate([each.features.descriptors for each in corners]),
        "corner_rays": np.concatenate([each.rays for each in corners]),
        "corner_depth": np.concatenate([each.depth for each in corners]),
        "corner_focal": np.array([each.focal for each in corners], np.float64),
        "corner_area": np.array([each.area for each in corners], np.float64),
    }
    if isinstance(keyframes[0].tokens, np.ndarray):
        tensors["tokens"] = np.stack([each.tokens for each in keyframes])
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def read_map(directory: Path) -> SavedMap:
    """Read a map.

    Raises:
        MapError: it is missing, truncated, of another version, or holds what no map has.
    """
    manifest = _manifest(directory)
    path = directory / KEYFRAMES_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MapError(f"{path} has {path.stat().st_size} bytes, more than {_MAX_BYTES}")
        with safe_open(path, framework="numpy") as file:
            _check_shapes(path, file, manifest["keyframes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise MapError(f"{path} cannot be read: {short(error)}; save the map again") from error
    _check_values(path, tensors)
    return SavedMap(
        directory.resolve().name,
        manifest["network_sha256"],
        manifest["unit"] == "m",
        manifest["up_source"],
        tensors["poses"],
        tuple(_keyframes(tensors)),
        tensors["places"],
    )


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(read_bounded_text(path, _MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise MapError(f"{directory} is no saved map: {path.name}: {short(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MapError(f"{directory} is no saved map: {path.name} has no format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise MapError(
            f"{directory} has the map format {short(manifest.get('version'))}, this qvggt reads "
            f"{VERSION}: load it with the release that wrote it, or map anew"
        )
    for key, is_right in _MANIFEST.items():
        if not is_right(manifest.get(key)):
            raise MapError(f"{path}: {key} is {short(manifest.get(key))}; save the map again")
    return manifest


_MANIFEST: dict[str, Callable[[Any], bool]] = {
    "keyframes": lambda value: type(value) is int and 1 <= value <= MAX_KEYFRAMES,
    "unit": lambda value: value in ("m", "own"),
    "up_source": lambda value: isinstance(value, str) and len(value) <= 80,
    "network_sha256": lambda value: isinstance(value, str) and len(value) <= 80,
}


def _check_shapes(path: Path, file: Any, count: int) -> None:
    """Refuse tensors whose types and sizes do not fit each other, before any is read."""
    found = {}
    for name in file.keys():  # noqa: SIM118
        entry = file.get_slice(name)
        found[name] = (entry.get_dtype(), tuple(entry.get_shape()))
    corners = found.get("corner_pixels", ("", (0,)))[1][0]
    size = found.get("depth", ("", ()))[1][1:]
    places = found.get("places", ("", ()))[1][1:2]
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "poses": ("F64", (count, 4, 4)),
        "stamps_ns": ("I64", (count,)),
        "intrinsics": ("F64", (count, 3, 3)),
        "images": ("U8", (count, *size, 3)),
        "depth": ("F16", (count, *size)),
        "depth_unit": ("F64", (count,)),
        "places": ("F32", (count, *places)),
        "corners": ("I64", (count,)),
        "corner_pixels": ("F32", (corners, 2)),
        "corner_descriptors": ("U8", (corners, _DESCRIPTOR)),
        "corner_rays": ("F64", (corners, 2)),
        "corner_depth": ("F32", (corners,)),
        "corner_focal": ("F64", (count,)),
        "corner_area": ("F64", (count,)),
    }
    if "tokens" in found:
        tokens = found["tokens"][1]
        expected["tokens"] = ("F16", (count, *tokens[1:3]))
        if len(tokens) != 3:
            raise MapError(f"{path}: tokens have the shape {short(tokens)}; save the map again")
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            raise MapError(
                f"{path}: {short(name)} is {short(found.get(name, 'missing'))}, not "
                f"{short(expected.get(name, 'in a map'))}; save the map again"
            )
    if len(size) != 2 or not all(0 < side <= _MAX_SIDE for side in size) or places == (0,):
        raise MapError(f"{path}: images of {short(size)} pixels with {short(places)} descriptors")


def _check_values(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Refuse values that no map has: what is not finite, turned otherwise, or out of range."""
    poses, rotation = tensors["poses"], tensors["poses"][:, :3, :3]
    counts = tensors["corners"]
    depth = tensors["corner_depth"]
    with np.errstate(all="ignore"):
        turned = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max()
        problems = {
            "poses": not (
                turned < _ROTATION_TOLERANCE
                and (np.linalg.det(rotation) > 0.0).all()
                and (np.abs(poses[:, :3, 3]) < _MAX_LENGTH).all()
                and (poses[:, 3] == [0.0, 0.0, 0.0, 1.0]).all()
            ),
            "intrinsics": not (
                np.isfinite(tensors["intrinsics"]).all()
                and (tensors["intrinsics"][:, [0, 1], [0, 1]] > 0.0).all()
            ),
            "places": not np.isfinite(tensors["places"]).all(),
            "corners": not (
                (counts >= 0).all()
                and (counts <= _MAX_CORNERS).all()
                and counts.sum() == len(tensors["corner_pixels"])
            ),
            "corner_pixels": not np.isfinite(tensors["corner_pixels"]).all(),
            "corner_rays": not np.isfinite(tensors["corner_rays"]).all(),
            "corner_depth": bool((depth <= 0.0).any() or np.isinf(depth).any()),
        }
        for name in ("depth_unit", "corner_focal", "corner_area"):
            values = tensors[name]
            problems[name] = not ((values > 0.0) & (values < _MAX_LENGTH)).all()
    for name, is_wrong in problems.items():
        if is_wrong:
            raise MapError(f"{path}: {name} holds values that no map has; save the map again")


def _keyframes(tensors: dict[str, NDArray[Any]]) -> list[StoredKeyframe]:
    ends = np.cumsum(tensors["corners"])
    tokens = tensors.get("tokens")
    found = []
    for index, end in enumerate(ends):
        own = slice(int(end - tensors["corners"][index]), int(end))
        corners = Corners(
            Features(tensors["corner_pixels"][own], tensors["corner_descriptors"][own]),
            tensors["corner_rays"][own],
            tensors["corner_depth"][own],
            float(tensors["corner_focal"][index]),
            float(tensors["corner_area"][index]),
        )
        found.append(
            StoredKeyframe(
                int(tensors["stamps_ns"][index]),
                tensors["images"][index],
                tensors["intrinsics"][index],
                None if tokens is None else tokens[index],
                tensors["depth"][index],
                float(tensors["depth_unit"][index]),
                corners,
            )
        )
    return found


def _entries(directory: Path) -> list[Path]:
    names = (MANIFEST_FILE, KEYFRAMES_FILE)
    return [Path(name) for name in names if (directory / name).exists()]


def _is_marked(directory: Path) -> bool:
    with suppress(MapError):
        return bool(_manifest(directory))
    return False


MAP = OutputKind("saved map", _entries, _is_marked)
"""What `write_map` makes."""
