"""Opens files of weights: one `.safetensors`, several with an index, a hub folder, a PyTorch zip.

Files are read tensor by tensor, into memory of its own. Nothing is unpickled but tensors
(`torch.load(weights_only=True)`). Files that are no weights are recognised by their first bytes.
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from qvggt_core.errors import CheckpointError
from qvggt_core.model.steady_file import SafetensorsFile, SteadyFile
from qvggt_core.util.files import read_bounded_text
from qvggt_core.util.quoting import cut, short

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_TORCH = (b"\x80\x02\x8a", b"\x80\x02}")
_HEAD_BYTES = 512
_MAX_INDEX_BYTES = 1 << 26
_MAX_PICKLE_BYTES = 1 << 26
_MAX_NAME_BYTES = 255
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Where trainers put a network's entries, in the order in which they are looked for.
# A tensor may repeat what is stored once, up to so much.
_REPEATED_BYTES = 1 << 20
_NESTING_KEYS = ("model", "state_dict", "model_state_dict", "ema", "ema_state_dict")


@dataclass(frozen=True)
class Weights:
    """Opened files of weights.

    Attributes:
        files: all of them; the first is read first.
        shapes: of the entries, by the names in the files.
        dtype: returns the type of an entry, without reading it.
        read: returns an entry on the host, in memory of its own.
        metadata: text entries of a `.safetensors` header.
    """

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: Callable[[str], torch.dtype]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_weights(path: Path) -> Weights:
    """Open what a path names: a file, an index of shards, or a folder with either.

    Raises:
        CheckpointError: it is missing, incomplete, or something else; says what it is.
    """
    if path.is_dir():
        path = _in_folder(path)
    head = _head(path)
    _refuse_other_kinds(path, head)
    if head.startswith(_ZIP_MAGIC):
        return _open_torch(path)
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    shard = _SHARD.search(path.name)
    if shard and int(shard[2]) > 1:
        raise CheckpointError(
            f"{path} is one of {int(shard[2])} files of one network: name the folder {path.parent} "
            "or its .index.json"
        )
    return _open_safetensors(path)


def _open_torch(path: Path) -> Weights:
    file = SteadyFile(path)
    state = torch_entries(path)

    def read(name: str) -> Tensor:
        # A mapping can be copied only while its file is whole.
        file.check()
        tensor = state[name].clone()
        file.check()
        return tensor

    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Weights((path,), shapes, lambda name: state[name].dtype, read)


def torch_entries(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a PyTorch `.pt` file, memory-mapped; nothing else is unpickled.

    Entries below the usual keys of trainers ("model", "state_dict", ...) are found.

    Raises:
        CheckpointError: the file cannot be read, or holds no named tensors.
    """
    _check_torch_zip(path)
    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        # On a damaged or hostile file PyTorch's reader raises whatever it meets.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as tensors: {cut(reason)}; it "
            "is truncated, or holds more than weights"
        ) from error
    for _ in range(2):
        key = next((k for k in _NESTING_KEYS if isinstance(_get(content, k), dict)), None)
        content = content if key is None else content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    entries = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    odd = [name for name, value in entries.items() if not isinstance(name, str)]
    odd += [name for name, value in entries.items() if not _is_stored(value)]
    if odd:
        raise CheckpointError(
            f"{path}: its entry {short(odd[0])} is no dense tensor with a name: it is no "
            "state_dict of a network"
        )
    return entries


def _is_stored(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, and its values are in the file one by one."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    needed = tensor.numel() * tensor.element_size()
    return needed <= max(tensor.untyped_storage().nbytes(), _REPEATED_BYTES)


def _check_torch_zip(path: Path) -> None:
    """Raise if a file is no zip, or its names and shapes alone would fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [each for each in archive.infolist() if each.compress_type]
            large = sum(each.file_size for each in packed)
            pickles = [e.file_size for e in archive.infolist() if e.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as tensors: {error}; it is "
            "truncated, or holds more than weights"
        ) from error
    if large > _MAX_PICKLE_BYTES or sum(pickles) > _MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} unpacks to {max(large, sum(pickles))} bytes beside its tensors: no network's "
            "names and shapes are so long"
        )


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, dict) else None


def _head(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Opening a pipe waits for its other end; a device may have no end.
            raise CheckpointError(f"{path} is a pipe, a socket or a device: name a file of weights")
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot open the checkpoint {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"cannot open the checkpoint {short(str(path))}: {error}") from error


def _in_folder(folder: Path) -> Path:
    """Return the file of a folder that stands for its weights."""
    for name in (INDEX_NAME, SINGLE_NAME):
        if (folder / name).is_file():
            return folder / name
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    except OSError as error:
        raise CheckpointError(f"cannot read the folder {folder}: {error.strerror}") from error
    if len(found) == 1:
        return found[0]
    listed = ", ".join(p.name for p in found[:5]) or "none"
    raise CheckpointError(
        f"the folder {folder} has neither {SINGLE_NAME} nor {INDEX_NAME}, and {len(found)} other "
        f"files of weights ({listed}): name one file"
    )


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    """Raise if the first bytes are those of something that is no weights."""
    size = path.stat().st_size
    start = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): download it again")
    if start.startswith(b"version https://git-lfs"):
        wanted = re.search(rb"size (\d+)", head)
        promised = f" of {int(wanted[1]):,} bytes" if wanted else ""
        raise CheckpointError(
            f"{path} ({size} bytes) is a Git LFS pointer to a file{promised}, not the file: run "
            "`git lfs pull` in its folder, or use `qvggt download`"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} ({size} bytes) is a web page, not weights: the download was answered by a "
            "login or error page; use `qvggt download`, or log in with `hf auth login` first"
        )
    if head.startswith(_LEGACY_TORCH):
        raise CheckpointError(
            f"{path} is in PyTorch's format from before 1.6: load it with PyTorch and save its "
            "state_dict again"
        )
    if head.startswith(b"GGUF") or path.suffix in (".gguf", ".onnx"):
        raise CheckpointError(
            f"{path} is a GGUF or ONNX file: qvggt reads the original's .safetensors or .pt"
        )


def _open_safetensors(path: Path) -> Weights:
    try:
        file = SafetensorsFile(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is no complete .safetensors file and no "
            f"PyTorch zip file: {error}; download or quantize it again"
        ) from error
    return Weights((path,), file.shapes, file.dtype, file.read, file.metadata)


def _open_shards(index: Path) -> Weights:
    """Open the files that an index names; they lie beside it."""
    places = _weight_map(index)
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} files, of which {len(missing)} are missing, first: "
            f"{missing[0]}; download them too"
        )
    shards = {}
    for name in names:
        _refuse_other_kinds(index.parent / name, _head(index.parent / name))
        shards[name] = _open_safetensors(index.parent / name)
    absent = [name for name, shard in places.items() if name not in shards[shard].shapes]
    if absent:
        raise CheckpointError(
            f"{index} places {absent[0]} in {places[absent[0]]}, which does not have it: the files "
            "are of different networks, download all of them again"
        )
    return Weights(
        (index, *(index.parent / name for name in names)),
        {name: shards[shard].shapes[name] for name, shard in places.items()},
        lambda name: shards[places[name]].dtype(name),
        lambda name: shards[places[name]].read(name),
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        text = read_bounded_text(index, _MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} cannot be read: {short(error)}") from error
    return weight_map(text, str(index))


def weight_map(text: str, source: str) -> dict[str, str]:
    """Return the file by entry that an index names.

    Args:
        text: of the index.
        source: what it is, for errors.

    Raises:
        CheckpointError: it is no index, or names what is no file beside it.
    """
    try:
        places = json.loads(text)["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source} is no index of .safetensors files: {short(error)}"
        ) from error
    if not isinstance(places, dict) or not all(
        isinstance(place, str) and _is_file_name(place) for place in places.values()
    ):
        raise CheckpointError(f"{source}: its weight_map does not name files beside it")
    return places


def _is_file_name(text: str) -> bool:
    """Return whether a text names a file of a folder, as long as file systems have them."""
    is_plain = Path(text).name == text and text not in ("", "..") and "\0" not in text
    return is_plain and len(text.encode(errors="replace")) <= _MAX_NAME_BYTES
