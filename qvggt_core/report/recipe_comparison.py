"""Comparisons of quantization recipes as Markdown, as one HTML page with bars, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qvggt_core.evaluate.bootstrap import Interval
from qvggt_core.quantize.comparison_results import RowResult, StudyResult
from qvggt_core.report.page import environment
from qvggt_core.report.plan_transfer import transfer_table
from qvggt_core.util.files import write_atomically
from qvggt_core.util.tables import markdown_table


class _Column(NamedTuple):
    """One metric of the table: heading, format, whether higher is better, factor."""

    name: str
    heading: str
    format: str
    higher: bool
    factor: float = 1.0


_COLUMNS = (
    _Column("auc_30", "AUC@30", ".2f", True),
    _Column("auc_15", "AUC@15", ".2f", True),
    _Column("auc_5", "AUC@5", ".2f", True),
    _Column("auc_3", "AUC@3", ".2f", True),
    _Column("matched", "matched %", ".2f", True, 100.0),
    _Column("matches_moved", "matches moved %", ".2f", False, 100.0),
    _Column("rotation", "rotation °", ".2f", False),
    _Column("translation", "direction °", ".2f", False),
    _Column("abs_rel", "AbsRel", ".4f", False),
    _Column("accuracy", "accuracy cm", ".2f", False, 100.0),
    _Column("completeness", "completeness cm", ".2f", False, 100.0),
    _Column("normal_consistency", "normals", ".4f", True),
    _Column("pose_drift", "pose drift °", ".2f", False),
    _Column("depth_drift", "depth drift %", ".2f", False, 100.0),
)
_BARRED = next(column for column in _COLUMNS if column.name == "pose_drift")
"""Metric of the bars of characters: AUC differs too little for them."""

_BAR_CELLS = 10
_COSTS = ("MB", "bits/weight", "peak MiB", "ms")


FILES = ("comparison.json", "comparison.md", "comparison.html")
"""Names of the files with the tables."""


def write_tables(
    results: Sequence[StudyResult], facts: dict[str, Any], directory: Path
) -> list[Path]:
    """Write `FILES`.

    Args:
        results: the studies.
        facts: about network, protocol and machine, in all three.
        directory: of the files; made if it does not exist.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    raw = {
        **facts,
        "studies": [
            {"study": result.study.model_dump(), "rows": [row.to_dict() for row in result.rows]}
            for result in results
        ],
    }
    contents = (
        json.dumps(raw, indent=1) + "\n",
        markdown(results, facts),
        page(results, facts),
    )
    files = []
    for name, text in zip(FILES, contents, strict=True):
        write_atomically(directory / name, text)
        files.append(directory / name)
    return files


def markdown(results: Sequence[StudyResult], facts: dict[str, Any]) -> str:
    """Return all tables in Markdown, with bars of characters for the pose drift."""
    lines = [f"Network `{facts['network']}`, SHA-256 `{facts['network_sha256'][:16]}…`.", ""]
    for result in results:
        lines += [f"### {result.study.title}", "", *_markdown_rows(result.rows), ""]
        lines += transfer_table(result.rows, facts["protocol"].get("worlds", ()))
    return "\n".join(lines)


def _markdown_rows(rows: Sequence[RowResult]) -> list[str]:
    shown = [c for c in _columns(rows) if c.name not in ("auc_30", _BARRED.name)]
    headings = ["", "bits", "AUC@30 [95 %]", "change [95 %]", _BARRED.heading, ""]
    headings += [c.heading for c in shown]
    headings += [*_COSTS, "sets"]
    longest = max(row.scores[_BARRED.name].value for row in rows) or 1.0
    cells = []
    for row in rows:
        auc, barred = row.scores["auc_30"], row.scores[_BARRED.name].value
        cells.append(
            [
                row.label,
                row.precision,
                f"{auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]",
                _change(row),
                format(barred, _BARRED.format),
                "█" * round(_BAR_CELLS * barred / longest),
                *(format(c.factor * row.scores[c.name].value, c.format) for c in shown),
                *_costs(row),
                str(row.repetitions),
            ]
        )
    return markdown_table(headings, cells)


def _columns(rows: Sequence[RowResult]) -> list[_Column]:
    """Return the columns of which the rows have scores: matches are only some networks'."""
    return [column for column in _COLUMNS if column.name in rows[0].scores]


def _change(row: RowResult) -> str:
    change = row.changes["auc_30"]
    if row.row is None:
        return ""
    return f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def _costs(row: RowResult) -> list[str]:
    cost = row.footprint
    return [
        f"{row.megabytes:.2f}",
        f"{row.bits_per_weight:.2f}",
        "" if cost is None else f"{cost.peak_mib:.0f}",
        "" if cost is None else f"{cost.milliseconds:.0f}",
    ]


def page(results: Sequence[StudyResult], facts: dict[str, Any]) -> str:
    """Return one self-contained HTML page with a table of bars per study."""
    return (
        environment()
        .get_template("recipes.html")
        .render(
            facts=facts,
            details=json.dumps(facts, indent=1),
            tables=[
                {
                    "title": result.study.title,
                    "headings": ["", "bits", *(c.heading for c in _columns(result.rows)), *_COSTS],
                    "rows": _page_rows(result.rows),
                }
                for result in results
            ],
        )
    )


def _page_rows(rows: Sequence[RowResult]) -> list[dict[str, Any]]:
    columns = _columns(rows)
    tops = {c.name: max(row.scores[c.name].high for row in rows) for c in columns}
    return [
        {
            "label": row.label,
            "precision": row.precision,
            "full": row.row is None,
            "bars": [_bar(c, row.scores[c.name], tops[c.name]) for c in columns],
            "costs": _costs(row),
        }
        for row in rows
    ]


def _bar(column: _Column, interval: Interval, top: float) -> dict[str, str]:
    value, low, high = (100 * max(x, 0.0) / (top or 1.0) for x in interval)
    return {
        "kind": "up" if column.higher else "down",
        "text": format(column.factor * interval.value, column.format),
        "span": " to ".join(format(column.factor * x, column.format) for x in interval[1:]),
        "width": f"{value:.1f}",
        "low": f"{low:.1f}",
        "reach": f"{max(high - low, 0.5):.1f}",
    }
