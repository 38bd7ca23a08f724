"""Depth Anything 3 whole, ours beside the authors' code and other runtimes, in one run.

    python benchmarks/da3_peers.py --original CLONE --work FOLDER --cases da3-small:336x252x4 \
        -o benchmarks/results/da3_peers.json

`CLONE` is the authors' repository beside this one, see `da3_original.py`. The environment also has
what takes part: openvino, nncf, onnx, onnxruntime, torchao. One that is missing or fails is
recorded as its error.

Weights are random, of the published shapes: speed does not depend on them. Parts of a case:

prepare   files for each runtime are made in `FOLDER` and kept; no time counts, any machine will do.
time      contenders load in processes of their own and answer the same window in turn, round by
          round, so that all meet the same machine; the authors' float32 takes part in each group
          of them, and the median of its rounds' ratios counts. CPU time is of all threads.
memory    each alone, in a process of its own: the most it holds during a window, all included.

Deviation is from the authors' float32 on the same input; the reference view is the first. Run
again with the same commit, the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from da3_artifacts import Case, Places
from da3_contenders import CONTENDERS, ORIGINAL
from da3_original import Answer, deviation
from da3_peer_process import ContenderError, PeerProcess

from qvggt_core.measure.provenance import provenance, write_results

_PARTS = ("prepare", "time", "memory")
_NETWORKS = ("da3-small", "da3-base")
_SIZES = ("336x252", "252x196", "504x378")
_FRAMES = (4, 2, 1, 8)
_ALL_CASES = tuple(
    f"{network}:{size}x{frames}" for size in _SIZES for frames in _FRAMES for network in _NETWORKS
)

_PAUSE_S = 0.1
"""Between two contenders: threads of the one before wait in a loop for a while."""

Figures = dict[str, Any]
Rounds = dict[str, list[dict[str, float]]]


class Settings(NamedTuple):
    """How a case is measured.

    Attributes:
        threads: of every contender.
        rounds: that count.
        group: contenders that are loaded at a time, beside the authors' float32.
        budget_s: a contender that has computed for so long takes part in no further round.
        contenders: names.
    """

    threads: int
    rounds: int
    group: int
    budget_s: float
    contenders: list[str]


class Results:
    """Figures by case and contender, in a file that is whole after each change."""

    def __init__(self, path: Path, facts: Figures) -> None:
        """Begin, or go on with a file.

        Raises:
            SystemExit: the file is of another commit or machine.
        """
        self._path = path
        self._facts = facts
        self.cases: dict[str, dict[str, Figures]] = {}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            now = provenance()
            if before["commit"] != now["commit"] or before["machine"] != now["machine"]:
                raise SystemExit(f"{path} is of another commit or machine: give another -o")
            self.cases = before["cases"]

    def of(self, case: Case) -> dict[str, Figures]:
        """Return the figures of a case by contender."""
        return self.cases.setdefault(case.name, {})

    def add(self, case: Case, contender: str, figures: Figures) -> None:
        """Add to a contender's figures, print them and write the file."""
        self.of(case).setdefault(contender, {}).update(figures)
        print(case.name, "|", contender, "|", json.dumps(figures), flush=True)
        write_results(self._path, {**self._facts, "cases": self.cases}, digits=5)


def prepare(places: Places, settings: Settings, results: Results) -> None:
    """Make the files of a case that are not there; what fails is the error of who needs it."""
    for name in settings.contenders:
        kind = CONTENDERS[name].needs
        if places.file(kind).parent.exists():
            continue
        script = Path(__file__).with_name("da3_artifacts.py")
        task = [str(places.clone), str(places.folder), *map(str, places.case), kind]
        print(f"{places.case.name} | {kind} is being made", flush=True)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, *task],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            results.add(places.case, name, {"error": f"{kind}: {lines[-1].strip()}"})


def measure_time(places: Places, settings: Settings, results: Results) -> None:
    """Time all contenders that have no times yet, a group of them at a time."""
    with tempfile.TemporaryDirectory() as folder:
        waiting = [
            name
            for name in settings.contenders
            if name != ORIGINAL and not _has(results.of(places.case), name, "wall_ms")
        ]
        # The original alone where no other is wanted.
        groups = list(_groups(waiting, settings.group))
        if not groups and not _has(results.of(places.case), ORIGINAL, "wall_ms"):
            groups = [[]]
        for group in groups:
            _time_group(places, group, settings, results, Path(folder))


def _time_group(
    places: Places, group: list[str], settings: Settings, results: Results, folder: Path
) -> None:
    answers = {name: folder / f"{index}.pt" for index, name in enumerate((ORIGINAL, *group))}
    with ExitStack() as stack:
        running: dict[str, PeerProcess] = {}
        for name, answer in answers.items():
            try:
                process = PeerProcess(places, name, settings.threads, answer, for_memory=False)
            except ContenderError as error:
                results.add(places.case, name, {"error": str(error)})
                continue
            running[name] = stack.enter_context(closing(process))
        if ORIGINAL not in running:
            raise SystemExit(f"{places.case.name}: {results.of(places.case)[ORIGINAL]['error']}")
        rounds = _rounds(running, settings)
        wanted = _answer(answers[ORIGINAL])
        for name, process in running.items():
            figures = {
                **_times(rounds[name], rounds[ORIGINAL]),
                **deviation(_answer(answers[name]), wanted),
                "load_s": process.facts["load_s"],
            }
            results.add(places.case, name, figures)


def _rounds(running: dict[str, PeerProcess], settings: Settings) -> Rounds:
    """Return each one's times by round; the first round sets caches up and does not count."""
    found: Rounds = {name: [] for name in running}
    for number in range(settings.rounds + 1):
        for name, process in running.items():
            spent = sum(times["wall_ms"] for times in found[name]) / 1e3
            if number <= 1 or spent < settings.budget_s:
                time.sleep(_PAUSE_S)
                found[name].append(process.ask("run"))
    return {name: times[1:] for name, times in found.items()}


def _times(
    rounds: list[dict[str, float]], original: list[dict[str, float]]
) -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {}
    for clock in ("wall", "cpu"):
        of_rounds = [times[f"{clock}_ms"] for times in rounds]
        beside = [times[f"{clock}_ms"] for times in original]
        ratios = [other / own for own, other in zip(of_rounds, beside, strict=False)]
        figures[f"{clock}_ms"] = statistics.median(of_rounds)
        figures[f"{clock}_ms_of_rounds"] = of_rounds
        figures[f"{clock}_times_faster"] = statistics.median(ratios)
    return figures


def measure_memory(places: Places, settings: Settings, results: Results) -> None:
    """Measure the memory of all contenders that have no figure yet, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.pt"
        for name in settings.contenders:
            if _has(results.of(places.case), name, "peak_mib"):
                continue
            try:
                peer = PeerProcess(places, name, settings.threads, answer, for_memory=True)
                with closing(peer):
                    facts = {key: peer.facts[key] for key in peer.facts if key.endswith("_mib")}
                    results.add(places.case, name, {**facts, **peer.ask("memory")})
            except ContenderError as error:
                results.add(places.case, name, {"error": str(error)})


def _has(figures: dict[str, Figures], name: str, key: str) -> bool:
    return key in figures.get(name, {}) or "error" in figures.get(name, {})


def _groups(names: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield list(names[start : start + size])


def _answer(path: Path) -> Answer:
    depth, pose = torch.load(path)
    return depth, pose


def _case(text: str) -> Case:
    """Return the case that e.g. "da3-small:336x252x4" names."""
    network, _, numbers = text.partition(":")
    try:
        width, height, frames = map(int, numbers.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like da3-small:336x252x4") from None
    return Case(network, frames, height, width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--original", type=Path, required=True, help="the authors' repository")
    parser.add_argument("--work", type=Path, required=True, help="keeps converted networks")
    parser.add_argument("--cases", type=_case, nargs="+", default=[_case(c) for c in _ALL_CASES])
    parser.add_argument("--only", nargs="+", default=[], help="contenders with this in their names")
    parser.add_argument("--parts", choices=_PARTS, nargs="+", default=_PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--group", type=int, default=7, help="contenders loaded at a time")
    parser.add_argument("--budget-s", type=float, default=30, help="of a contender's rounds")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser


def main() -> None:
    """Measure, print figures and write them, as each is known."""
    args = _parser().parse_args()
    names = [
        name
        for name in CONTENDERS
        if not args.only or name == ORIGINAL or any(part in name for part in args.only)
    ]
    settings = Settings(args.threads, args.rounds, args.group, args.budget_s, names)
    results = Results(args.output, {"note": args.note, "threads": args.threads})
    measure = {"prepare": prepare, "time": measure_time, "memory": measure_memory}
    for case in args.cases:
        places = Places(args.original.resolve(), args.work.resolve(), case)
        for part in _PARTS:
            if part in args.parts:
                measure[part](places, settings, results)


if __name__ == "__main__":
    main()
