"""What running a network costs: memory and time of one window, in a process of its own.

    python -m qvggt_core.measure.footprint CHECKPOINT --frames 4 --height 96 --width 128

prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qvggt_core.errors import EvaluationError

_WARM_UP = 2


@dataclass(frozen=True)
class Footprint:
    """Cost of a network on this machine.

    Attributes:
        peak_mib: largest resident memory of the process over that before the network was
            loaded, MiB.
        milliseconds: median processor time of a window on one thread.
        compute_dtype: what it computed in.
    """

    peak_mib: float
    milliseconds: float
    compute_dtype: str


def measure_footprint(
    checkpoint: Path, frames: int, height: int, width: int, repeats: int = 15, dtype: str = "auto"
) -> Footprint:
    """Measure a checkpoint in a process of its own, on one thread of the processor.

    Raises:
        EvaluationError: the process failed; says what it said.
    """
    command = [sys.executable, "-m", "qvggt_core.measure.footprint", str(checkpoint)]
    for name, value in (
        ("frames", frames),
        ("height", height),
        ("width", width),
        ("repeats", repeats),
        ("dtype", dtype),
    ):
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise EvaluationError(f"measuring {checkpoint} failed: {done.stderr.strip()[-400:]}")
    return Footprint(**json.loads(done.stdout))


def _memory_kib(entry: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split(f"{entry}:")[1].split()[0])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, default in (("frames", 4), ("height", 96), ("width", 128), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    import torch

    from qvggt_core.model import load_model

    torch.set_num_threads(1)
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    before = _memory_kib("VmRSS")
    model = load_model(arguments.checkpoint, dtype=dtype)
    shape = (1, arguments.frames, 3, arguments.height, arguments.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + arguments.repeats):
            start = time.process_time()
            model(images)
            times.append(1e3 * (time.process_time() - start))
    result = Footprint(
        peak_mib=(_memory_kib("VmHWM") - before) / 1024,
        milliseconds=float(np.median(times[_WARM_UP:])),
        compute_dtype=str(next(model.aggregator.parameters()).dtype).removeprefix("torch."),
    )
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    _main()
