"""The memory of one contender on one window, measured in this process alone.

    python -m qvggt_core.measure.process_worker '{"contender": ..., "checkpoint": ..., ...}'

It prints one line of JSON. A process of its own is the only way to a peak on a CPU that no other
contender has a part in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.candidates import build
from qvggt_core.measure.rss import held_mib, peak_mib, reset_peak, resident_mib

_SECONDS = 3600


def measure_memory(
    contender: str,
    checkpoint: Path,
    heads: tuple[str, ...],
    shape: tuple[int, int, int],
    device: torch.device,
    threads: int,
    original: Path | None,
) -> dict[str, Any]:
    """Return MiB of one window in a process of its own.

    `interpreter_mib` is what Python and PyTorch hold, `loaded_mib` the weights beside it,
    `peak_mib` the most that was held during the forward pass, both included.

    Raises:
        BenchmarkError: the process failed; the message ends with what it said.
    """
    task = {
        "contender": contender,
        "checkpoint": str(checkpoint),
        "heads": heads,
        "shape": shape,
        "device": str(device),
        "threads": threads,
        "original": str(original) if original else None,
    }
    # Large blocks go back to the kernel at once, so that the peak is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "qvggt_core.measure.process_worker", json.dumps(task)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=_SECONDS,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BenchmarkError(f"the memory of {contender!r} could not be measured: {said[0]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _main(task: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(task["threads"])
    device = torch.device(task["device"])
    interpreter = held_mib(device)
    original = Path(task["original"]) if task["original"] else None
    heads = tuple(task["heads"])
    (contender,) = build([task["contender"]], Path(task["checkpoint"]), heads, device, original)
    for tensor in contender.model.state_dict().values():
        tensor.amax()  # reads every mapped page
    frames, height, width = task["shape"]
    images = torch.rand(1, frames, 3, height, width).to(device)
    is_fresh = reset_peak(device)
    loaded = held_mib(device)
    started = time.perf_counter()
    with torch.inference_mode():
        contender.forward(images, heads)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return {
        "interpreter_mib": interpreter,
        "loaded_mib": loaded - interpreter,
        "peak_mib": peak_mib(device),
        "resident_mib": resident_mib(),
        "peak_includes_loading": not is_fresh,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(json.loads(sys.argv[1]))) + "\n")
