"""Runs the benchmark: figures of all contenders in one run, beside the roofline of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from qvggt_core.measure.bench_cases import MEASURES, Session
from qvggt_core.measure.bench_request import CASES, Request
from qvggt_core.measure.provenance import provenance
from qvggt_core.measure.roofline import measure_peaks

FORMAT = "qvggt-bench/1"


def run(
    request: Request,
    advance: Callable[[str], None] = lambda what: None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure a request and return the raw results as plain data.

    Contenders that cannot run (no clone of the original, a checkpoint of other sizes) are named
    in "not_measured" with the reason; the others are measured.

    Args:
        request: what to measure.
        advance: called with what is measured next.
        keep: called with what there is so far, "complete" false, whenever a row is known.

    Raises:
        BenchmarkError: the request cannot be measured.
    """
    request.check()
    torch.set_num_threads(request.threads)
    advance("peaks of this machine")
    with torch.inference_mode():
        peaks = measure_peaks(request.device, request.clock)
    session = Session(request, peaks, advance)
    rows: list[dict[str, Any]] = []
    results = _about(request) | {
        "peaks": asdict(peaks),
        "complete": False,
        "rows": rows,
        "not_measured": session.missing,
    }
    for case in sorted(request.cases, key=CASES.index):
        for row in MEASURES[case](session):
            rows.append(asdict(row))
            keep(results)
    return results | {"complete": True}


def _about(request: Request) -> dict[str, Any]:
    requested = asdict(request) | {
        "checkpoint": request.checkpoint.name,
        "original": "given" if request.original else "not given",
        "device": str(request.device),
    }
    origin = provenance(request.checkpoint)
    origin["machine"] |= _gpu(request.device)
    return {"format": FORMAT, **origin, "request": requested}


def _gpu(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {"gpu": "none: no GPU figure was measured"}
    major, minor = torch.cuda.get_device_capability(device)
    return {"gpu": f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"}
