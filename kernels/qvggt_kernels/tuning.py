"""Measures on this machine's GPU which kernel and blocks are fastest for a network's products."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import gemm_configs
from .gemm_configs import Blocks, Config, Entry
from .linear import Int4Linear, PackedLinear
from .packing import pack
from .weight import IntegerWeight, PackedWeight

_WARM_UP_MS, _MEASURE_MS = 10, 40
_SPLITS = (1, 2, 4, 8)


class TuningError(RuntimeError):
    """Nothing can be measured here."""


class Shape(NamedTuple):
    """A weight whose products are to be measured.

    Attributes:
        operator: key of `gemm_configs.OPERATORS`.
        n: outputs.
        k: inputs.
        group_size: columns per scale; 0 where a scale has a row.
    """

    operator: str
    n: int
    k: int
    group_size: int


def shapes_of(model: nn.Module) -> set[Shape]:
    """Return the shapes of a network's packed weights, 4-bit ones for both operators."""
    shapes = set()
    for module in model.modules():
        if isinstance(module, PackedLinear):
            shapes.add(Shape("int8", module.out_features, module.in_features, 0))
        if isinstance(module, Int4Linear):
            size = (module.out_features, module.in_features)
            shapes.add(Shape("int4", *size, module.group_size))
    return shapes


def require_device() -> int:
    """Return the index of the current CUDA device.

    Raises:
        TuningError: there is none, it is too old, or Triton is not installed.
    """
    if not torch.cuda.is_available():
        raise TuningError(
            "there is no CUDA device here: tuning runs on the GPU that will run the network, "
            "with PyTorch built for CUDA; until then the shipped configurations are used"
        )
    if importlib.util.find_spec("triton") is None:
        raise TuningError("Triton is not installed: PyTorch's CUDA builds for Linux bring it")
    index = torch.cuda.current_device()
    capability = torch.cuda.get_device_capability(index)
    if gemm_configs.architecture_of(capability) is None:
        raise TuningError(
            f"{torch.cuda.get_device_name(index)} has compute capability "
            f"{capability[0]}.{capability[1]}; the kernels need 8.0 or more, and this GPU runs "
            "without them"
        )
    return index


def candidates(operator: str, bucket: int, architecture: int) -> list[Config]:
    """Return configurations to measure; every one compiles without spills in its main loop.

    Args:
        operator: key of `gemm_configs.OPERATORS`.
        bucket: one of `gemm_configs.BUCKETS`.
        architecture: one of `gemm_configs.shipped_architectures()`.
    """
    wide = architecture in (90, 100)
    if operator == "int8":
        m = min(bucket, 128)
        blocks = [Blocks(min(m, 64), 64, 128, 1, 4, 3), Blocks(min(m, 64), 128, 128, 1, 4, 3)]
        if m < 64:
            blocks.append(Blocks(m, 64, 128, 1, 4, 4))
        if m == 128:
            blocks += [Blocks(128, 128, 64, 1, 8, 4), Blocks(128, 128, 128, 1, 8, 3)]
            blocks += [Blocks(128, 256, 128, 1, 8, 3)] if wide else []
        return [Config("triton", one) for one in blocks]
    if bucket <= 64:
        blocks = [Blocks(bucket, 64, 128, split, 4, 4 if bucket < 64 else 3) for split in _SPLITS]
        if bucket == 16:
            blocks += [Blocks(16, 32, 128, split, 4, 4) for split in _SPLITS]
    else:
        blocks = [
            Blocks(64, 64, 128, 1, 4, 3),
            Blocks(128, 64, 128, 1, 4, 3),
            Blocks(128, 128, 128, 1, 8, 3),
        ]
        # Triton 3.7.1 compiles these to an empty kernel for sm_100.
        blocks += [Blocks(128, 256, 128, 1, 8, 3)] if architecture == 90 else []
    return [*(Config("fused", one) for one in blocks), Config("dequantize", None)]


def tune(
    shapes: Iterable[Shape],
    rows: Sequence[int] = gemm_configs.BUCKETS,
    advance: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[Path, list[Entry]]:
    """Measure all candidates for shapes and write the fastest to the user's cache.

    Medians of `triton.testing.do_bench`, bfloat16 activations. Entries that the cache holds of
    other shapes stay. The cache is written after each product: a run that is stopped keeps what
    it measured.

    Args:
        shapes: of the weights.
        rows: buckets of M to measure.
        advance: called with products done, products in all, and a description of the next.

    Returns:
        The file, and the entries measured now.

    Raises:
        TuningError: see `require_device`; or nothing runs for a shape.
    """
    device = require_device()
    import triton

    architecture = gemm_configs.architecture_of(torch.cuda.get_device_capability(device))
    assert architecture is not None
    jobs = [(shape, bucket) for shape in sorted(set(shapes)) for bucket in rows]
    name = torch.cuda.get_device_name(device)
    path = gemm_configs.cache_file(name)
    before = gemm_configs.tuned(name, triton.__version__)
    measured: list[Entry] = []
    for done, (shape, bucket) in enumerate(jobs):
        advance(done, len(jobs), f"{shape.operator} {shape.n}x{shape.k}, {bucket} rows")
        configs = candidates(shape.operator, bucket, architecture)
        times = _measure(shape, bucket, configs, device)
        best = min(times, key=times.__getitem__)
        measured.append(Entry(shape.operator, (shape.n, shape.k), bucket, best))
        replaced = {entry[:3] for entry in measured}
        kept = [entry for entry in before if entry[:3] not in replaced]
        text = gemm_configs.render([*measured, *kept], device=name, triton=triton.__version__)
        _write(path, text)
    advance(len(jobs), len(jobs), "done")
    gemm_configs.clear_cache()
    return path, measured


def _measure(
    shape: Shape, rows: int, configs: Sequence[Config], device: int
) -> dict[Config, float]:
    """Return the median milliseconds of each configuration that runs on this device."""
    import triton
    from triton.runtime.errors import OutOfResources

    run = _product(shape, rows, torch.device("cuda", device))
    times = {}
    for config in configs:
        try:
            run(config)
            times[config] = triton.testing.do_bench(
                lambda config=config: run(config),
                warmup=_WARM_UP_MS,
                rep=_MEASURE_MS,
                return_mode="median",
            )
        except OutOfResources:
            continue  # tiles too large for this GPU
    if not times:
        raise TuningError(f"no candidate runs for {shape} with {rows} rows")
    return times


def _product(shape: Shape, rows: int, device: torch.device) -> Callable[[Config], Tensor]:
    """Return a function that multiplies random tokens by a random weight of a shape."""
    from .triton import linear

    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, shape.k, device=device, generator=generator).bfloat16()
    bias = torch.zeros(shape.n, device=device, dtype=torch.bfloat16)
    size = (shape.n, shape.k)
    if shape.operator == "int4":
        q = torch.randint(-8, 8, size, device=device, generator=generator).to(torch.int8)
        groups = shape.k // shape.group_size
        scales = torch.full((shape.n, groups), 0.01, device=device, dtype=torch.bfloat16)
        packed = PackedWeight(pack(q, shape.group_size), scales, bias)
        return lambda config: linear.int4_product(x, packed, config)
    q = torch.randint(-127, 128, size, device=device, generator=generator).to(torch.int8)
    integers = IntegerWeight(q.t(), torch.full((shape.n,), 0.01, device=device), bias)
    return lambda config: linear.int8_product(x, integers, config)


def _write(path: Path, text: str) -> None:
    """Write whole or not at all: a node may read the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
