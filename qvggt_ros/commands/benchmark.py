"""`qvggt benchmark`: the papers' protocols on data sets in their makers' layouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qvggt_ros import console
from qvggt_ros.commands.parameters import read_parameters

if TYPE_CHECKING:
    from qvggt_core.evaluate.datasets import Contents
    from qvggt_core.evaluate.protocols import Benchmark, Run

_RESULTS = "results.json"
_TABLE = "table.md"
_MISSING = "missing.txt"
_SCENES = "scenes"
_SHOWN = 5


def benchmark(
    protocol: Annotated[
        str,
        typer.Argument(help="co3d, re10k, 7scenes, nrgbd, tum or euroc; see docs/evaluation.md."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Directory that holds the data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")],
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Network; may be repeated. The one that ships if not given."),
    ] = None,
    params: Annotated[
        Path | None, typer.Option(help="Parameter file, as config/reconstruct.yaml.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One parameter; may be repeated."),
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(help="Only scenes whose name begins so; may be repeated."),
    ] = None,
    scene_list: Annotated[
        Path | None, typer.Option(help="File with the names of the scenes to judge, one a line.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="co3d, re10k: frames a scene.")] = None,
    seed: Annotated[int | None, typer.Option(help="co3d, re10k: of the draw of frames.")] = None,
    every: Annotated[
        int | None, typer.Option(help="7scenes, nrgbd, tum, euroc: take every n-th frame.")
    ] = None,
    points: Annotated[
        str | None, typer.Option(help="7scenes, nrgbd: depth (and cameras) or head.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Forget former results there.")] = False,
) -> None:
    """Run a paper's protocol; run it again to go on where it stopped."""
    from qvggt_core.evaluate.protocols import make_benchmark

    task = make_benchmark(protocol, frames=frames, seed=seed, every=every, points=points)
    with console.err.status(f"looking at {data}"):
        dataset = task.open(data)
        contents = dataset.contents()
        names = _chosen(contents, scene or [], scene_list)
    if overwrite:
        _forget(output)
    runs: dict[str, tuple[dict[str, Any], Run]] = {}
    with console.stop_on_interrupt() as stop:
        for path, name in _named(models or []).items():
            parameters = read_parameters(params, settings or [], path)
            from qvggt_core.evaluate.protocols import run_scenes
            from qvggt_core.model import read_checkpoint
            from qvggt_ros.network import load_network

            with console.err.status(f"loading {path or 'the network that ships'}"):
                loaded = load_network(parameters, with_points=points == "head")
                file = Path(loaded.parameters.checkpoint)
                facts = {
                    "name": name or file.stem,
                    **loaded.facts,
                    "sha256": read_checkpoint(file).sha256(),
                    "parameters": loaded.parameters.model_dump(exclude={"checkpoint"}),
                }
            identity = {
                "protocol": protocol,
                "settings": task.settings,
                "data": str(data.resolve()),
                "model": facts["sha256"],
                "parameters": facts["parameters"],
            }
            with console.progress(f"{protocol}, {facts['name']}", "scenes") as progress:
                run = run_scenes(
                    task,
                    dataset,
                    names,
                    loaded.network,
                    loaded.parameters,
                    output / _SCENES / facts["name"],
                    identity,
                    progress=progress,
                    stop=stop,
                )
            runs[facts["name"]] = (facts, run)
            if run.interrupted:
                break
    _write(output, protocol, task, contents, runs)
    _print(output, protocol, task, contents, runs)
    if any(run.interrupted for _, run in runs.values()):
        raise typer.Exit(console.EXIT_INTERRUPTED)
    if contents.problems or any(run.failures for _, run in runs.values()):
        raise typer.Exit(console.EXIT_ERROR)


def _chosen(contents: Contents, prefixes: list[str], scene_list: Path | None) -> tuple[str, ...]:
    from qvggt_core.errors import DatasetError, ParameterError

    names = contents.scenes
    if scene_list is not None:
        try:
            wanted = set(scene_list.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise ParameterError(f"cannot read the list of scenes {scene_list}: {error}") from error
        unknown = sorted(wanted - set(names))
        if unknown:
            raise DatasetError(
                f"{len(unknown)} of the {len(wanted)} scenes in {scene_list} are not there: "
                f"{', '.join(unknown[:_SHOWN])}"
            )
        names = tuple(name for name in names if name in wanted)
    if prefixes:
        names = tuple(name for name in names if name.startswith(tuple(prefixes)))
    if not names:
        found = ", ".join(contents.scenes[:_SHOWN]) or "none"
        reasons = "".join(f"; {problem}" for problem in contents.problems[:_SHOWN])
        raise DatasetError(
            f"no scene is left to judge; scenes found: {len(contents.scenes)} ({found}){reasons}"
        )
    return names


def _named(models: list[Path]) -> dict[Path | None, str | None]:
    """Return a name per file; files of one name are told apart by their directories."""
    if not models:
        return {None: None}
    stems = [path.stem for path in models]
    return {
        path: path.stem
        if stems.count(path.stem) == 1
        else f"{path.absolute().parent.name}-{path.stem}"
        for path in models
    }


def _forget(output: Path) -> None:
    """Remove what this command wrote, and nothing else."""
    shutil.rmtree(output / _SCENES, ignore_errors=True)
    for name in (_RESULTS, _TABLE, _MISSING):
        (output / name).unlink(missing_ok=True)


def _write(
    output: Path,
    protocol: str,
    task: Benchmark,
    contents: Contents,
    runs: dict[str, tuple[dict[str, Any], Run]],
) -> None:
    from qvggt_core.evaluate.protocols.runner import FORMAT_VERSION, write_json

    write_json(
        output / _RESULTS,
        {
            "format_version": FORMAT_VERSION,
            "protocol": protocol,
            "settings": task.settings,
            "absent": list(contents.absent),
            "problems": [str(problem) for problem in contents.problems],
            "models": [
                {
                    **facts,
                    "summary": run.summary(task),
                    "groups": run.groups(task),
                    "scenes": run.results,
                    "failures": run.failures,
                    "excluded": run.excluded,
                }
                for facts, run in runs.values()
            ],
        },
    )
    lines = [f"# {protocol}", "", *_markdown(_summary_rows(task, runs)), ""]
    lines += ["## Per group", "", *_markdown(_group_rows(task, runs)), ""]
    (output / _TABLE).write_text("\n".join(lines), encoding="utf-8")
    missing = sorted({str(file) for _, run in runs.values() for file in run.missing})
    missing += sorted({str(file) for problem in contents.problems for file in problem.missing})
    (output / _MISSING).unlink(missing_ok=True)
    if missing:
        (output / _MISSING).write_text("\n".join(missing) + "\n", encoding="utf-8")


def _summary_rows(task: Benchmark, runs: dict[str, tuple[dict[str, Any], Run]]) -> list[list[str]]:
    rows = [["network", *(column.heading for column in task.columns), "scenes", "s / scene"]]
    for name, (_, run) in runs.items():
        seconds = [result["seconds"] for result in run.results.values()]
        mean = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
        rows.append([name, *_numbers(task, run.summary(task)), str(len(seconds)), mean])
    return rows


def _group_rows(task: Benchmark, runs: dict[str, tuple[dict[str, Any], Run]]) -> list[list[str]]:
    rows = [["group", "network", *(column.heading for column in task.columns)]]
    groups = {name: run.groups(task) for name, (_, run) in runs.items()}
    for group in sorted({group for of_run in groups.values() for group in of_run}):
        rows += [
            [group, name, *_numbers(task, of_run[group])]
            for name, of_run in groups.items()
            if group in of_run
        ]
    return rows


def _numbers(task: Benchmark, summary: dict[str, float]) -> list[str]:
    return [
        f"{summary[column.key]:.{column.digits}f}" if column.key in summary else "-"
        for column in task.columns
    ]


def _markdown(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body),
    ]


def _print(
    output: Path,
    protocol: str,
    task: Benchmark,
    contents: Contents,
    runs: dict[str, tuple[dict[str, Any], Run]],
) -> None:
    head, *body = _summary_rows(task, runs)
    table = Table(title=protocol, title_justify="left")
    for index, heading in enumerate(head):
        name = index == 0
        table.add_column(heading, justify="left" if name else "right", overflow="fold")
    for row in body:
        table.add_row(*(escape(cell) for cell in row))
    console.out.print(table)
    if contents.absent:
        _say(
            "note",
            f"not the whole benchmark: {len(contents.absent)} of its parts are not there "
            f"({_first(list(contents.absent))})",
        )
    for problem in contents.problems:
        _say("failed", str(problem))
    for name, (_, run) in runs.items():
        for scene, reason in run.failures.items():
            _say("failed", f"{scene} ({name}): {reason}")
        if run.excluded:
            _say("note", f"{len(run.excluded)} scene(s) left out: {_first(list(run.excluded))}")
    for file in (_TABLE, _RESULTS, _MISSING):
        if (output / file).exists():
            console.out.print(f"wrote {output / file}", soft_wrap=True, highlight=False)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _say(kind: str, text: str) -> None:
    colour = {"failed": "red", "note": "yellow"}[kind]
    console.err.print(f"[{colour}]{kind}:[/] {escape(text)}", soft_wrap=True, highlight=False)
