"""Whether plans that were chosen on one kind of world are as good on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qvggt_core.evaluate.bootstrap import bootstrap
from qvggt_core.quantize.comparison_results import RowResult, statistic_of
from qvggt_core.quantize.study import CHANCE
from qvggt_core.util.tables import markdown_table

_METRICS = {
    "matches_moved": ("matches moved %", 100.0),
    "depth_drift": ("depth drift %", 100.0),
    "pose_drift": ("pose drift °", 1.0),
    "auc_30": ("AUC@30", 1.0),
    "auc_3": ("AUC@3", 1.0),
}


def transfer_table(rows: Sequence[RowResult], worlds: Sequence[str]) -> list[str]:
    """Return lines of Markdown that compare plans of a window's own kind, of others, by chance.

    Each line is of the same windows: means, of drifts medians, with 95 % intervals. Where several
    plans could answer for a window (three other kinds, three draws), it is their mean.

    Args:
        rows: of a study.
        worlds: family of each window's world; without a plan for each there is no table.
    """
    chosen = {row.row["plan_world"]: row for row in rows if row.row and row.row["plan_world"]}
    if len(chosen) < 2 or not set(worlds) <= set(chosen):
        return []
    chance = [row for row in rows if row.row and row.row["plan"] == CHANCE]
    kept = [name for name in _METRICS if name in rows[0].windows]
    by_metric = {name: _answers(name, chosen, chance, worlds) for name in kept}
    cells = [
        [label, *(_shown(name, by_metric[name][label]) for name in kept)]
        for label in by_metric[kept[0]]
    ]
    return [*markdown_table(["plan of", *(_METRICS[name][0] for name in kept)], cells), ""]


def _answers(
    name: str, chosen: Mapping[str, RowResult], chance: Sequence[RowResult], worlds: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return a metric of every window by the plan that answers."""
    scores = {world: np.array(row.windows[name]) for world, row in chosen.items()}
    own = np.array([scores[world][number] for number, world in enumerate(worlds)])
    others = (np.sum(list(scores.values()), axis=0) - own) / (len(scores) - 1)
    answers = {"own kind": own, "other kinds": others, "own less other kinds": own - others}
    if chance:
        drawn = np.mean([row.windows[name] for row in chance], axis=0)
        answers |= {"chance": drawn, "other kinds less chance": others - drawn}
    return answers


def _shown(name: str, values: NDArray[np.float64]) -> str:
    value, low, high = (_METRICS[name][1] * each for each in bootstrap(values, statistic_of(name)))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
