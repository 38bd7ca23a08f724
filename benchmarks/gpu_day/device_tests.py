"""Runs tests on the GPU and writes what became of each as soon as it is known.

    python benchmarks/gpu_day/device_tests.py OUTPUT.json TEST...

Tests that run a kernel under Triton's interpreter are left out: they need no GPU. The exit status
is 0 if none failed and more passed than were skipped: else the device was not seen, and it is 1.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qvggt_core.util.files import write_atomically

_MOST_CHARACTERS = 2000


class Outcomes:
    """A pytest plugin that keeps a file of all outcomes.

    Attributes:
        tests: outcome, seconds and, of those that failed, the end of the message, by test.
    """

    def __init__(self, path: Path) -> None:
        """Start without tests."""
        self.tests: dict[str, dict[str, Any]] = {}
        self._path = path

    @property
    def counts(self) -> Counter[str]:
        """Tests by outcome."""
        return Counter(test["outcome"] for test in self.tests.values())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report of a test's setup, call or teardown."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.failed:
            outcome["message"] = report.longreprtext[-_MOST_CHARACTERS:]
        self.tests[report.nodeid] = outcome
        results = {"counts": self.counts, "tests": self.tests}
        write_atomically(self._path, json.dumps(results, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Run the tests; return the exit status."""
    path, *tests = arguments
    outcomes = Outcomes(Path(path))
    options = ("-q", "-k", "not interpreter", "-p", "no:cacheprovider")
    status = pytest.main([*options, *tests], plugins=[outcomes])
    counts = outcomes.counts
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if status == 0 and counts["passed"] > counts["skipped"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
