"""What `qvggt benchmark` leaves behind: raw results as JSON, and tables for people."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvggt_core.datasets import Contents
from qvggt_core.protocols import Benchmark, Run
from qvggt_core.protocols.runner import FORMAT_VERSION, write_json
from qvggt_core.util.files import write_atomically
from qvggt_core.util.tables import markdown_table
from qvggt_ros.cli import console

_RESULTS = "results.json"
_TABLE = "table.md"
_MISSING = "missing.txt"
_SCENES = "scenes"
_SHOWN = 5


@dataclass(frozen=True)
class ModelRun:
    """One network and what it did.

    Attributes:
        facts: `name`, `file`, `megabytes`, `sha256`, `parameters` and the file's metadata.
        run: results and failures.
    """

    facts: dict[str, Any]
    run: Run

    @property
    def name(self) -> str:
        """What tables call the network."""
        return str(self.facts["name"])


@dataclass(frozen=True)
class BenchmarkResults:
    """All that a benchmark found.

    Attributes:
        protocol: its name.
        task: the protocol.
        contents: what the data set's directory held.
        models: the networks, in the order of the tables.
    """

    protocol: str
    task: Benchmark
    contents: Contents
    models: tuple[ModelRun, ...]

    def write(self, output: Path) -> None:
        """Write `results.json`, `table.md` and, if files are missing, their list.

        `results.json`: format_version, protocol, settings (all choices of the protocol), absent
        and problems (what the directory lacks of the data set), and per network its facts,
        `summary`, `groups`, and per scene the raw result, the failure or why it is left out.
        """
        write_json(
            output / _RESULTS,
            {
                "format_version": FORMAT_VERSION,
                "protocol": self.protocol,
                "settings": self.task.settings,
                "absent": list(self.contents.absent),
                "problems": [str(problem) for problem in self.contents.problems],
                "models": [
                    {
                        **model.facts,
                        "summary": model.run.summary(self.task),
                        "groups": model.run.groups(self.task),
                        "scenes": model.run.results,
                        "failures": model.run.failures,
                        "excluded": model.run.excluded,
                        "interrupted": model.run.interrupted,
                    }
                    for model in self.models
                ],
            },
        )
        lines = [f"# {self.protocol}", "", *markdown_table(*_head_and_body(self._summary_rows()))]
        lines += ["", "## Per group", "", *markdown_table(*_head_and_body(self._group_rows())), ""]
        write_atomically(output / _TABLE, "\n".join(lines))
        missing = [file for model in self.models for file in model.run.missing]
        missing += [file for problem in self.contents.problems for file in problem.missing]
        (output / _MISSING).unlink(missing_ok=True)
        if missing:
            text = "".join(f"{file}\n" for file in sorted(set(map(str, missing))))
            write_atomically(output / _MISSING, text)

    def show(self, output: Path) -> None:
        """Print the summary, what failed, and which files are in `output`."""
        # One column a network: there are few of them, and a terminal is narrow.
        head, *body = zip(*self._summary_rows(), strict=True)
        console.print_table(head, body, title=self.protocol)
        if self.contents.absent:
            console.note(
                "[yellow]note:[/]",
                f"not the whole benchmark: {len(self.contents.absent)} of its parts are not there "
                f"({_first(self.contents.absent)})",
            )
        for problem in self.contents.problems:
            console.note("[red]failed:[/]", str(problem))
        for model in self.models:
            for scene, reason in model.run.failures.items():
                console.note("[red]failed:[/]", f"{scene} ({model.name}): {reason}")
            if model.run.interrupted:
                console.note(
                    "[yellow]note:[/]", f"{model.name} was interrupted: run it again to go on"
                )
            if model.run.excluded:
                left_out = tuple(model.run.excluded)
                console.note(
                    "[yellow]note:[/]", f"{len(left_out)} scene(s) left out: {_first(left_out)}"
                )
        for file in (_TABLE, _RESULTS, _MISSING):
            if (output / file).exists():
                console.wrote(output / file)

    def _summary_rows(self) -> list[list[str]]:
        rows = [["network", *self._headings(), "scenes", "s / scene"]]
        for model in self.models:
            seconds = [result["seconds"] for result in model.run.results.values()]
            mean = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
            numbers = self._numbers(model.run.summary(self.task))
            rows.append([model.name, *numbers, str(len(seconds)), mean])
        return rows

    def _group_rows(self) -> list[list[str]]:
        rows = [["group", "network", *self._headings()]]
        groups = [(model.name, model.run.groups(self.task)) for model in self.models]
        for group in sorted({group for _, of_model in groups for group in of_model}):
            rows += [
                [group, name, *self._numbers(of_model[group])]
                for name, of_model in groups
                if group in of_model
            ]
        return rows

    def _headings(self) -> list[str]:
        return [
            f"{column.heading} {'↑' if column.higher_is_better else '↓'}"
            for column in self.task.columns
        ]

    def _numbers(self, summary: dict[str, float]) -> list[str]:
        return [
            f"{summary[column.key]:.{column.digits}f}" if column.key in summary else "-"
            for column in self.task.columns
        ]


def scenes_directory(output: Path, model: str) -> Path:
    """Return where the raw results of one network's scenes are kept."""
    return output / _SCENES / model


def remove(output: Path) -> None:
    """Remove what a benchmark wrote there, and nothing else."""
    shutil.rmtree(output / _SCENES, ignore_errors=True)
    for name in (_RESULTS, _TABLE, _MISSING):
        (output / name).unlink(missing_ok=True)


def _head_and_body(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return rows[0], rows[1:]


def _first(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
