"""The charts of a run, as data for the page's script."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.report.page import numbers, series
from qvggt_core.results.errors import PoseErrors
from qvggt_core.results.result import Result

_BINS = 24
_VERDICT_COLORS = {"confirmed": "c4", "undecided": "c6", "contradicted": "c8"}
# What fits the motion that badly is wrong; how badly does not matter.
_LARGEST_RATIO = 2.0


def charts_of(result: Result) -> dict[str, Any]:
    """Return the charts of a run: the path, errors, latency and memory."""
    charts = {"plan": path_chart("The camera's path seen from above", result), **_axes(result)}
    if result.errors is not None:
        charts |= _error_charts(result.errors, result.seconds(result.errors.stamps_ns))
    depth = [row for row in result.depth_errors if row.scaled_by == "median"]
    if depth:
        when = result.seconds([row.stamp_ns for row in depth])
        line = series("AbsRel", when, [row.errors.abs_rel for row in depth], "c1", area=True)
        charts["depth"] = _line("AbsRel", "Depth error over time", [line], zero=True)
    if result.windows:
        charts["verdicts"] = _verdict_chart(result)
    return {**charts, **_resources(result)}


def path_chart(label: str, result: Result) -> dict[str, Any]:
    """Return a chart of the path from above, beside the truth if there is one."""
    unit = result.metrics.result.unit
    lines = _path_by_verdict(result)
    if result.errors is not None:
        truth, when = result.errors.truth, result.seconds(result.errors.stamps_ns)
        lines.insert(0, series("truth", truth[:, 0], truth[:, 1], "c2", time=when, dash=True))
    return {
        "kind": "plan",
        "x": f"x ({unit})",
        "y": f"y ({unit})",
        "label": label,
        "series": lines,
        "timed": True,
    }


def _path_by_verdict(result: Result) -> list[dict[str, Any]]:
    """Return the path as one line, or as one for each verdict of the images on its windows."""
    track = result.track
    x, y = track.positions[:, 0], track.positions[:, 1]
    stamps, verdicts = np.asarray(track.stamps_ns), np.full(len(x), "", dtype=object)
    for first, last, verdict, _ in result.windows:
        verdicts[(stamps >= first) & (stamps <= last)] = verdict
    shown = [verdict for verdict in _VERDICT_COLORS if (verdicts == verdict).any()]
    if len(shown) < 2:
        return [series("path", x, y, "c3", time=track.seconds, ends=True)]
    lines = [series("path", x, y, "c2", time=track.seconds, ends=True, thin=True)]
    for verdict in shown:
        # With the pose before, so that the lines join.
        here = verdicts == verdict
        here[:-1] |= here[1:]
        line = np.where(here, y, np.nan)
        lines.append(series(verdict, x, line, _VERDICT_COLORS[verdict], time=track.seconds))
    return lines


def _verdict_chart(result: Result) -> dict[str, Any]:
    """Return a chart of how well the network's geometry fits the image motion, by window."""
    lines = []
    for verdict, color in _VERDICT_COLORS.items():
        rows = [
            row
            for first, last, found, ratio in result.windows
            if found == verdict
            for row in ((first, ratio), (last, ratio), (last, np.nan))
        ]
        if rows:
            stamps = np.array([stamp for stamp, _ in rows], np.int64)
            ratios = [min(ratio, _LARGEST_RATIO) for _, ratio in rows]
            lines.append(series(verdict, result.seconds(stamps), ratios, color))
    title = "What the images say of the network's geometry"
    return _line("residual by motion", title, lines, zero=True)


def _axes(result: Result) -> dict[str, Any]:
    unit, errors, positions = result.metrics.result.unit, result.errors, result.track.positions
    span = max(float(np.ptp(positions, axis=0).max()) * 0.4, 1e-3)
    charts = {}
    for axis, name in enumerate("xyz"):
        lines = [series("path", result.track.seconds, positions[:, axis], "c3")]
        if errors is not None:
            when = result.seconds(errors.stamps_ns)
            lines.insert(0, series("truth", when, errors.truth[:, axis], "c2", dash=True))
        # Without a floor to the range, noise of millimetres would look like a climb.
        charts[name] = _line(f"{name} ({unit})", f"{name} over time", lines, floor=span, height=330)
    return charts


def _resources(result: Result) -> dict[str, Any]:
    charts = {}
    for name, key, label, title in (
        ("latency", "latency_s", "seconds", "Latency over the images"),
        ("memory", "memory_mb", "MB", "Memory over the images"),
    ):
        points = np.array(result.run.get("series", {}).get(key, []), dtype=float).reshape(-1, 2)
        if len(points):
            lines = [series(name, points[:, 0], points[:, 1], "c5", area=True)]
            charts[name] = _line(label, title, lines, zero=True) | {
                "x": "image",
                "xUnit": "",
                "timed": False,
            }
    return charts


def _line(label: str, title: str, lines: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "kind": "line",
        "x": "time (s)",
        "xUnit": "s",
        "y": label,
        "label": title,
        "series": lines,
        "timed": True,
        **more,
    }


def _error_charts(errors: PoseErrors, seconds: NDArray[np.float64]) -> dict[str, Any]:
    most = float(errors.translation.max())
    edges = np.linspace(0.0, most if most > 0.0 else 1.0, _BINS + 1)
    counts, _ = np.histogram(errors.translation, edges)
    charts: dict[str, Any] = {
        "error": _line(
            "error (m)",
            "Position error along the path",
            [series("position error", seconds, errors.translation, "c1", area=True)],
            zero=True,
        ),
        "turn": _line(
            "error (deg)",
            "Rotation error along the path",
            [series("rotation error", seconds, errors.rotation, "c5", area=True)],
            zero=True,
        ),
        "histogram": {
            "kind": "bars",
            "x": "position error (m)",
            "y": "poses",
            "label": "Histogram of the position error",
            "edges": numbers(edges),
            "series": [{"name": "poses", "y": counts.tolist(), "x": [], "color": "c1"}],
        },
    }
    known = np.isfinite(errors.scale_ratio)
    if known.any():
        charts["drift"] = _line(
            "local by global scale",
            "Local scale along the path",
            [series("scale", seconds[known], errors.scale_ratio[known], "c4")],
            floor=0.05,
        )
    return charts
