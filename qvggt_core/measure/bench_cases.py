"""The cases of the benchmark, each a generator of rows of figures with their roofline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure import layers
from qvggt_core.measure.bench_request import Request
from qvggt_core.measure.candidates import (
    CONTENDERS,
    INT4,
    Contender,
    build,
    only_on_a_gpu,
)
from qvggt_core.measure.dense_weights import available_heads
from qvggt_core.measure.roofline import Peaks, Shape, Work, block, linear, parts
from qvggt_core.measure.stream_timing import time_streams
from qvggt_core.measure.timing import Run, measure, speedup
from qvggt_core.measure.window_memory import measure_memory
from qvggt_core.model import VGGT, load_model, read_checkpoint

STREAM_HEADS = ("camera", "depth")
"""Heads of a sliding window."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        case: of `CASES`.
        what: the work, without the contender: "2 frames of 392x518, all heads".
        contender: network or kernel that ran it.
        seconds: of one call, one per round; empty for memory.
        ratio: speed-up over the baseline, the first contender of the same `what`: median over
            rounds of its seconds over these, above 1 is faster. For memory, its peak over this.
        least_seconds: the roofline: what this machine's measured peaks allow; None where no model
            of the work exists, and for 8-bit products, whose peak is not measured.
        facts: further figures.
    """

    case: str
    what: str
    contender: str
    seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    least_seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


@dataclass
class Session:
    """A run of the benchmark.

    Attributes:
        request: what to measure.
        peaks: of this machine.
        advance: called with what is measured next.
        missing: contenders that could not run, and why.
    """

    request: Request
    peaks: Peaks
    advance: Callable[[str], None]
    missing: dict[str, str] = field(default_factory=dict)


def _timed(
    session: Session,
    case: str,
    what: str,
    runs: dict[str, Run],
    least: Mapping[str, float | None],
) -> list[Row]:
    """Warm up, time side by side, and compare with the first that runs."""
    request = session.request
    runs = dict(runs)
    with torch.inference_mode():
        started = time.perf_counter()
        for name in list(runs):
            try:
                runs[name]()
            except (BenchmarkError, torch.cuda.OutOfMemoryError) as error:
                session.missing[f"{name}, {what}"] = str(error)
                del runs[name]
        if not runs:
            return []
        budget = 60 * request.minutes - (time.perf_counter() - started)
        times = measure(runs, request.rounds, request.clock, max(budget, 1e-3))
    baseline = times[next(iter(runs))]
    return [
        Row(case, what, name, taken, speedup(baseline, taken), least.get(name))
        for name, taken in times.items()
    ]


def _least_seconds(
    session: Session, work: Work, widths: Mapping[str, tuple[float, float]]
) -> dict[str, float | None]:
    """Return the roofline of contenders by their bytes per weight and per activation."""
    return {
        name: session.peaks.seconds(work, weight_bytes, activation_bytes)
        for name, (weight_bytes, activation_bytes) in widths.items()
    }


def _windows(request: Request) -> Iterator[Shape]:
    for height, width in request.sizes:
        for frames in request.frames:
            yield Shape(frames, height, width)


def _linears(session: Session) -> Iterator[Row]:
    request = session.request
    model = load_model(request.checkpoint, "meta")
    for size in request.sizes:
        tokens = Shape(1, *size).tokens(model.config)
        rows = sorted({frames * tokens for frames in request.frames})
        for name, shape in layers.linear_shapes(model, "aggregator").items():
            for m in rows:
                yield from _linear(session, name, m, shape)
    for name, shape in layers.linear_shapes(model, "camera_head.trunk").items():
        for m in request.frames:
            yield from _linear(session, name, m, shape)


def _linear(session: Session, name: str, rows: int, shape: tuple[int, int]) -> list[Row]:
    outputs, inputs = shape
    what = f"{name} {outputs}x{inputs}, {rows} rows"
    session.advance(what)
    device = session.request.device
    runs, widths = layers.linear_contenders(rows, inputs, outputs, device, session.missing)
    least = _least_seconds(session, linear(rows, inputs, outputs), widths)
    return _timed(session, "linears", what, runs, least)


def _blocks(session: Session) -> Iterator[Row]:
    request = session.request
    config = read_checkpoint(request.checkpoint).config
    for shape in _windows(request):
        for kind, across in (("frame", False), ("global", True)):
            what = f"{kind} block, {shape}"
            session.advance(what)
            runs, widths = layers.block_contenders(config, shape, across, request.device)
            rows = shape.frames * shape.tokens(config)
            work = block(config.embed_dim, config.mlp_ratio, rows, 1 if across else shape.frames)
            yield from _timed(session, "blocks", what, runs, _least_seconds(session, work, widths))


def _parts(session: Session) -> Iterator[Row]:
    request = session.request
    (contender,) = build([INT4], request.checkpoint, STREAM_HEADS, request.device)
    model = contender.model
    assert isinstance(model, VGGT)
    widths = {INT4: (contender.weight_bytes, float(contender.dtype.itemsize))}
    for shape in _windows(request):
        session.advance(f"parts, {shape}")
        work = parts(model.config, shape)
        for name, each in _part_runs(model, _images(request, shape)).items():
            least = _least_seconds(session, work[name], widths)
            yield from _timed(session, "parts", f"{name}, {shape}", {INT4: each}, least)


def _images(request: Request, shape: Shape) -> Tensor:
    return torch.rand(1, shape.frames, 3, shape.height, shape.width).to(request.device)


@torch.inference_mode()
def _part_runs(model: VGGT, images: Tensor) -> dict[str, Run]:
    patch = model.config.patch_size
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    tokens = model.encode(images)
    patches, camera, _ = model.aggregator(tokens, rows, columns)
    return {
        "encoder": lambda: model.encode(images),
        "aggregator": lambda: model.aggregator(tokens, rows, columns),
        "camera head": lambda: model.decode(patches, camera, rows, columns, heads=("camera",)),
        "depth head": lambda: model.decode(patches, camera, rows, columns, heads=("depth",)),
    }


def _names(session: Session) -> list[str]:
    """Return the contenders that can run on this device, the baseline first."""
    request = session.request
    names = [name for name in CONTENDERS if name in request.contenders]
    if request.device.type == "cuda":
        return names
    reasons = {name: only_on_a_gpu(name) for name in names}
    session.missing.update({name: reason for name, reason in reasons.items() if reason})
    return [name for name in names if not reasons[name]]


def _contenders(session: Session, heads: tuple[str, ...]) -> list[Contender]:
    """Build all that can be built, the baseline first."""
    request, found = session.request, list[Contender]()
    names = _names(session)
    with suppress(BenchmarkError):
        return build(names, request.checkpoint, heads, request.device, request.original)
    for name in names:
        try:
            found += build([name], request.checkpoint, heads, request.device, request.original)
        except BenchmarkError as error:
            session.missing[name] = str(error)
    return found


def _network(session: Session) -> Iterator[Row]:
    request = session.request
    config = read_checkpoint(request.checkpoint).config
    heads = available_heads(config)
    session.advance("building the contenders")
    contenders = _contenders(session, heads)
    widths = {
        each.name: (each.weight_bytes, float(each.dtype.itemsize))
        for each in contenders
        if not each.multiplies_8_bits
    }
    for shape in _windows(request):
        session.advance(f"network, {shape}")
        images = _images(request, shape)
        runs = {each.name: partial(each.forward, images, heads) for each in contenders}
        for each in contenders:
            # The heads of the stream; the original has no way to leave the point head out.
            if not each.is_original and heads != STREAM_HEADS:
                name = f"{each.name}; camera and depth"
                runs[name] = partial(each.forward, images, STREAM_HEADS)
        work = sum(parts(config, shape).values(), Work())
        least = _least_seconds(session, work, widths)
        yield from _timed(session, "network", str(shape), dict[str, Run](runs), least)


def _stream(session: Session) -> Iterator[Row]:
    request = session.request
    model = load_model(request.checkpoint, request.device, heads=STREAM_HEADS)
    for height, width in request.sizes:
        what = f"window {request.window}, stride {request.stride}, {height}x{width}"
        session.advance(f"stream, {what}")
        times = time_streams(
            model,
            (height, width),
            request.window,
            request.stride,
            request.rounds,
            request.clock,
            60 * request.minutes,
        )
        facts = {"bit_equal": times.bit_equal, "frames_per_run": request.stride}
        yield Row("stream", what, "encoding every view", times.encoding, 1.0, None, facts)
        gain = speedup(times.encoding, times.cached)
        yield Row("stream", what, "encoder cache", times.cached, gain, None, facts)


def _memory(session: Session) -> Iterator[Row]:
    request = session.request
    heads = available_heads(read_checkpoint(request.checkpoint).config)
    variants = [("all heads", heads)]
    if heads != STREAM_HEADS:
        variants.append(("camera and depth", STREAM_HEADS))
    for shape in _windows(request):
        peaks_mib: dict[str, float] = {}
        for name, (label, wanted) in product(_names(session), variants):
            if name.startswith("original") and wanted != heads:
                continue
            session.advance(f"memory of {name}, {shape}")
            try:
                facts = measure_memory(
                    name,
                    request.checkpoint,
                    wanted,
                    shape,
                    request.device,
                    request.threads,
                    request.original,
                )
            except BenchmarkError as error:
                session.missing[name] = str(error)
                continue
            called = name if wanted == heads else f"{name}; {label}"
            peaks_mib[called] = facts["peak_mib"]
            baseline = next(iter(peaks_mib.values()))
            ratio = baseline / facts["peak_mib"]
            yield Row("memory", str(shape), called, ratio=ratio, facts=facts)


MEASURES: Mapping[str, Callable[[Session], Iterator[Row]]] = {
    "memory": _memory,
    "linears": _linears,
    "blocks": _blocks,
    "parts": _parts,
    "network": _network,
    "stream": _stream,
}
"""What each of `CASES` measures."""
