"""Results of a long benchmark, named, printed and written as each is known."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint


def parser_of(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of what benchmarks on flights and recordings have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--truth", type=Path, help="another reference of the recordings")
    parser.add_argument("--only", choices=parts, action="append", help="what else is there stays")
    return parser


class ResultTable:
    """Results by name, of the shipped checkpoint, in a file that is whole after each of them."""

    def __init__(self, path: Path | None, *, keeps_others: bool) -> None:
        """Begin a table.

        Args:
            path: of the file; None only prints.
            keeps_others: keep what an existing file holds, where it is not measured anew.
        """
        self._path = path
        self._results: dict[str, Any] = {}
        if keeps_others and path and path.exists():
            self._results = json.loads(path.read_text(encoding="utf-8"))["results"]

    def add(self, name: str, figures: Any) -> None:
        """Print and write a result, plain data."""
        self._results[name] = figures
        print(name, json.dumps(figures), flush=True)
        if self._path:
            write_results(self._path, {"results": self._results}, shipped_checkpoint(), digits=4)
