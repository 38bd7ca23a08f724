"""Everything that is to be measured on an NVIDIA GPU, in eight minutes at most.

    python benchmarks/gpu_day --prepare -o out/gpu_day     # before, without a GPU: saves a minute
    python benchmarks/gpu_day -o out/gpu_day [--original CLONE_OF_VGGT]

Parts are processes: tests of the kernels, `qvggt tune`, the whole network and its memory against
the baseline, the live table, and training for what time is left. Each has a limit; one that fails
or is ended leaves the others their time. Called again, parts that are done are not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from inputs import ROOT, prepare
from parts import environment_of, parts_of
from rich.console import Console
from rich.table import Table
from schedule import DONE, STOPPED, SUMMARY, Schedule

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.provenance import provenance

_MOST_MINUTES = 8.0


def main() -> int:
    """Run what is left to run; return 0 if every part has its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path = {"type": lambda text: Path(text).resolve()}
    parser.add_argument("-o", "--output", default=ROOT / "out/gpu_day", **path)
    parser.add_argument("--original", help="clone of github.com/facebookresearch/vggt", **path)
    parser.add_argument("--recording", help="of a camera, in place of a synthetic one", **path)
    parser.add_argument("--minutes", type=float, default=_MOST_MINUTES, help="for all, at most 8")
    parser.add_argument("--only", action="append", help="name of a part; may be repeated")
    parser.add_argument("--prepare", action="store_true", help="only make what needs no GPU")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.output, with_clips=True)
        return 0
    try:
        outcomes = _run(args)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    table = Table("part", "state", "seconds", "results")
    for name, outcome in outcomes.items():
        results = ", ".join(outcome.get("results", ()))
        table.add_row(name, outcome["state"], f"{outcome['seconds']:.0f}", results)
    Console().print(table)
    print(f"wrote {args.output / SUMMARY}")
    return 0 if all(each["state"] in (DONE, STOPPED) for each in outcomes.values()) else 1


def _run(args: argparse.Namespace) -> dict:
    if not torch.cuda.is_available():
        raise BenchmarkError(
            "there is no CUDA device here: run this on a machine with an NVIDIA GPU and PyTorch "
            "built for CUDA (`--prepare` makes here what needs none)"
        )
    if not 0 < args.minutes <= _MOST_MINUTES:
        raise BenchmarkError(f"--minutes {args.minutes:g}: give up to {_MOST_MINUTES:g}")
    output, original, recording = args.output, args.original, args.recording
    os.chdir(ROOT)  # tests and presets are named from there
    parts = parts_of(output, original, recording)
    names = [part.name for part in parts]
    unknown = sorted(set(args.only or names) - set(names))
    if unknown:
        raise BenchmarkError(f"--only {unknown[0]}: choose from {', '.join(names)}")
    chosen = [part for part in parts if part.name in (args.only or names)]
    schedule = Schedule(output, provenance(), environment_of(output))
    return schedule.run(chosen, 60.0 * args.minutes)


if __name__ == "__main__":
    raise SystemExit(main())
