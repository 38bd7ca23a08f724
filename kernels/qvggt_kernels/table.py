"""Which kernel a product with a packed weight takes on a GPU: a shipped table, refined by a cache.

A table says, for an operator, a weight's shape and a number of rows, which kernel computes it
and in which blocks. One is shipped for every architecture; `qvggt tune` measures on the GPU at
hand and writes what it found to the user's cache directory, where it is read once per process.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

_log = logging.getLogger(__name__)

OPERATORS: dict[str, tuple[str, ...]] = {
    "int4": ("fused", "dequantize"),
    "int8": ("triton",),
}
"""Kernels of each operator. `int4` is 16-bit by 4-bit: `fused` unpacks within the product,
`dequantize` to memory before PyTorch's own. `int8` is 8-bit by 8-bit, whatever the storage."""

BUCKETS = tuple(2**power for power in range(4, 14))
"""Numbers of rows that are told apart, 16 to 8192; what lies between counts as the next."""

ANY = (0, 0)
"""In place of a weight's shape: the entry holds for all shapes without one of their own."""

_FORMAT = 1
_MAX_BYTES = 2**20
_MAX_ENTRIES = 4096
_DIRECTORY = Path(__file__).with_name("tables")


class TableError(ValueError):
    """A table of kernels is not of this format, or asks for what no kernel does."""


class Blocks(NamedTuple):
    """How a matrix product is cut into programs.

    Attributes:
        m: rows of a program's tile of the result.
        n: columns of a program's tile of the result.
        k: columns of x in one step of its loop.
        split_k: programs that share the columns of one tile.
        warps: of 32 threads, per program.
        stages: steps whose loads are in flight.
    """

    m: int
    n: int
    k: int
    split_k: int
    warps: int
    stages: int


_RANGES = ((16, 256), (16, 256), (32, 256), (1, 16), (1, 16), (1, 8))
"""Of the fields of `Blocks`; all but stages are powers of two."""


class Choice(NamedTuple):
    """A kernel of an operator and its blocks; `dequantize` has none."""

    kernel: str
    blocks: Blocks | None


class Entry(NamedTuple):
    """A choice and what it is for.

    Attributes:
        operator: key of `OPERATORS`.
        shape: (N, K) of the weight, or `ANY`.
        rows: bucket of M.
        choice: what to run.
    """

    operator: str
    shape: tuple[int, int]
    rows: int
    choice: Choice


def bucket_of(rows: int) -> int:
    """Return the bucket of a number of rows."""
    return next((bucket for bucket in BUCKETS if rows <= bucket), BUCKETS[-1])


def architecture_of(capability: tuple[int, int]) -> int | None:
    """Return the newest architecture with a table that is not newer, or None.

    Args:
        capability: compute capability, such as (8, 9).
    """
    own = 10 * capability[0] + capability[1]
    return max((number for number in shipped_architectures() if number <= own), default=None)


@functools.cache
def shipped_architectures() -> tuple[int, ...]:
    """Return the architectures with a shipped table: compute capabilities, times ten."""
    return tuple(sorted(int(path.stem[3:]) for path in _DIRECTORY.glob("sm_*.json")))


@functools.cache
def shipped(architecture: int) -> tuple[Entry, ...]:
    """Return the shipped table of an architecture."""
    return parse((_DIRECTORY / f"sm_{architecture}.json").read_text(encoding="utf-8"))


def choose(entries: Iterable[Entry], operator: str, shape: tuple[int, int], rows: int) -> Choice:
    """Return what a table says of a product.

    The entries of the weight's own shape come first, then those of any; among them the one of
    the next larger bucket, or the largest.

    Raises:
        TableError: the table has nothing for the operator.
    """
    fitting = [entry for entry in entries if entry.operator == operator]
    own = [entry for entry in fitting if entry.shape == shape]
    ordered = sorted(
        own or [entry for entry in fitting if entry.shape == ANY], key=lambda entry: entry.rows
    )
    if not ordered:
        raise TableError(f"the table of kernels has no entry for {operator}")
    bucket = bucket_of(rows)
    return next((entry for entry in ordered if entry.rows >= bucket), ordered[-1]).choice


def parse(text: str, triton: str | None = None) -> tuple[Entry, ...]:
    """Read a table and check every number of it.

    Args:
        text: JSON.
        triton: version that the table has to be measured with; None for any.

    Raises:
        TableError: says what is wrong.
    """
    if len(text) > _MAX_BYTES:
        raise TableError(f"{len(text)} characters are more than a table of kernels has")
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise TableError(f"format {content['format']} is not {_FORMAT}")
        if triton is not None and content["triton"] != triton:
            raise TableError(f"measured with Triton {content['triton']}, this is {triton}")
        if len(content["entries"]) > _MAX_ENTRIES:
            raise TableError(f"{len(content['entries'])} entries are more than {_MAX_ENTRIES}")
        return tuple(_entry(raw) for raw in content["entries"])
    except TableError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(f"not a table of kernels: {error!r}") from error


def render(entries: Iterable[Entry], **facts: str | None) -> str:
    """Return a table as JSON, one entry a line.

    Args:
        entries: what it says.
        facts: what else the file tells: `device`, `triton`.
    """
    lines = [
        json.dumps(
            {
                "operator": operator,
                "n": shape[0],
                "k": shape[1],
                "rows": rows,
                "kernel": choice.kernel,
                "blocks": choice.blocks,
            }
        )
        for operator, shape, rows, choice in entries
    ]
    head = json.dumps({"format": _FORMAT, **facts})[1:-1]
    return f'{{{head}, "entries": [\n ' + ",\n ".join(lines) + "\n]}\n"


def cache_file(device_name: str) -> Path:
    """Return where the table of a device is kept: `$XDG_CACHE_HOME/qvggt/kernels`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return Path(root) / "qvggt" / "kernels" / f"{slug[:80]}.json"


def tuned(device_name: str, triton: str) -> tuple[Entry, ...]:
    """Return the user's table of a device; empty where there is none or a broken one.

    A broken file costs its speed, never the run: it is reported and left.
    """
    path = cache_file(device_name)
    try:
        with path.open(encoding="utf-8") as file:
            return parse(file.read(_MAX_BYTES + 1), triton)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, TableError) as error:
        _log.warning("%s is not used: %s; run `qvggt tune` again", path, error)
        return ()


@functools.cache
def of_device(index: int) -> tuple[Entry, ...]:
    """Return the table of a CUDA device: the user's entries, then the shipped ones.

    Empty for a device that is older than all tables or where Triton is not installed.
    """
    try:
        import triton
    except ImportError:
        return ()
    architecture = architecture_of(torch.cuda.get_device_capability(index))
    if architecture is None:
        return ()
    name = torch.cuda.get_device_name(index)
    return tuned(name, triton.__version__) + shipped(architecture)


@functools.lru_cache(maxsize=_MAX_ENTRIES)
def for_device(index: int, operator: str, n: int, k: int, bucket: int) -> Choice | None:
    """Return what a CUDA device runs for a product; None where it has no kernels of ours."""
    entries = of_device(index)
    return choose(entries, operator, (n, k), bucket) if entries else None


def forget() -> None:
    """Read the tables again when they are next asked for."""
    of_device.cache_clear()
    for_device.cache_clear()


def _entry(raw: Mapping[str, Any]) -> Entry:
    operator, kernel = raw["operator"], raw["kernel"]
    if kernel not in OPERATORS.get(operator, ()):
        raise TableError(f"there is no kernel {kernel!r} of {operator!r}")
    if raw["rows"] not in BUCKETS:
        raise TableError(f"{raw['rows']!r} rows are not one of {BUCKETS}")
    shape = (_whole(raw["n"], "n"), _whole(raw["k"], "k"))
    if kernel == "dequantize":
        return Entry(operator, shape, raw["rows"], Choice(kernel, None))
    return Entry(operator, shape, raw["rows"], Choice(kernel, _blocks(operator, raw["blocks"])))


def _blocks(operator: str, raw: list[int]) -> Blocks:
    if len(raw) != len(Blocks._fields):
        raise TableError(f"blocks {raw!r} are not {len(Blocks._fields)} numbers")
    blocks = Blocks(*(_whole(value, name) for value, name in zip(raw, Blocks._fields, strict=True)))
    for name, value, (lowest, highest) in zip(Blocks._fields, blocks, _RANGES, strict=True):
        power = name == "stages" or value & (value - 1) == 0
        if not lowest <= value <= highest or not power:
            raise TableError(
                f"{name} = {value} of blocks {raw} is not in [{lowest}, {highest}]"
                + ("" if power else " or no power of two")
            )
    if operator == "int8" and blocks.split_k != 1:
        raise TableError(f"blocks {raw} split the columns, which {operator} does not")
    if operator == "int4" and blocks.k < 64:
        raise TableError(f"blocks {raw} have fewer than 64 columns: tensor cores take 16 per plane")
    return blocks


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise TableError(f"{name} = {value!r} is not a whole number")
    return value
