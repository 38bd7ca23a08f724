"""Runs the benchmarks: what is asked for, as rows of figures with their yardstick and roofline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure import layers
from qvggt_core.measure.candidates import (
    CONTENDERS,
    INT4,
    INT4_FP8,
    INT4_INTEGERS,
    Contender,
    build,
)
from qvggt_core.measure.machine import describe_machine
from qvggt_core.measure.process_worker import measure_memory
from qvggt_core.measure.random_weights import available_heads
from qvggt_core.measure.roofline import Peaks, Shape, Work, block, linear, measure_peaks, parts
from qvggt_core.measure.stream_timing import time_streams
from qvggt_core.measure.timing import Clock, Run, measure, ratio
from qvggt_core.model import VGGT, load_model, read_checkpoint

FORMAT = "qvggt-bench/1"
CASES = ("memory", "linears", "blocks", "parts", "network", "stream")
_STREAM_HEADS = ("camera", "depth")
_MOST_PIXELS = 1 << 22
_MOST_FRAMES = 256

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What shall be measured.

    Attributes:
        checkpoint: 4-bit file of precision w4a16; speed does not depend on its values.
        cases: of `CASES`.
        contenders: of `CONTENDERS`.
        frames: windows' sizes, for networks and memory.
        sizes: (height, width) of images in pixels.
        device: where.
        clock: see `timing.measure`.
        rounds: of interleaved timing.
        threads: of the CPU.
        window: of the stream.
        stride: of the stream.
        minutes: wall time of one case after which no further round begins.
        original: clone of facebookresearch/vggt, or None.
    """

    checkpoint: Path
    cases: tuple[str, ...] = CASES
    contenders: tuple[str, ...] = CONTENDERS
    frames: tuple[int, ...] = (2,)
    sizes: tuple[tuple[int, int], ...] = ((392, 518),)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Clock = "wall"
    rounds: int = 5
    threads: int = 1
    window: int = 8
    stride: int = 1
    minutes: float = 10.0
    original: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            BenchmarkError: a case or contender is unknown, or a size is out of range.
        """
        patch = read_checkpoint(self.checkpoint).config.patch_size
        for given, known in ((self.cases, CASES), (self.contenders, CONTENDERS)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise BenchmarkError(f"{unknown} are not among {', '.join(known)}")
        for height, width in self.sizes:
            if height % patch or width % patch or not 0 < height * width <= _MOST_PIXELS:
                raise BenchmarkError(
                    f"images of {height}x{width} do not fit: sides are multiples of {patch}, and "
                    f"there are at most {_MOST_PIXELS} pixels"
                )
        for frames in (*self.frames, self.window):
            if not 0 < frames <= _MOST_FRAMES:
                raise BenchmarkError(f"{frames} frames: give 1 to {_MOST_FRAMES}")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        case: of `CASES`.
        what: what was run, without the contender: "2 frames of 392x518, all heads".
        contender: who ran it.
        seconds: of one call, one per round; empty for memory.
        ratio: median over rounds of the yardstick's seconds over these, so above 1 is faster than
            the first contender of the same `what`; 1 for that one. For memory, its peak over this.
        least_seconds: the roofline: what this machine's measured peaks allow; None where no model
            of the work exists, and for 8-bit products, whose peak is not measured.
        facts: what else was measured.
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


def run(request: Request, advance: Advance = lambda what: None) -> dict[str, Any]:
    """Measure everything that is asked for; return what becomes the raw results.

    Contenders that cannot run (no clone of the original, a checkpoint of other sizes) are named
    in "not_measured" with the reason and cost only themselves.

    Raises:
        BenchmarkError: the request is refused.
    """
    request.check()
    torch.set_num_threads(request.threads)
    advance("peaks of this machine")
    with torch.inference_mode():
        peaks = measure_peaks(request.device, request.clock)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    measures: dict[str, Callable[[Request, Peaks, dict[str, str], Advance], Iterable[Row]]] = {
        "linears": _linears,
        "blocks": _blocks,
        "parts": _parts,
        "network": _network,
        "stream": _stream,
        "memory": _memory,
    }
    # Memory first: what this process holds later is missing then.
    for case in sorted(request.cases, key=CASES.index):
        rows += measures[case](request, peaks, missing, advance)
    asked = asdict(request) | {
        "checkpoint": request.checkpoint.name,
        "original": "given" if request.original else "not given",
        "device": str(request.device),
    }
    return {
        "format": FORMAT,
        "machine": describe_machine() | _gpu(request.device),
        "request": asked,
        "peaks": asdict(peaks),
        "rows": [asdict(row) for row in rows],
        "not_measured": missing,
    }


def _gpu(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {"gpu": "none: no GPU figure was measured"}
    major, minor = torch.cuda.get_device_capability(device)
    return {"gpu": f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"}


def _timed(
    case: str,
    what: str,
    runs: dict[str, Run],
    request: Request,
    least: Mapping[str, float | None],
) -> list[Row]:
    """Warm up, time side by side, and compare with the first."""
    with torch.inference_mode():
        started = time.perf_counter()
        for name in runs:
            runs[name]()
        budget = 60 * request.minutes - (time.perf_counter() - started)
        times = measure(runs, request.rounds, request.clock, max(budget, 1e-3))
    yardstick = times[next(iter(runs))]
    return [
        Row(case, what, name, taken, ratio(yardstick, taken), least.get(name))
        for name, taken in times.items()
    ]


def _least(peaks: Peaks, work: Work, weight_bytes: float, dtype: torch.dtype) -> float:
    return peaks.seconds(work, weight_bytes, dtype.itemsize)


def _linears(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    model = load_model(request.checkpoint, "meta")
    for size in request.sizes:
        tokens = Shape(1, *size).tokens(model.config)
        rows = sorted({frames * tokens for frames in request.frames})
        for name, (outputs, inputs) in layers.linear_shapes(model, "aggregator").items():
            for m in rows:
                yield from _linear(request, peaks, missing, advance, name, m, inputs, outputs)
    for name, (outputs, inputs) in layers.linear_shapes(model, "camera_head.trunk").items():
        for m in request.frames:
            yield from _linear(request, peaks, missing, advance, name, m, inputs, outputs)


def _linear(
    request: Request,
    peaks: Peaks,
    missing: dict[str, str],
    advance: Advance,
    name: str,
    m: int,
    inputs: int,
    outputs: int,
) -> list[Row]:
    what = f"{name} {outputs}x{inputs}, {m} rows"
    advance(what)
    runs, widths = layers.linear_contenders(m, inputs, outputs, request.device, missing)
    work = linear(m, inputs, outputs)
    least: dict[str, float | None] = {
        each: peaks.seconds(work, weight, activation)
        for each, (weight, activation) in widths.items()
    }
    return _timed("linears", what, runs, request, least)


def _blocks(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    config = read_checkpoint(request.checkpoint).config
    for height, width in request.sizes:
        for frames in request.frames:
            shape = Shape(frames, height, width)
            for kind, across in (("frame", False), ("global", True)):
                what = f"{kind} block, {frames} frames of {height}x{width}"
                advance(what)
                runs, widths = layers.block_contenders(config, shape, across, request.device)
                rows = frames * shape.tokens(config)
                work = block(config.embed_dim, config.mlp_ratio, rows, 1 if across else frames)
                least: dict[str, float | None] = {
                    each: peaks.seconds(work, weight, activation)
                    for each, (weight, activation) in widths.items()
                }
                yield from _timed("blocks", what, runs, request, least)


def _parts(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    (contender,) = build([INT4], request.checkpoint, _STREAM_HEADS, request.device)
    model = contender.model
    assert isinstance(model, VGGT)
    for height, width in request.sizes:
        for frames in request.frames:
            where = f"{frames} frames of {height}x{width}"
            advance(f"parts, {where}")
            work = parts(model.config, Shape(frames, height, width))
            images = torch.rand(1, frames, 3, height, width).to(request.device)
            for name, each in _part_runs(model, images).items():
                least = {INT4: _least(peaks, work[name], contender.weight_bytes, contender.dtype)}
                yield from _timed("parts", f"{name}, {where}", {INT4: each}, request, least)


@torch.inference_mode()
def _part_runs(model: VGGT, images: Tensor) -> dict[str, Run]:
    patch = model.config.patch_size
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    tokens = model.encode(images)
    patches, camera = model.aggregator(tokens, rows, columns)
    return {
        "encoder": lambda: model.encode(images),
        "aggregator": lambda: model.aggregator(tokens, rows, columns),
        "camera head": lambda: model.decode(patches, camera, rows, columns, heads=("camera",)),
        "depth head": lambda: model.decode(patches, camera, rows, columns, heads=("depth",)),
    }


def _names(request: Request, missing: dict[str, str]) -> list[str]:
    """Return who takes part on this device, the yardstick first."""
    names = [name for name in CONTENDERS if name in request.contenders]
    if request.device.type != "cuda" and INT4_FP8 in names:
        names.remove(INT4_FP8)
        missing[INT4_FP8] = "only GPUs multiply 8-bit floats"
    return names


def _contenders(
    request: Request, heads: tuple[str, ...], missing: dict[str, str]
) -> list[Contender]:
    """Build all that can be built, the yardstick first."""
    found: list[Contender] = []
    names = _names(request, missing)
    with suppress(BenchmarkError):
        return build(names, request.checkpoint, heads, request.device, request.original)
    for name in names:
        try:
            found += build([name], request.checkpoint, heads, request.device, request.original)
        except BenchmarkError as error:
            missing[name] = str(error)
    return found


def _network(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    config = read_checkpoint(request.checkpoint).config
    heads = available_heads(config)
    advance("building the contenders")
    contenders = _contenders(request, heads, missing)
    for height, width in request.sizes:
        for frames in request.frames:
            where = f"{frames} frames of {height}x{width}"
            images = torch.rand(1, frames, 3, height, width).to(request.device)
            work = sum(parts(config, Shape(frames, height, width)).values(), Work())
            advance(f"network, {where}")

            def called(contender: Contender, wanted: tuple[str, ...], x: Tensor = images) -> Run:
                return lambda: contender.forward(x, wanted)

            least: dict[str, float | None] = {
                each.name: _least(peaks, work, each.weight_bytes, each.dtype)
                for each in contenders
                if each.name not in (INT4_INTEGERS, INT4_FP8)
            }
            runs = {each.name: called(each, heads) for each in contenders}
            for each in contenders:
                # What the stream asks for; the original has no way to leave the point head out.
                if not each.is_original and heads != _STREAM_HEADS:
                    runs[f"{each.name}; camera and depth"] = called(each, _STREAM_HEADS)
            yield from _timed("network", where, runs, request, least)


def _stream(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    model = load_model(request.checkpoint, request.device, heads=_STREAM_HEADS)
    for height, width in request.sizes:
        what = f"window {request.window}, stride {request.stride}, {height}x{width}"
        advance(f"stream, {what}")
        times = time_streams(
            model,
            height,
            width,
            request.window,
            request.stride,
            request.rounds,
            request.clock,
            60 * request.minutes,
        )
        facts = {"bit_equal": times.bit_equal, "frames_per_run": request.stride}
        yield Row("stream", what, "encoding every view", times.encoding, 1.0, None, facts)
        gain = ratio(times.encoding, times.cached)
        yield Row("stream", what, "encoder cache", times.cached, gain, None, facts)


def _memory(
    request: Request, peaks: Peaks, missing: dict[str, str], advance: Advance
) -> Iterable[Row]:
    heads = available_heads(read_checkpoint(request.checkpoint).config)
    variants = [("all heads", heads)]
    if heads != _STREAM_HEADS:
        variants.append(("camera and depth", _STREAM_HEADS))
    for height, width in request.sizes:
        for frames in request.frames:
            peaks_mib: dict[str, float] = {}
            for name in _names(request, missing):
                for label, wanted in variants:
                    if name.startswith("original") and wanted != heads:
                        continue
                    advance(f"memory of {name}, {frames} frames of {height}x{width}")
                    try:
                        facts = measure_memory(
                            name,
                            request.checkpoint,
                            wanted,
                            (frames, height, width),
                            request.device,
                            request.threads,
                            request.original,
                        )
                    except BenchmarkError as error:
                        missing[name] = str(error)
                        continue
                    called = name if wanted == heads else f"{name}; {label}"
                    peaks_mib[called] = facts["peak_mib"]
                    yardstick = next(iter(peaks_mib.values()))
                    yield Row(
                        "memory",
                        f"{frames} frames of {height}x{width}",
                        called,
                        ratio=yardstick / facts["peak_mib"],
                        facts=facts,
                    )
