"""Raw results of a benchmark as Markdown, also for the README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.bench import FORMAT

_TITLES = {
    "linears": "Linears",
    "blocks": "Blocks",
    "parts": "Parts of the network",
    "network": "Whole network",
    "stream": "Sliding window",
    "memory": "Memory",
}


def read_results(path: Path) -> dict[str, Any]:
    """Read raw results.

    Raises:
        BenchmarkError: it is no such file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["format"] == FORMAT:
            return dict(results)
        raise BenchmarkError(f"{path} has the format {results['format']!r}, not {FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} holds no results of `qvggt bench`: {error}") from error


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return all rows as tables, with the machine above and what is missing below."""
    machine, request, peaks = results["machine"], results["request"], results["peaks"]
    flops = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks["flops"].items())
    lines = [
        "# qvggt bench",
        "",
        f"{machine['cpu']} (family/model {machine['cpu_family_model']}: "
        f"{', '.join(machine['cpu_flags'])}), {request['threads']} thread(s), "
        f"{request['clock']} time, PyTorch {machine['torch']}; GPU: {machine['gpu']}. "
        f"Measured peaks: {flops}, copy {peaks['bytes'] / 1e9:.1f} GB/s. "
        "*Faster* is the median over interleaved rounds of the first row's time over this row's; "
        "*roofline* is the share of the time that the measured peaks would allow at best.",
    ]
    for case, title in _TITLES.items():
        rows = [row for row in results["rows"] if row["case"] == case]
        if rows:
            lines += ["", f"## {title}", "", *(_memory(rows) if case == "memory" else _times(rows))]
    if not results.get("complete", True):
        lines += ["", "Not complete: the run has not ended, or was stopped."]
    if results["not_measured"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {why}" for name, why in results["not_measured"].items()]
    return "\n".join(lines) + "\n"


def find(results: Mapping[str, Any], case: str, what: str, contender: str) -> dict[str, Any]:
    """Return the one row of a case.

    Raises:
        BenchmarkError: there is none.
    """
    for row in results["rows"]:
        if (row["case"], row["what"], row["contender"]) == (case, what, contender):
            return dict(row)
    raise BenchmarkError(f"there is no row {case}, {what!r}, {contender!r} among the results")


def _times(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| what | who | median | faster | roofline |", "|---|---|---|---|---|"]
    before = None
    for row in rows:
        seconds = statistics.median(row["seconds"]) if row["seconds"] else float("nan")
        least = row["least_seconds"]
        share = f"{100 * least / seconds:.0f} %" if least else ""
        what = row["what"] if row["what"] != before else ""
        before = row["what"]
        lines.append(
            f"| {what} | {row['contender']} | {duration(seconds)} | {row['ratio']:.2f} | {share} |"
        )
    return lines


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| what | who | weights MiB | peak MiB | of it Python and PyTorch | times smaller |",
        "|---|---|---|---|---|---|",
    ]
    before = None
    for row in rows:
        facts = row["facts"]
        what = row["what"] if row["what"] != before else ""
        before = row["what"]
        lines.append(
            f"| {what} | {row['contender']} | {facts['loaded_mib']:.0f} | {facts['peak_mib']:.0f} "
            f"| {facts['interpreter_mib']:.0f} | {row['ratio']:.2f} |"
        )
    return lines


def duration(seconds: float) -> str:
    """Return a time with three digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")
