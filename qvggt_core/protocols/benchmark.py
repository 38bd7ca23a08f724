"""The interface of a protocol: open a data set, judge a scene, summarise the scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qvggt_core.datasets import Dataset, PosedScene
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Network


@dataclass(frozen=True)
class Column:
    """A number of the summary, as tables show it.

    Attributes:
        key: in the summary.
        heading: of the column, with the unit.
        digits: after the point.
        higher_is_better: which way is good.
    """

    key: str
    heading: str
    digits: int
    higher_is_better: bool


class Benchmark(Protocol):
    """A protocol: a data set, a way to judge a scene, and a way to sum scenes up."""

    @property
    def columns(self) -> Sequence[Column]:
        """The numbers of the summary."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All choices that results depend on, as plain data."""
        ...

    def open(self, root: Path) -> Dataset:
        """Return the data set in a directory."""
        ...

    def judge(self, scene: PosedScene, network: Network, parameters: Parameters) -> dict[str, Any]:
        """Return the raw result of one scene, as plain data; equal input gives equal results.

        The entry "seconds" alone differs from run to run.

        Raises:
            QvggtError: the scene cannot be judged, and why.
        """
        ...

    def summarise(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Return the columns' numbers over scenes, which are at least one."""
        ...


def mean_over_scenes(
    columns: Sequence[Column], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Return the mean of each column's number over scenes, which are at least one."""
    return {
        column.key: float(np.mean([result[column.key] for result in results.values()]))
        for column in columns
    }
