"""Runs a protocol over scenes, one file of results each; broken scenes are left out."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qvggt_core.datasets import Dataset, group_of
from qvggt_core.errors import DatasetError, EvaluationError, ExcludedSceneError, QvggtError
from qvggt_core.parameters import Parameters
from qvggt_core.protocols.benchmark import Benchmark
from qvggt_core.stream import Network
from qvggt_core.util.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_IDENTITY = "run.json"


@dataclass
class Run:
    """Results of one network on the scenes of a protocol.

    Attributes:
        results: raw result per scene.
        failures: scenes without a result, and why.
        excluded: scenes that the protocol leaves out, and why.
        missing: files that failed scenes lack.
        interrupted: whether it was stopped before all scenes were done.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)
    interrupted: bool = False

    def summary(self, benchmark: Benchmark) -> dict[str, float]:
        """Return the protocol's numbers over all scenes; empty without results."""
        return benchmark.summarise(self.results) if self.results else {}

    def groups(self, benchmark: Benchmark) -> dict[str, dict[str, float]]:
        """Return the protocol's numbers per group of scenes: a category, a room, a sequence."""
        members: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for name, result in self.results.items():
            members[group_of(name)][name] = result
        return {group: benchmark.summarise(results) for group, results in sorted(members.items())}


class SceneResults:
    """A directory of results, one JSON file per scene."""

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Open or make a directory.

        Args:
            directory: of the files.
            identity: all that results depend on.

        Raises:
            EvaluationError: the directory holds results of another identity; names what differs.
        """
        directory.mkdir(parents=True, exist_ok=True)
        _check_identity(directory / _IDENTITY, identity)
        self._directory = directory

    def read(self, scene: str) -> dict[str, Any] | None:
        """Return the result of a scene, None if it has none."""
        return _read_object(self._file(scene))

    def write(self, scene: str, result: Mapping[str, Any]) -> None:
        """Write the result of a scene, whole or not at all."""
        write_json(self._file(scene), result)

    def _file(self, scene: str) -> Path:
        return self._directory / f"{quote(scene, safe='')}.json"


def run_scenes(
    benchmark: Benchmark,
    dataset: Dataset,
    names: tuple[str, ...],
    network: Network,
    parameters: Parameters,
    store: SceneResults,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Judge those scenes that have no results in the store yet.

    Args:
        benchmark: the protocol.
        dataset: where scenes come from.
        names: scenes to judge.
        network: what is judged.
        parameters: of the stream, for protocols that stream.
        store: of results.
        progress: called with the scenes done and the scenes in all.
        stop: called between scenes; true ends the run.
    """
    run = Run()
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        if stop():
            run.interrupted = True
            break
        stored = store.read(name)
        if stored is not None:
            run.results[name] = stored
            continue
        try:
            result = benchmark.judge(dataset.load(name), network, parameters)
            store.write(name, result)
        except ExcludedSceneError as reason:
            run.excluded[name] = str(reason)
        except QvggtError as error:
            run.failures[name] = str(error)
            if isinstance(error, DatasetError):
                run.missing += error.missing
        except Exception as error:
            # No error of a broken file may end the run: the other scenes are judged.
            logger.debug("scene %s failed", name, exc_info=True)
            run.failures[name] = f"{type(error).__name__}: {error}"
        else:
            run.results[name] = result
    else:
        if progress is not None:
            progress(len(names), len(names))
    return run


def read_identity(directory: Path) -> dict[str, Any]:
    """Return what the results in a directory depend on; empty if there are none."""
    return _read_object(directory / _IDENTITY) or {}


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text)


def _read_object(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.warning("%s cannot be read and is made again", file)
        return None
    return content if isinstance(content, dict) else None


def _check_identity(file: Path, identity: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps({"format_version": FORMAT_VERSION, **identity}))
    if not file.exists():
        write_json(file, wanted)
        return
    found = read_identity(file.parent)
    if found == wanted:
        return
    differing = ", ".join(
        f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    )
    raise EvaluationError(
        f"{file.parent} holds results of another run ({differing}): choose another output, or ask "
        "to overwrite it"
    )
