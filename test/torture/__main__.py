"""Runs every part of the torture in a process of its own, and prints one table.

    make torture                                 # at most 20 minutes on two cores
    cd test && python -m torture --minutes 60    # a longer run
    cd test && python -m torture --page ../benchmarks/results/torture.json

Each module of this folder is a part. Run as a program, with `--seconds N`, it prints one JSON
object on its last line: `cases`; `explained` (a result or an error of ours); `tracebacks` (any
other exception); `lost` (data lost, or wrong without a word); `slowest_s`, the longest single
case. A part that dies or hangs counts as killed. The exit status is 0 if every case was explained
and nothing was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.torture_page import COLUMNS, page, table

from qvggt_core.measure.provenance import write_results

HERE = Path(__file__).parent
SHOWN = 10000
"""Characters shown of what a part wrote that did not survive."""
SHARES = {"faults": 3}
"""How many times another part's time one gets: a command takes seconds, a message none."""
MEMORY_LIMIT = 8 << 30
"""Bytes of address space for a part: what needs more has no bound."""


def run(part: str, seconds: float) -> dict[str, Any]:
    """Run a part; return its figures, and what it wrote if it did not survive."""
    before = time.monotonic()
    output = errors = death = ""
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"torture.{part}", "--seconds", f"{seconds:.0f}"],
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            timeout=3 * seconds + 120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT,) * 2),
        )
        output, errors = done.stdout, done.stderr[-SHOWN:]
        death = f"exit status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as hung:
        death = f"still running after {hung.timeout:.0f} s"
    figures: dict[str, Any] = dict.fromkeys(COLUMNS, 0)
    try:
        figures.update(json.loads(output.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        death = death or f"no figures in its output: {output[-SHOWN:]!r}"
    figures["killed"] = figures["killed"] or int(bool(death))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures["peak_mb"] = round(figures["peak_mb"] or peak)
    failure = "" if survived(figures) else f"{death}\n{errors}".strip()
    return {**figures, "failure": failure, "seconds": round(time.monotonic() - before)}


def survived(figures: dict[str, Any]) -> bool:
    """Return whether a part ended with every case explained and nothing lost."""
    return not (figures["killed"] or figures["lost"] or figures["tracebacks"])


def main() -> None:
    """Run all parts, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="parts to run; all if none is named")
    parser.add_argument("--minutes", type=float, default=17.0, help="for all parts together")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--page", type=Path, help="write docs/torture.md from such a file instead")
    arguments = parser.parse_args()
    if arguments.page is not None:
        raw = json.loads(arguments.page.read_text(encoding="utf-8"))
        (HERE.parents[1] / "docs/torture.md").write_text(page(raw), encoding="utf-8")
        return
    load = os.getloadavg()[0]
    known = sorted(path.stem for path in HERE.glob("[a-z]*.py"))
    parts = arguments.parts or known
    results = {}
    whole = sum(SHARES.get(part, 1) for part in parts)
    for part in parts:
        results[part] = run(part, 60 * arguments.minutes * SHARES.get(part, 1) / whole)
        if not survived(results[part]):
            print(f"{part}: {results[part]['failure']}", file=sys.stderr)
    print(table(results))
    if arguments.output is not None:
        write_results(arguments.output, {"load": load, "parts": results})
    bad = [part for part, figures in results.items() if not survived(figures)]
    sys.exit(f"not survived: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
