"""Memory of one window of a contender, measured in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.candidates import build
from qvggt_core.measure.isolated import IsolatedError, run_isolated, serve
from qvggt_core.measure.roofline import Shape
from qvggt_core.measure.rss import held_mib, peak_mib, reset_peak, resident_mib


def measure_memory(
    contender: str,
    checkpoint: Path,
    heads: tuple[str, ...],
    shape: Shape,
    device: torch.device,
    threads: int,
    original: Path | None,
) -> dict[str, Any]:
    """Return MiB of one window in a process of its own.

    `interpreter_mib` is held by Python and PyTorch, `loaded_mib` by the weights beside it,
    `peak_mib` is the most that was held during the forward pass, both included.

    Raises:
        BenchmarkError: the process failed; the message ends with its last line.
    """
    task = {
        "contender": contender,
        "checkpoint": str(checkpoint),
        "heads": heads,
        "shape": [shape.frames, shape.height, shape.width],
        "device": str(device),
        "threads": threads,
        "original": str(original) if original else None,
    }
    # Large blocks go back to the kernel at once, so that the peak is what is alive.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    try:
        return run_isolated("qvggt_core.measure.window_memory", task, environment)
    except IsolatedError as error:
        raise BenchmarkError(
            f"the memory of {contender!r} could not be measured: {error}"
        ) from None


def _measure(
    contender: str,
    checkpoint: str,
    heads: list[str],
    shape: list[int],
    device: str,
    threads: int,
    original: str | None,
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    where = torch.device(device)
    interpreter = held_mib(where)
    (built,) = build(
        [contender], Path(checkpoint), heads, where, Path(original) if original else None
    )
    for tensor in built.model.state_dict().values():
        tensor.amax()  # reads every mapped page
    frames, height, width = shape
    images = torch.rand(1, frames, 3, height, width).to(where)
    is_fresh = reset_peak(where)
    loaded = held_mib(where)
    started = time.perf_counter()
    with torch.inference_mode():
        built.forward(images, heads)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
    return {
        "interpreter_mib": interpreter,
        "loaded_mib": loaded - interpreter,
        "peak_mib": peak_mib(where),
        "resident_mib": resident_mib(),
        "peak_includes_loading": not is_fresh,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    serve(_measure)
