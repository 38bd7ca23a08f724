"""Comparisons as Markdown, as one HTML page with bars, and as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qvggt_core.evaluate.bootstrap import Interval
from qvggt_core.quantize.comparison import RowResult, StudyResult


class _Column(NamedTuple):
    """One metric of the table: heading, format, whether higher is better, factor."""

    name: str
    heading: str
    form: str
    higher: bool
    factor: float = 1.0


_COLUMNS = (
    _Column("auc_30", "AUC@30", ".2f", True),
    _Column("auc_15", "AUC@15", ".2f", True),
    _Column("auc_5", "AUC@5", ".2f", True),
    _Column("rotation", "rotation °", ".2f", False),
    _Column("translation", "direction °", ".2f", False),
    _Column("abs_rel", "AbsRel", ".4f", False),
    _Column("accuracy", "accuracy cm", ".2f", False, 100.0),
    _Column("completeness", "completeness cm", ".2f", False, 100.0),
    _Column("normal_consistency", "normals", ".4f", True),
    _Column("pose_drift", "pose drift °", ".2f", False),
    _Column("depth_drift", "depth drift %", ".2f", False, 100.0),
)
_BARRED = _COLUMNS[-2]
"""What bars of characters show: AUC differs too little for them."""

_BAR_CELLS = 10


def write_tables(
    results: Sequence[StudyResult], facts: dict[str, Any], directory: Path
) -> list[Path]:
    """Write `comparison.md`, `comparison.html` and `comparison.json`.

    Args:
        results: the studies.
        facts: about network, protocol and machine, for all three.
        directory: where; made if it is not there.

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
    contents = {
        "comparison.md": markdown(results, facts),
        "comparison.html": page(results, facts),
        "comparison.json": json.dumps(raw, indent=1) + "\n",
    }
    files = []
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
        files.append(directory / name)
    return files


def markdown(results: Sequence[StudyResult], facts: dict[str, Any]) -> str:
    """Return all tables in Markdown, with bars of characters for the pose drift."""
    lines = [f"Network `{facts['network']}`, SHA-256 `{facts['network_sha256'][:16]}…`.", ""]
    for result in results:
        lines += [f"### {result.study.title}", "", *_markdown_table(result.rows), ""]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[RowResult]) -> list[str]:
    shown = [c for c in _COLUMNS if c.name not in ("auc_30", _BARRED.name)]
    headings = ["", "bits", "AUC@30 [95 %]", "change [95 %]", _BARRED.heading, ""]
    headings += [c.heading for c in shown]
    headings += ["MB", "bits/weight", "peak MiB", "ms", "sets"]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    longest = max(row.scores[_BARRED.name].value for row in rows) or 1.0
    for row in rows:
        auc, barred = row.scores["auc_30"], row.scores[_BARRED.name].value
        cells = [
            row.label,
            row.precision,
            f"{auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]",
            _change(row),
            format(barred, _BARRED.form),
            "█" * round(_BAR_CELLS * barred / longest),
            *(format(c.factor * row.scores[c.name].value, c.form) for c in shown),
            f"{row.megabytes:.2f}",
            f"{row.bits_per_weight:.2f}",
            "" if row.footprint is None else f"{row.footprint.peak_mib:.0f}",
            "" if row.footprint is None else f"{row.footprint.milliseconds:.0f}",
            str(row.repetitions),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _change(row: RowResult) -> str:
    change = row.changes["auc_30"]
    if row.row is None:
        return ""
    return f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def page(results: Sequence[StudyResult], facts: dict[str, Any]) -> str:
    """Return one self-contained HTML page with a table of bars per study."""
    tables = "\n".join(
        f"<h2>{html.escape(result.study.title)}</h2>\n{_html_table(result.rows)}"
        for result in results
    )
    details = html.escape(json.dumps(facts, indent=1))
    protocol = facts["protocol"]
    lead = (
        f"Network {facts['network']}, {protocol['evaluation_windows']} held-out windows of "
        f"{protocol['evaluation_frames']} frames at {protocol['size']}; calibrated on "
        f"{protocol['calibration_images']} images, {len(protocol['seeds'])} draws. Bars show the "
        "value, whiskers the 95 % interval over windows. Drift is the distance from the "
        "full-precision network's own answers. Sizes are of the file, memory and time of one "
        "window on one thread."
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Quantization recipes compared</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>Quantization recipes compared</h1>
<p>{html.escape(lead)}</p>
{tables}
<details><summary>Network, protocol and machine</summary><pre>{details}</pre></details>
</body></html>
"""


def _html_table(rows: Sequence[RowResult]) -> str:
    heads = ["", "bits", *(c.heading for c in _COLUMNS), "MB", "bits/weight", "peak MiB", "ms"]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = []
    for row in rows:
        cells = [f"<th>{html.escape(row.label)}</th>", f"<td>{html.escape(row.precision)}</td>"]
        for column in _COLUMNS:
            tops = [other.scores[column.name].high for other in rows]
            cells.append(_bar(column, row.scores[column.name], max(tops)))
        cost = row.footprint
        for text in (
            f"{row.megabytes:.2f}",
            f"{row.bits_per_weight:.2f}",
            "" if cost is None else f"{cost.peak_mib:.0f}",
            "" if cost is None else f"{cost.milliseconds:.0f}",
        ):
            cells.append(f"<td class=number>{text}</td>")
        kind = " class=full" if row.row is None else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _bar(column: _Column, interval: Interval, top: float) -> str:
    top = top or 1.0
    text = format(column.factor * interval.value, column.form)
    span = " to ".join(format(column.factor * x, column.form) for x in interval[1:])
    value, low, high = (100 * max(x, 0.0) / top for x in interval)
    kind = "up" if column.higher else "down"
    return (
        f'<td class="bar {kind}" title="95 %: {span}"><span>{text}</span>'
        f'<i><b style="width:{value:.1f}%"></b>'
        f'<u style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></u></i></td>'
    )


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:112rem;padding:0 1rem}
body{color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .6rem}
.wide{overflow-x:auto}table{border-collapse:collapse;white-space:nowrap}
th,td{padding:.3rem .5rem;text-align:left;border-bottom:1px solid #e3e7ee;font-weight:400}
thead th{color:#5b6675;font-size:.85rem}tbody th{font-weight:600}
tr.full{background:#f5f7fa}td.number{text-align:right;font-variant-numeric:tabular-nums}
td.bar{min-width:4.6rem}td.bar span{font-variant-numeric:tabular-nums}
td.bar i{display:block;position:relative;height:.45rem;background:#eef1f5;border-radius:2px}
td.bar b{display:block;height:100%;border-radius:2px;background:#2f7ed8}
td.bar.down b{background:#d9822b}
td.bar u{position:absolute;top:.15rem;height:.15rem;background:#1c2430}
pre{background:#f5f7fa;padding:1rem;overflow-x:auto;font-size:.8rem}
"""
