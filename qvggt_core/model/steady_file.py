"""Reads files of weights that may be written anew or cut by others while they are read.

A mapping of such a file ends the process with SIGBUS, or shows one network's weights beside
another's without a word. Here bytes are read into memory of their own, and a file that has changed
is an error. One that is replaced by a new file under its name is read on as it was.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvggt_core.errors import CheckpointError

_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""By their names in a header (safetensors' format description)."""


class SteadyFile:
    """An open file that must stay as it is.

    Attributes:
        path: under which it was opened.
        size: bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._opened = self._state()
        self.size = self._opened[0]

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise if the file's bytes were written or cut since it was opened.

        Raises:
            CheckpointError: they were.
        """
        now = self._state()
        if now != self._opened:
            raise CheckpointError(
                f"{self.path} was changed while it was read ({self.size} bytes before, {now[0]} "
                "now): run it again when nothing writes the file"
            )

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill a buffer with the file's bytes from an offset on.

        Raises:
            CheckpointError: the file changed, or ends before.
            OSError: it cannot be read.
        """
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if not count:
                self.check()
                raise CheckpointError(f"{self.path} ends before byte {offset + len(target)}")
            done += count
        self.check()


class SafetensorsFile:
    """A `.safetensors` file whose tensors are read, not mapped.

    Attributes:
        shapes: of the tensors, by name.
        dtypes: of the tensors as the header names them.
        metadata: text entries of the header.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check its header.

        Raises:
            SafetensorError, ValueError: it is no such file.
            OSError: it cannot be read.
            CheckpointError: it changed meanwhile.
        """
        self._file = SteadyFile(path)
        header = self._header()
        # The format's own library checks what the header promises, in a mapping that goes at once.
        with safe_open(path, framework="pt", device="cpu") as checked:
            self.metadata: dict[str, str] = checked.metadata() or {}
            self.shapes = {
                name: tuple(checked.get_slice(name).get_shape())
                for name in checked.keys()  # noqa: SIM118
            }
        self._file.check()
        if header.keys() - {"__metadata__"} != self.shapes.keys():
            raise SafetensorError("another file took its place while it was opened")
        self._entries = header

    def _header(self) -> dict[str, Any]:
        length = bytearray(_LENGTH_BYTES)
        size = 0
        if self._file.size > _LENGTH_BYTES:
            self._file.read_into(memoryview(length), 0)
            size = int.from_bytes(length, "little")
        if not 0 < size <= self._file.size - _LENGTH_BYTES:
            raise SafetensorError(f"its header claims to have {size} bytes")
        text = bytearray(size)
        self._file.read_into(memoryview(text), _LENGTH_BYTES)
        self._data_start = _LENGTH_BYTES + size
        try:
            return dict(json.loads(text))
        except RecursionError:
            raise SafetensorError("its header is nested too deep") from None

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor.

        Raises:
            CheckpointError: PyTorch has none of that name.
        """
        kind = str(self._entries[name]["dtype"])
        if kind not in _DTYPES:
            raise CheckpointError(f"{self._file.path}: numbers of type {kind} are not read")
        return _DTYPES[kind]

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        entry = self._entries[name]
        first, last = entry["data_offsets"]
        tensor = torch.empty(tuple(entry["shape"]), dtype=self.dtype(name))
        if tensor.numel():
            content = tensor.flatten().view(torch.uint8).numpy()
            if len(content) != last - first:
                raise CheckpointError(f"{self._file.path}: {name} has {last - first} bytes")
            self._file.read_into(content.data, self._data_start + first)
        return tensor
