"""The page that compares runs: one table, errors side by side, each path beside its truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from qvggt_core.errors import EvaluationError
from qvggt_core.report.charts import path_chart
from qvggt_core.report.page import render_page, series
from qvggt_core.results import layout
from qvggt_core.results.result import Result
from qvggt_core.util.files import write_atomically

_COLORS = ("c1", "c3", "c4", "c5", "c6", "c7", "c8", "c2")
_MAX_LINES = 16
# The title of a page ends before.
_HEAD_BYTES = 1 << 16


def is_page(path: Path) -> bool:
    """Return whether a file is a page that this package wrote."""
    try:
        with path.open("rb") as file:
            return b" qvggt</title>" in file.read(_HEAD_BYTES)
    except OSError:
        return False


def write_comparison(
    path: Path,
    results: Mapping[Path, Result],
    *,
    title: str = "Comparison",
    failures: Sequence[str] = (),
) -> None:
    """Write a page that compares results.

    Args:
        path: file to write.
        results: the results by their directories.
        title: what to call it.
        failures: sentences about runs that have no result.

    Raises:
        EvaluationError: there is no result.
    """
    if not results:
        raise EvaluationError("there is no result to compare")
    views = list(results.values())
    names = _names(list(results))
    charts: dict[str, Any] = {}
    plans = []
    for index, (name, view) in enumerate(zip(names, views, strict=True)):
        charts[f"plan{index}"] = path_chart(f"The path of {name} seen from above", view) | {
            "timed": False
        }
        plans.append((name, f"plan{index}"))
    compared = [(n, v) for n, v in zip(names, views, strict=True) if v.errors is not None]
    if compared:
        charts |= _error_charts(compared[:_MAX_LINES])
    columns = _columns(views)
    write_atomically(
        path,
        render_page(
            "compare.html",
            {"charts": charts},
            title=title,
            brand="qvggt comparison",
            subtitle=f"{len(views)} runs, {len(compared)} with a ground truth",
            tiles=_tiles(views),
            notes=list(failures),
            heads=["run", *(head for head, *_ in columns)],
            rows=_table(path, list(results), names, columns),
            plans=plans,
            error_caption=(
                "After each run's alignment to its truth."
                + (f" The first {_MAX_LINES} runs." if len(compared) > _MAX_LINES else "")
            ),
        ),
    )


def table(results: Mapping[Path, Result]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of the table, as text."""
    columns = _columns(list(results.values()))
    rows = [
        [
            name,
            *(
                "-" if values[i] is None else format(values[i], form)
                for _, values, form, _ in columns
            ),
        ]
        for i, name in enumerate(_names(list(results)))
    ]
    return ["run", *(head for head, *_ in columns)], rows


def _names(results: Sequence[Path]) -> list[str]:
    names = [directory.resolve().name for directory in results]
    if len(set(names)) < len(names):
        return [str(directory) for directory in results]
    return names


def _columns(views: Sequence[Result]) -> list[tuple[str, list[float | None], str, int]]:
    """Return head, values, format, and whether less (-1) or more (1) is better, or neither (0)."""
    depth = [view.depth for view in views]
    quoted = [view.quoted for view in views]
    timings = [view.run.get("timings", {}) for view in views]
    columns: list[tuple[str, list[float | None], str, int]] = [
        ("frames", [float(view.metrics.result.published) for view in views], ",.0f", 0),
        ("covered", [view.metrics.coverage.frames for view in views], ".1%", 1),
        ("segments", [float(view.metrics.result.segments) for view in views], ".0f", -1),
        ("ATE rmse (m)", [q.translation.rmse if q else None for q in quoted], ".4f", -1),
        ("by length", [view.path_error for view in views], ".2%", -1),
        ("rotation (deg)", [q.rotation_deg.rmse if q else None for q in quoted], ".2f", -1),
        ("scale drift", [_drift(view) for view in views], "+.1%", 0),
        ("AbsRel", [d.abs_rel if d else None for d in depth], ".4f", -1),
        ("δ < 1.25", [d.delta_1 if d else None for d in depth], ".1%", 1),
        ("images/s", [t.get("frames_per_second") for t in timings], ".1f", 1),
        ("peak MB", [t.get("peak_memory_mb") for t in timings], ",.0f", -1),
    ]
    return [column for column in columns if any(value is not None for value in column[1])]


def _drift(view: Result) -> float | None:
    drift = view.accuracy.scale_drift if view.accuracy is not None else None
    return None if drift is None else drift.change


def _table(
    path: Path,
    results: Sequence[Path],
    names: Sequence[str],
    columns: Sequence[tuple[str, list[float | None], str, int]],
) -> list[list[dict[str, Any]]]:
    rows = []
    for index, (directory, name) in enumerate(zip(results, names, strict=True)):
        report = directory / layout.REPORT_FILE
        link = os.path.relpath(report, path.parent) if report.exists() else ""
        row = [
            {
                "text": name,
                "value": name,
                "best": False,
                # As a path, whatever its first letters are: a name may look like a scheme.
                "link": f"./{quote(Path(link).as_posix())}" if link else "",
            }
        ]
        for _, values, form, better in columns:
            value = values[index]
            known = [v * better for v in values if v is not None]
            best = bool(better and value is not None and len(known) > 1 and len(set(known)) > 1)
            row.append(
                {
                    "text": "-" if value is None else format(value, form),
                    "value": "" if value is None else repr(float(value)),
                    "best": best and value is not None and value * better == max(known),
                    "link": "",
                }
            )
        rows.append(row)
    return rows


def _tiles(views: Sequence[Result]) -> list[tuple[str, str]]:
    frames = sum(view.metrics.result.published for view in views)
    tiles = [(f"{len(views)}", "runs"), (f"{frames:,}", "frames with geometry")]
    shares = [view.path_error for view in views if view.path_error is not None]
    if shares:
        tiles.append((f"{np.median(shares):.1%}", "median path error (ATE by length)"))
        tiles.append((f"{max(shares):.1%}", "worst of these"))
    depths = [view.depth.abs_rel for view in views if view.depth is not None]
    if depths:
        tiles.append((f"{np.median(depths):.1%}", "median depth error (AbsRel)"))
    return tiles


def _error_charts(compared: Sequence[tuple[str, Result]]) -> dict[str, Any]:
    over_time, shares = [], []
    for index, (name, view) in enumerate(compared):
        errors = view.errors
        if errors is None:
            continue
        more = {
            "thin": len(compared) > 4,
            "dash": index >= len(_COLORS),
        }
        color = _COLORS[index % len(_COLORS)]
        over_time.append(
            series(name, view.seconds(errors.stamps_ns), errors.translation, color, **more)
        )
        ordered = np.sort(errors.translation)
        below = np.arange(1, len(ordered) + 1) / len(ordered)
        shares.append(series(name, ordered, below, color, **more))
    return {
        "error": {
            "kind": "line",
            "x": "time (s)",
            "xUnit": "s",
            "y": "error (m)",
            "label": "Position error over time, a line per run",
            "zero": True,
            "series": over_time,
        },
        "share": {
            "kind": "line",
            "x": "position error (m)",
            "xUnit": "m",
            "y": "share of poses",
            "label": "Share of poses below an error, a line per run",
            "zero": True,
            "series": shares,
        },
    }
