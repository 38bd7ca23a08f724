"""Kernel and block sizes of products with packed weights on a GPU: shipped, and tuned by the user.

A file maps an operator, a weight's shape and a number of rows to the kernel that computes it and
its block sizes. One is shipped for every architecture; `qvggt tune` measures on this machine's GPU
and writes its results to the user's cache directory, where they are read once per process.
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
from torch import Tensor

_log = logging.getLogger(__name__)

OPERATORS: dict[str, tuple[str, ...]] = {
    "int4": ("fused", "dequantize"),
    "int8": ("triton",),
}
"""Kernels of each operator. `int4` is 16-bit by 4-bit: `fused` unpacks within the product,
`dequantize` to memory before PyTorch's own. `int8` is 8-bit by 8-bit, whatever the storage."""

BUCKETS = tuple(2**power for power in range(4, 14))
"""Numbers of rows with configurations of their own, 16 to 8192; others take the next larger."""

ANY = (0, 0)
"""In place of a weight's shape: the entry holds for all shapes without one of their own."""

_FORMAT = 1
_MAX_BYTES = 2**20
_MAX_ENTRIES = 4096
_DIRECTORY = Path(__file__).with_name("gemm_configs_data")


class ConfigError(ValueError):
    """Kernel configurations are not of this format, or name what no kernel computes."""


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


class Config(NamedTuple):
    """A kernel of an operator and its blocks; `dequantize` has none."""

    kernel: str
    blocks: Blocks | None


class Entry(NamedTuple):
    """A configuration and the products that it is for.

    Attributes:
        operator: key of `OPERATORS`.
        shape: (N, K) of the weight, or `ANY`.
        rows: bucket of M.
        config: kernel and blocks.
    """

    operator: str
    shape: tuple[int, int]
    rows: int
    config: Config


def bucket_of(rows: int) -> int:
    """Return the bucket of a number of rows."""
    return next((bucket for bucket in BUCKETS if rows <= bucket), BUCKETS[-1])


def architecture_of(capability: tuple[int, int]) -> int | None:
    """Return the newest architecture with shipped configurations that is not newer, or None.

    Args:
        capability: compute capability, such as (8, 9).
    """
    own = 10 * capability[0] + capability[1]
    return max((number for number in shipped_architectures() if number <= own), default=None)


@functools.cache
def shipped_architectures() -> tuple[int, ...]:
    """Return the architectures with shipped configurations: compute capabilities, times ten."""
    return tuple(sorted(int(path.stem[3:]) for path in _DIRECTORY.glob("sm_*.json")))


@functools.cache
def shipped(architecture: int) -> tuple[Entry, ...]:
    """Return the shipped configurations of an architecture."""
    return parse((_DIRECTORY / f"sm_{architecture}.json").read_text(encoding="utf-8"))


def select(entries: Iterable[Entry], operator: str, shape: tuple[int, int], rows: int) -> Config:
    """Return the configuration of a product.

    The entries of the weight's own shape come first, then those of any; among them the one of
    the next larger bucket, or the largest.

    Raises:
        ConfigError: there is none for the operator.
    """
    fitting = [entry for entry in entries if entry.operator == operator]
    own = [entry for entry in fitting if entry.shape == shape]
    ordered = sorted(
        own or [entry for entry in fitting if entry.shape == ANY], key=lambda entry: entry.rows
    )
    if not ordered:
        raise ConfigError(f"no kernel configuration is for {operator}")
    bucket = bucket_of(rows)
    return next((entry for entry in ordered if entry.rows >= bucket), ordered[-1]).config


def parse(text: str, triton: str | None = None) -> tuple[Entry, ...]:
    """Read configurations and check every number.

    Args:
        text: JSON.
        triton: version that they have to be measured with; None for any.

    Raises:
        ConfigError: a number is out of range, or it is another format or version.
    """
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{len(text)} characters are more than kernel configurations have")
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise ConfigError(f"format {content['format']} is not {_FORMAT}")
        if triton is not None and content["triton"] != triton:
            raise ConfigError(f"measured with Triton {content['triton']}, this is {triton}")
        if len(content["entries"]) > _MAX_ENTRIES:
            raise ConfigError(f"{len(content['entries'])} entries are more than {_MAX_ENTRIES}")
        return tuple(_entry(raw) for raw in content["entries"])
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"no kernel configurations: {error!r}") from error


def render(entries: Iterable[Entry], **facts: str | None) -> str:
    """Return configurations as JSON, one entry a line.

    Args:
        entries: of the file.
        facts: other fields of the file: `device`, `triton`.
    """
    lines = [
        json.dumps(
            {
                "operator": operator,
                "n": shape[0],
                "k": shape[1],
                "rows": rows,
                "kernel": config.kernel,
                "blocks": config.blocks,
            }
        )
        for operator, shape, rows, config in entries
    ]
    head = json.dumps({"format": _FORMAT, **facts})[1:-1]
    return f'{{{head}, "entries": [\n ' + ",\n ".join(lines) + "\n]}\n"


def cache_file(device_name: str) -> Path:
    """Return where the tuned configurations of a device are: `$XDG_CACHE_HOME/qvggt/kernels`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return Path(root) / "qvggt" / "kernels" / f"{slug[:80]}.json"


def tuned(device_name: str, triton: str) -> tuple[Entry, ...]:
    """Return the user's configurations of a device; empty where there are none or broken ones.

    A broken file is reported and ignored: the run is slower then.
    """
    path = cache_file(device_name)
    try:
        with path.open(encoding="utf-8") as file:
            return parse(file.read(_MAX_BYTES + 1), triton)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        _log.warning("%s is not used: %s; run `qvggt tune` again", path, error)
        return ()


@functools.cache
def of_device(index: int) -> tuple[Entry, ...]:
    """Return the configurations of a CUDA device: the user's, then the shipped ones.

    Empty for a device that is older than all of them or where Triton is not installed.
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
def for_device(index: int, operator: str, n: int, k: int, bucket: int) -> Config | None:
    """Return the configuration of a product on a CUDA device; None where we have no kernels."""
    entries = of_device(index)
    return select(entries, operator, (n, k), bucket) if entries else None


def for_product(operator: str, x: Tensor, outputs: int) -> Config | None:
    """Return the configuration of a product of x (..., K) on its CUDA device, as `for_device`."""
    index = x.device.index
    assert index is not None
    columns = x.shape[-1]
    return for_device(index, operator, outputs, columns, bucket_of(x.numel() // columns))


def clear_cache() -> None:
    """Read the files again when they are next needed."""
    of_device.cache_clear()
    for_device.cache_clear()


def _entry(raw: Mapping[str, Any]) -> Entry:
    operator, kernel = raw["operator"], raw["kernel"]
    if kernel not in OPERATORS.get(operator, ()):
        raise ConfigError(f"there is no kernel {kernel!r} of {operator!r}")
    if raw["rows"] not in BUCKETS:
        raise ConfigError(f"{raw['rows']!r} rows are not one of {BUCKETS}")
    shape = (_whole(raw["n"], "n"), _whole(raw["k"], "k"))
    if kernel == "dequantize":
        return Entry(operator, shape, raw["rows"], Config(kernel, None))
    return Entry(operator, shape, raw["rows"], Config(kernel, _blocks(operator, raw["blocks"])))


def _blocks(operator: str, raw: list[int]) -> Blocks:
    if len(raw) != len(Blocks._fields):
        raise ConfigError(f"blocks {raw!r} are not {len(Blocks._fields)} numbers")
    blocks = Blocks(*(_whole(value, name) for value, name in zip(raw, Blocks._fields, strict=True)))
    for name, value, (lowest, highest) in zip(Blocks._fields, blocks, _RANGES, strict=True):
        power = name == "stages" or value & (value - 1) == 0
        if not lowest <= value <= highest or not power:
            raise ConfigError(
                f"{name} = {value} of blocks {raw} is not in [{lowest}, {highest}]"
                + ("" if power else " or no power of two")
            )
    if operator == "int8" and blocks.split_k != 1:
        raise ConfigError(f"blocks {raw} split the columns, which {operator} does not")
    if operator == "int4" and blocks.k < 64:
        raise ConfigError(
            f"blocks {raw} have fewer than 64 columns: tensor cores take 16 per plane"
        )
    return blocks


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ConfigError(f"{name} = {value!r} is not a whole number")
    return value
