"""Parts of a long measurement: processes with a time each, within a time for all of them.

A part that fails or takes too long is ended, with all that it started, and the next one begins.
What became of each is in one JSON file that is whole after each part, from which a run that was
stopped goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvggt_core.errors import BenchmarkError
from qvggt_core.util.files import write_atomically

SUMMARY = "gpu_day.json"
"""File of the output directory that holds what became of each part."""

DONE, FAILED, TIMED_OUT = "done", "failed", "timed out"
STOPPED, NO_TIME = "stopped", "no time left"

_GRACE_S = 3.0
"""Time between the request to end and the end."""

_MOST_CHARACTERS = 400
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Part:
    """One measurement, in a process of its own.

    Attributes:
        name: of the part, and of its log.
        command: what runs.
        most_s: after these seconds it is ended.
        least_s: with less time left it does not begin.
        results: files that it writes, relative to the output directory.
        goes_on: it has no end of its own and takes what time is left: it is `STOPPED`, and goes on
            from there when it is run again.
    """

    name: str
    command: tuple[str, ...]
    most_s: float
    least_s: float = 5.0
    results: tuple[str, ...] = ()
    goes_on: bool = False


@dataclass
class Schedule:
    """Runs parts one after the other.

    Attributes:
        output: directory of the summary, the logs and the parts' files.
        origin: what the results depend on; a former run that is gone on with must have the same.
        environment: variables of the parts, beside those of this process.
        report: called with a line for each thing that happens.
    """

    output: Path
    origin: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    report: Callable[[str], None] = print

    def run(self, parts: Sequence[Part], budget_s: float) -> dict[str, dict[str, Any]]:
        """Run the parts that are not done yet and return what became of all, by name.

        Args:
            parts: in their order.
            budget_s: seconds for all parts of this call.

        Raises:
            BenchmarkError: the directory has results of another origin, or cannot be read.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        outcomes = self._former()
        began = time.monotonic()
        for part in parts:
            command = self._shortened(part.command)
            former = outcomes.get(part.name, {})
            if former.get("state") == DONE and former["command"] == command:
                self.report(f"{part.name}: done by a former run")
                continue
            left = budget_s - (time.monotonic() - began) - _GRACE_S
            if left < part.least_s:
                # What a former run left of it is still there.
                outcome = {"seconds": 0.0, **former, "state": NO_TIME}
            else:
                limit = min(part.most_s, left)
                self.report(f"{part.name}: at most {limit:.0f} s")
                outcome = self._outcome(part, limit)
            outcomes[part.name] = {**outcome, "command": command}
            self._write(outcomes)
            message = f", {outcome['message']}" if outcome.get("message") else ""
            self.report(f"{part.name}: {outcome['state']}, {outcome['seconds']:.0f} s{message}")
        return outcomes

    def _former(self) -> dict[str, dict[str, Any]]:
        path = self.output / SUMMARY
        if not path.exists():
            return {}
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            origin = {key: summary[key] for key in self.origin}
            outcomes = {name: dict(outcome) for name, outcome in summary["parts"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(f"{path} is no summary of a former run: {error!r}") from error
        if origin != json.loads(json.dumps(self.origin)):
            raise BenchmarkError(
                f"{path} is of another commit or machine: choose another output directory"
            )
        return outcomes

    def _write(self, outcomes: Mapping[str, Any]) -> None:
        text = json.dumps({**self.origin, "parts": outcomes}, indent=1)
        write_atomically(self.output / SUMMARY, text + "\n")

    def _shortened(self, command: Sequence[str]) -> list[str]:
        """Return a command without the directories of this machine."""
        directories = {f"{self.output}{os.sep}": "OUTPUT/", f"{Path.cwd()}{os.sep}": ""}
        words = [Path(command[0]).name]
        for word in command[1:]:
            for directory, short in directories.items():
                word = word.replace(directory, short)
            words.append(word)
        return words

    def _outcome(self, part: Part, limit_s: float) -> dict[str, Any]:
        log = self.output / f"{part.name}.log"
        began = time.monotonic()
        status, message = self._ended(part, limit_s, log)
        if status is None:
            state = STOPPED if part.goes_on else TIMED_OUT
        else:
            state = DONE if status == 0 else FAILED
        return {
            "state": state,
            "seconds": round(time.monotonic() - began, 1),
            "exit_status": status,
            "message": message or ("" if state == DONE else _last_line(log)),
            "log": log.name,
            "results": [name for name in part.results if (self.output / name).exists()],
        }

    def _ended(self, part: Part, limit_s: float, log: Path) -> tuple[int | None, str]:
        """Run a part to its end or the limit; return its status, None at the limit, and why."""
        environment = {**os.environ, **self.environment}
        with log.open("wb") as file:
            try:
                process = subprocess.Popen(
                    part.command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                return 1, str(error)
            try:
                return process.wait(limit_s), ""
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: what it left running would share the next one's GPU."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:_MOST_CHARACTERS] if lines else ""
