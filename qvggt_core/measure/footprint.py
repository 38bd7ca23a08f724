"""Cost of running a network: memory and time of one window, in a process of its own."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvggt_core.errors import EvaluationError
from qvggt_core.measure.isolated import IsolatedError, run_isolated, serve
from qvggt_core.measure.rss import peak_mib, resident_mib
from qvggt_core.model import load_model

_WARM_UP = 2


@dataclass(frozen=True)
class Footprint:
    """Cost of a network on this machine.

    Attributes:
        peak_mib: largest resident memory of the process over that before the network was
            loaded, MiB.
        milliseconds: median processor time of a window on one thread.
        compute_dtype: of the network's arithmetic.
    """

    peak_mib: float
    milliseconds: float
    compute_dtype: str


def measure_footprint(
    checkpoint: Path, frames: int, height: int, width: int, repeats: int = 15, dtype: str = "auto"
) -> Footprint:
    """Measure a checkpoint in a process of its own, on one thread of the processor.

    Raises:
        EvaluationError: the process failed; the message ends with its last line.
    """
    task = {
        "checkpoint": str(checkpoint),
        "shape": [1, frames, 3, height, width],
        "repeats": repeats,
        "dtype": dtype,
    }
    environment = {"OMP_NUM_THREADS": "1"}
    try:
        return Footprint(**run_isolated("qvggt_core.measure.footprint", task, environment))
    except IsolatedError as error:
        raise EvaluationError(f"measuring {checkpoint} failed: {error}") from None


def _measure(checkpoint: str, shape: list[int], repeats: int, dtype: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = resident_mib()
    model = load_model(Path(checkpoint), dtype=None if dtype == "auto" else getattr(torch, dtype))
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + repeats):
            start = time.process_time()
            model(images)
            times.append(1e3 * (time.process_time() - start))
    return asdict(
        Footprint(
            peak_mib=peak_mib(torch.device("cpu")) - before,
            milliseconds=float(np.median(times[_WARM_UP:])),
            compute_dtype=str(next(model.aggregator.parameters()).dtype).removeprefix("torch."),
        )
    )


if __name__ == "__main__":
    serve(_measure)
