"""What a device computes fastest, measured where it cannot be known."""

from __future__ import annotations

import functools
import time

import torch
from torch.nn import functional as F

_REQUIRED_GAIN = 1.3
"""bfloat16 gives up 16 bits of mantissa: it has to pay for that clearly."""

_PROBE_ROWS, _PROBE_WIDTH, _PROBE_REPEATS = 512, 1024, 4


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype in which a device multiplies matrices fastest at acceptable precision.

    CUDA: bfloat16 from compute capability 8.0, float16 before. CPU: bfloat16 if a matrix
    product, measured once per process (tens of milliseconds), is at least 1.3 times as fast
    as in float32. Instruction sets do not tell: AVX512-BF16 wins on one vendor's cores and
    loses on another's, and without matrix instructions bfloat16 can be ten times slower.
    Any other device: float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and _cpu_gain() >= _REQUIRED_GAIN:
        return torch.bfloat16
    return torch.float32


@functools.cache
def _cpu_gain() -> float:
    """Return how many times faster than float32 this CPU is in bfloat16."""
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    with torch.inference_mode():
        operands = {
            dtype: (
                torch.ones(_PROBE_ROWS, _PROBE_WIDTH, dtype=dtype, device="cpu"),
                torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, dtype=dtype, device="cpu"),
            )
            for dtype in best
        }
        # The best of interleaved runs: the first ones set kernels up, others may be disturbed.
        for _ in range(_PROBE_REPEATS):
            for dtype, (x, weight) in operands.items():
                start = time.perf_counter()
                F.linear(x, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
