"""Writes the table of speed in docs/performance.md from the raw results of `qvggt bench`.

python benchmarks/speed_table.py
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvggt_core.measure.candidates import (
    BFLOAT16,
    INT4,
    INT4_INTEGERS,
    ORIGINAL_BFLOAT16,
    ORIGINAL_FLOAT32,
)
from qvggt_core.measure.tables import duration, find, read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bench_cpu.json"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->\n"
_STREAM = "; camera and depth"


def table(results: Mapping[str, Any]) -> str:
    """Return the table: VGGT's size at two frames, the original in float32 being 1."""
    machine, request = results["machine"], results["request"]
    height, width = request["sizes"][0]
    frames = request["frames"][0]
    where = f"{frames} frames of {height}x{width}"
    lines = [
        f"VGGT-1B's shape, {where}, {machine['cpu']} (Zen 5: AVX-512, no AMX), "
        f"{request['threads']} threads, {request['clock']} time, PyTorch {machine['torch']}, C++ "
        f"kernels {machine['cpu_kernels']}; all in one run. "
        "On a GPU: not measured.",
        "",
        "| network | heads | a window | times faster | peak memory | times smaller |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (
        (ORIGINAL_FLOAT32, "the original, float32"),
        (ORIGINAL_BFLOAT16, "the original, bfloat16 autocast"),
        (BFLOAT16, "qvggt, 16-bit weights"),
        (INT4, "qvggt, INT4"),
        (INT4 + _STREAM, "qvggt, INT4"),
        (INT4_INTEGERS, "qvggt, INT4, `linears: int8`"),
        (INT4_INTEGERS + _STREAM, "qvggt, INT4, `linears: int8`"),
    ):
        row, memory = (find(results, case, where, name) for case in ("network", "memory"))
        heads = "camera, depth" if name.endswith(_STREAM) else "all three"
        seconds = statistics.median(row["seconds"])
        lines.append(
            f"| {label} | {heads} | {duration(seconds)} | {row['ratio']:.2f} "
            f"| {memory['facts']['peak_mib']:,.0f} MiB | {memory['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def replaced(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(results)}{END}{after}"


if __name__ == "__main__":
    path = ROOT / "docs" / "performance.md"
    path.write_text(
        replaced(path.read_text(encoding="utf-8"), read_results(RESULTS)), encoding="utf-8"
    )
