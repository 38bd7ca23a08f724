"""The C++ kernels for ARM on any machine: cross-compiled, and run under user-mode emulation.

`native` calls an `EmulatedLibrary` as it calls its own: each call goes through a pipe to a process
of qemu-aarch64, and the memory of all tensors goes with it and back.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import runpy
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import native

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = Path("/usr/aarch64-linux-gnu")
"""Where Debian and Ubuntu put the libraries of that architecture."""

NATIVE = Path(native.__file__).parent
DRIVER = Path(__file__).with_name("emulated_kernels.cpp")


def shortfall() -> str | None:
    """What is missing for an emulation; None if nothing is."""
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            return f"no emulation of ARM: {tool} is missing (Debian package {package})"
    return None if SYSTEM.is_dir() else f"no emulation of ARM: there is no {SYSTEM}"


def build(cache: Path) -> tuple[Path, Path]:
    """The library of the kernels for ARM and the driver that calls it, built once for all sources.

    Args:
        cache: a directory that outlives the tests.
    """
    compilation = runpy.run_path(str(NATIVE / "compilation.py"))
    sources, options = compilation["SOURCES"]["aarch64"], [*compilation["OPTIONS"], "-fPIC"]
    key = hashlib.sha256(subprocess.run([COMPILER, "--version"], capture_output=True).stdout)
    for path in sorted([*NATIVE.glob("*.cpp"), *NATIVE.glob("*.h"), DRIVER]):
        key.update(path.read_bytes())
    key.update(repr((sources, options)).encode())
    made = cache / key.hexdigest()[:16]
    if not made.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            whole = Path(directory) / "whole"
            whole.mkdir()
            objects = []
            for name, instructions in sources.items():
                objects.append(Path(directory) / f"{name}.o")
                _compile(*options, *instructions, "-c", NATIVE / name, "-o", objects[-1])
            _compile(*objects, "-shared", "-fopenmp", "-o", whole / "_library.so")
            _compile("-O1", "-std=c++17", DRIVER, "-ldl", "-o", whole / "driver")
            # Renamed at last: what another process finds is whole, and its own is as good.
            with contextlib.suppress(OSError):
                whole.rename(made)
    return made / "_library.so", made / "driver"


def _compile(*arguments: str | Path) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class EmulatedLibrary:
    """The library as one emulated processor runs it.

    Attributes:
        capabilities: the two words of them that Linux reports there.
    """

    def __init__(self, processor: str, library: Path, driver: Path) -> None:
        self._process = subprocess.Popen(
            [EMULATOR, "-cpu", processor, "-L", SYSTEM, driver, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.capabilities = struct.unpack("<2Q", self._read(16))

    def __getattr__(self, symbol: str) -> Callable[..., int | None]:
        """A function of the library, which takes tensors where `native` passes addresses."""
        return lambda *arguments: self._call(symbol, arguments)

    def _call(self, symbol: str, arguments: tuple[Any, ...]) -> int | None:
        result_type, types = _signature(symbol)
        memories = []
        message = [
            struct.pack("<q", len(symbol)),
            symbol.encode(),
            struct.pack("<q", len(arguments)),
        ]
        for part, kind in zip_longest(arguments, types, fillvalue=ctypes.c_int):
            if part is None:
                message.append(b"n")
            elif kind is ctypes.c_float:
                message.append(struct.pack("<cf", b"f", part))
            elif isinstance(part, int):
                message.append(struct.pack("<cq", b"i", part))
            else:
                memories.append(_span(part))
                address, size = memories[-1]
                message += [struct.pack("<cq", b"m", size), ctypes.string_at(address, size)]
        self._process.stdin.write(b"".join(message))
        self._process.stdin.flush()
        (result,) = struct.unpack("<i4x", self._read(8))
        for address, size in memories:
            ctypes.memmove(address, self._read(size), size)
        return None if result_type is None else result

    def _read(self, size: int) -> bytes:
        found = self._process.stdout.read(size)
        if len(found) < size:
            raise RuntimeError(f"the emulated process ended with status {self._process.wait()}")
        return found

    def close(self) -> None:
        """End the emulated process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What takes the place of `native._call`: tensors reach the function as such."""
    return function(*arguments)


def _span(part: torch.Tensor | ctypes.Array) -> tuple[int, int]:
    """Address and size of the memory between the first and the last number of a tensor."""
    if not isinstance(part, torch.Tensor):
        return ctypes.addressof(part), ctypes.sizeof(part)
    steps = zip(part.shape, part.stride(), strict=True)
    numbers = 1 + sum((size - 1) * stride for size, stride in steps) if part.numel() else 0
    return part.data_ptr(), numbers * part.element_size()


def _signature(symbol: str) -> tuple[Any, Sequence[Any]]:
    """Result and arguments of a kernel, whatever instructions it is for."""
    names = [name for name in native._SIGNATURES if symbol.startswith(f"qvggt_{name}")]
    return native._SIGNATURES[max(names, key=len)] if names else (ctypes.c_int, ())
