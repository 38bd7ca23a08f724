"""`qvggt benchmark`: the papers' protocols on data sets in their makers' layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import NetworkOptions, OutputDirectory

if TYPE_CHECKING:
    from qvggt_core.datasets import Contents, Dataset
    from qvggt_core.parameters import Parameters
    from qvggt_core.protocols import Benchmark
    from qvggt_ros.cli.benchmark_results import ModelRun

_SHOWN = 5


@dataclass(frozen=True)
class ProtocolOptions:
    """Choices of a protocol that differ from the paper's, where given."""

    frames: int | None = option(None, "co3d, re10k: frames a scene.")
    seed: int | None = option(None, "co3d, re10k: of the draw of frames.")
    every: int | None = option(None, "7scenes, nrgbd, tum, euroc: take every n-th frame.")
    points: str | None = option(None, "7scenes, nrgbd: depth (and cameras) or head.")


@dataclass(frozen=True)
class SceneOptions:
    """Which scenes are judged."""

    scene: tuple[str, ...] = option(
        (), "Only scenes whose name begins so; may be repeated.", "--scene"
    )
    scene_list: Path | None = option(
        None, "File with the names of the scenes to judge, one a line."
    )

    def chosen(self, contents: Contents) -> tuple[tuple[str, ...], Contents]:
        """Return the names of the scenes, and the contents with what the list names in vain.

        Raises:
            DatasetError: no scene is left.
            ParameterError: the list cannot be read.
        """
        from qvggt_core.errors import DatasetError, ParameterError

        names = contents.scenes
        if self.scene_list is not None:
            try:
                wanted = set(self.scene_list.read_text(encoding="utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                raise ParameterError(
                    f"cannot read the list of scenes {self.scene_list}: {error}"
                ) from error
            unknown = sorted(wanted - set(names))
            if unknown:
                problem = DatasetError(
                    f"{len(unknown)} of the {len(wanted)} scenes in {self.scene_list} are not "
                    f"there: {', '.join(unknown[:_SHOWN])}",
                    tuple(map(Path, unknown)),
                )
                contents = replace(contents, problems=(*contents.problems, problem))
            names = tuple(name for name in names if name in wanted)
        if self.scene:
            names = tuple(name for name in names if name.startswith(self.scene))
        if not names:
            found = ", ".join(contents.scenes[:_SHOWN]) or "none"
            reasons = "".join(f"; {problem}" for problem in contents.problems[:_SHOWN])
            raise DatasetError(
                f"no scene is left to judge; scenes found: {len(contents.scenes)} "
                f"({found}){reasons}"
            )
        return names, contents


def benchmark(
    protocol: Annotated[
        str,
        typer.Argument(help="co3d, re10k, 7scenes, nrgbd, tum or euroc; see docs/benchmarks.md."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Directory that holds the data set.")],
    output: OutputDirectory,
    network: NetworkOptions,
    choices: ProtocolOptions,
    scenes: SceneOptions,
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Network; may be repeated. The one that ships if not given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Forget former results there.")] = False,
) -> None:
    """Run a paper's protocol; run it again to go on where it stopped."""
    from qvggt_core.model import shipped_checkpoint
    from qvggt_core.protocols import make_benchmark
    from qvggt_ros.cli import benchmark_results

    task = make_benchmark(protocol, **vars(choices))
    with console.err.status(f"looking at {data}"):
        dataset = task.open(data)
        names, contents = scenes.chosen(dataset.contents())
    if overwrite:
        benchmark_results.remove(output)
    runs: list[ModelRun] = []
    with console.stop_on_interrupt() as stop:
        for name, path in _named(models or [shipped_checkpoint()]).items():
            judged = _Judged(
                name,
                network.parameters(checkpoint=path),
                benchmark_results.scenes_directory(output, name),
                {"protocol": protocol, "data": str(data.resolve())},
            )
            runs.append(_judge(task, dataset, names, judged, stop))
            if runs[-1].run.interrupted:
                break
    results = benchmark_results.BenchmarkResults(protocol, task, contents, tuple(runs))
    results.write(output)
    results.show(output)
    if runs[-1].run.interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)
    if contents.problems or any(model.run.failures for model in runs):
        raise typer.Exit(console.EXIT_ERROR)


@dataclass(frozen=True)
class _Judged:
    """A network, and where its raw results are kept."""

    name: str
    parameters: Parameters
    directory: Path
    identity: dict[str, str]


def _judge(
    task: Benchmark,
    dataset: Dataset,
    names: tuple[str, ...],
    judged: _Judged,
    stop: Callable[[], bool],
) -> ModelRun:
    """Load a network and let it do all scenes, or those that are not done yet."""
    from qvggt_core.model import read_checkpoint
    from qvggt_core.protocols.runner import SceneResults, read_identity, run_scenes
    from qvggt_core.stream.load_network import load_network
    from qvggt_ros.cli.benchmark_results import ModelRun

    with console.err.status(f"loading {judged.parameters.checkpoint}"):
        before = read_identity(judged.directory).get("parameters")
        loaded = load_network(
            _as_before(judged.parameters, before), with_points=task.settings.get("points") == "head"
        )
        facts = {
            "name": judged.name,
            **loaded.facts,
            "sha256": read_checkpoint(Path(loaded.parameters.checkpoint)).sha256(),
            "parameters": loaded.parameters.model_dump(exclude={"checkpoint"}),
        }
    settings = {"settings": task.settings, "model": facts["sha256"]}
    settings["parameters"] = facts["parameters"]
    store = SceneResults(judged.directory, {**judged.identity, **settings})
    with console.progress(f"{judged.identity['protocol']}, {judged.name}", "scenes") as progress:
        run = run_scenes(
            task,
            dataset,
            names,
            loaded.network,
            loaded.parameters,
            store,
            progress=progress,
            stop=stop,
        )
    return ModelRun(facts, run)


def _as_before(parameters: Parameters, before: object) -> Parameters:
    """Return parameters in which what is left to choose is what a former run chose.

    The fastest arithmetic is measured, and may be measured otherwise when a run is gone on with.
    """
    if not isinstance(before, dict):
        return parameters
    values = parameters.model_dump()
    chosen = {
        name: before[name]
        for name in ("device", "compute_dtype", "threads", "image_width")
        if values[name] in ("auto", 0) and name in before
    }
    return parameters.with_values(**chosen)


def _named(models: list[Path]) -> dict[str, Path]:
    """Return the files by a name each; files of one name are distinguished by their directories."""
    stems = [path.stem for path in models]
    named: dict[str, Path] = {}
    for path in models:
        parent = path.absolute().parent.name
        name = path.stem if stems.count(path.stem) == 1 else f"{parent}-{path.stem}"
        while named.get(name, path) != path:
            name += "_"
        named[name] = path
    return named
