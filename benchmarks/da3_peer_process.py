"""One contender of `da3_peers.py` in a process of its own, for its memory, caches and threads.

A process loads its contender, answers the window once, and then waits for words on its standard
input, each of which it answers by a line of JSON: "run" with the milliseconds of one more answer,
"memory" with the most that was held during it.
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
from da3_artifacts import Case, Places
from da3_contenders import CONTENDERS, Run
from da3_original import window

from qvggt_core.measure.rss import peak_mib, reset_peak, resident_mib

_CPU = torch.device("cpu")


class ContenderError(Exception):
    """A contender did not load, or did not answer; the message is the last line of its errors."""


class PeerProcess:
    """A running contender.

    Attributes:
        facts: what it reported when it was ready: "load_s", "first_ms", "interpreter_mib",
            "loaded_mib" beside that, and "loading_peak_mib", which includes both.
    """

    facts: dict[str, float]

    def __init__(
        self, places: Places, contender: str, threads: int, answer: Path, *, for_memory: bool
    ) -> None:
        """Start a contender and wait until it has answered once.

        Args:
            places: of its files.
            contender: name.
            threads: that it computes with.
            answer: file that takes its answer.
            for_memory: give large blocks back to the kernel at once, so that the peak is what is
                alive; not for a process whose time counts.

        Raises:
            ContenderError: it failed.
        """
        task = [str(places.clone), str(places.folder), *map(str, places.case), contender]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if for_memory:
            environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        self._errors = answer.with_suffix(".log")
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *task, str(threads), str(answer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.facts = self._read()

    def ask(self, word: str) -> dict[str, float]:
        """Return what it answers to "run" or "memory".

        Raises:
            ContenderError: it failed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        found: dict[str, float] = json.loads(line)
        return found

    def _failure(self) -> ContenderError:
        status = self._process.wait()
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return ContenderError(lines[-1].strip() if lines else f"exit status {status}")


def _timed(run: Run) -> dict[str, float]:
    started, used = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    return {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu}


def _peak(run: Run) -> dict[str, float]:
    if not reset_peak(_CPU):
        raise OSError("this system does not restart the peak of a process's memory")
    run()
    return {"peak_mib": peak_mib(_CPU)}


@torch.inference_mode()
def _serve(places: Places, contender: str, threads: int, answer: Path) -> None:
    # Libraries print what they like to standard output; the parent reads only this.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    torch.set_num_threads(threads)
    interpreter = resident_mib()
    _, frames, height, width = places.case
    started = time.perf_counter()
    run = CONTENDERS[contender].load(places, window(frames, height, width), threads)
    loaded = time.perf_counter() - started
    held = resident_mib()
    started = time.perf_counter()
    torch.save(tuple(part.float() for part in run()), answer)
    reply(
        {
            "load_s": loaded,
            "first_ms": 1e3 * (time.perf_counter() - started),
            "interpreter_mib": interpreter,
            "loaded_mib": held - interpreter,
            "loading_peak_mib": peak_mib(_CPU),
        }
    )
    for word in sys.stdin:
        reply((_peak if word.strip() == "memory" else _timed)(run))


if __name__ == "__main__":
    clone, folder, network, *numbers, name, threads, answer = sys.argv[1:]
    frames, height, width = map(int, numbers)
    case = Case(network, frames, height, width)
    _serve(Places(Path(clone), Path(folder), case), name, int(threads), Path(answer))
