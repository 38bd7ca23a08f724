"""The `qvggt` command in a child that is forked from a warm process: to kill, to starve, to fill.

A child that is forked begins within milliseconds, so that a fault can hit any moment of its work.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from qvggt_ros.cli import app, console

TIMEOUT_S = 120.0
ORPHANS_END_S = 30.0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: of its exit; negative for the signal that ended it.
        text: what it wrote to both outputs.
        seconds: how long it ran.
    """

    status: int
    text: str
    seconds: float

    @property
    def is_explained(self) -> bool:
        """Whether it ended well, or with an error of ours."""
        return self.status == 0 or (
            self.status in (2, 3)
            and "Traceback" not in self.text
            and ("error: " in self.text or "failed: " in self.text)
        )


def nothing() -> None:
    """Prepare a child in no way."""


def run(
    arguments: Sequence[object],
    log: Path,
    prepare: Callable[[], None] = nothing,
    kill_after_s: float | None = None,
) -> Ended:
    """Run a command in a child.

    Args:
        arguments: of the command.
        log: file for its outputs.
        prepare: called in the child before the command.
        kill_after_s: when it is killed (SIGKILL) if it still runs.
    """
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be(arguments, log, prepare)
    limit = started + (TIMEOUT_S if kill_after_s is None else kill_after_s)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > limit:
            workers = psutil.Process(child).children(recursive=True)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            _, alive = psutil.wait_procs(workers, ORPHANS_END_S)
            assert not alive, f"work on without a parent: {alive}"
            if kill_after_s is None:
                text = log.read_text("utf-8", "replace") if log.exists() else ""
                raise TimeoutError(f"{arguments} still runs after {TIMEOUT_S:.0f} s\n{text}")
            break
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return Ended(code, text, time.monotonic() - started)


def _be(arguments: Sequence[object], log: Path, prepare: Callable[[], None]) -> None:
    """Be the child: never return."""
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        faulthandler.dump_traceback_later(TIMEOUT_S - 10, file=2)
        console.out.file, console.err.file = sys.stdout, sys.stderr
        prepare()
        app.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


assert isinstance(console.out, Console)
