"""The words and the numbers of a run's page: tiles, captions and rows of tables."""

from __future__ import annotations

from typing import Any

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.results.result import Result
from qvggt_core.results.schema import AlignedAccuracy, Numbers


def sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def tiles(result: Result) -> list[tuple[str, str]]:
    """Return value and name of the large numbers."""
    metrics = result.metrics
    timings = result.run.get("timings", {})
    unit = metrics.result.unit
    tiles = [(f"{metrics.result.published:,}", "frames with geometry")]
    if result.quoted is not None:
        tiles.append((_metres(result.quoted.translation.rmse), "position error (ATE rmse)"))
        if result.path_error is not None:
            tiles.append((f"{result.path_error:.1%}", "of the path's length"))
        tiles.append((f"{result.quoted.rotation_deg.rmse:.1f}°", "rotation error (rmse)"))
    if result.depth is not None:
        scaled = "" if unit == "m" else ", scaled by medians"
        tiles.append((f"{result.depth.abs_rel:.1%}", f"depth error (AbsRel{scaled})"))
        tiles.append((f"{result.depth.delta_1:.1%}", "of the depth within a factor of 1.25"))
    tiles.append((f"{result.track.length:.2f} {unit}", "length of the path"))
    if "frames_per_second" in timings:
        tiles.append((f"{timings['frames_per_second']:.1f}/s", "images processed"))
    if len(tiles) < 6 and "peak_memory_mb" in timings:
        tiles.append((f"{timings['peak_memory_mb']:,.0f} MB", "peak memory"))
    return tiles


def _metres(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e3:.2g} mm"
    return f"{value * 100:.1f} cm" if value < 1.0 else f"{value:.2f} m"


def cloud_caption(cloud: Cloud, scene: dict[str, Any], unit: str) -> str:
    """Return the sentences below the cloud."""
    if not scene["cloud"]:
        return "No point was sure enough to be kept."
    shown = scene["cloud"]["count"]
    some = "" if shown == len(cloud) else f", of which {shown:,} are shown"
    where = "metres" if unit == "m" else "units of the network: the scale is unknown"
    return f"{len(cloud):,} points, one per voxel{some}. Lengths are in {where}."


def path_caption(result: Result) -> str:
    """Return the sentences below the path."""
    frame = "The first camera is the origin, x is its forward, z is up."
    accuracy = result.metrics.accuracy
    if accuracy is None or result.errors is None:
        return frame
    return (
        f"{frame} The dashed line is the truth, {accuracy.truth.source}, brought into the map by "
        f"the inverse of the {accuracy.alignment} alignment of {len(result.errors.stamps_ns)} "
        "poses."
    )


def accuracy_tables(result: Result) -> dict[str, Any]:
    """Return the tables of errors and their captions."""
    accuracy, segment = result.metrics.accuracy, result.accuracy
    if accuracy is None or segment is None or result.quoted is None:
        return {"accuracy_rows": [], "relative_rows": [], "problems": [], "error_caption": ""}
    offset = (
        f", the truth's clock moved by {accuracy.clock_offset_s:.4f} s "
        f"({accuracy.clock_offset_source})"
        if accuracy.clock_offset_s
        else ""
    )
    moved = ", moved to the camera by TF" if accuracy.truth.moved_to_camera else ""
    return {
        "accuracy_rows": [
            {"quoted": name == accuracy.alignment, "cells": _accuracy_cells(name, found)}
            for name, found in segment.alignments.items()
        ],
        "relative_rows": [
            [
                _span(relative.span, relative.delta),
                f"{relative.pairs:,}",
                f"{relative.translation.rmse:.4f}",
                f"{relative.translation.median:.4f}",
                f"{relative.rotation_deg.rmse:.3f}",
                f"{relative.rotation_deg.median:.3f}",
            ]
            for relative in result.quoted.relative
        ],
        "problems": [*accuracy.problems, *segment.problems],
        "error_caption": (
            f"{segment.compared} poses against {accuracy.truth.source}{moved}, matched within "
            f"{accuracy.tolerance_s:g} s{offset}. The curves are after the {accuracy.alignment} "
            "alignment, which is printed bold."
        ),
    }


def _accuracy_cells(name: str, found: AlignedAccuracy) -> list[str]:
    translation: Numbers = found.translation
    return [
        name,
        f"{found.scale:.4g}",
        f"{translation.rmse:.4f}",
        f"{translation.median:.4f}",
        f"{translation.maximum:.4f}",
        f"{found.rotation_deg.rmse:.2f}",
    ]


def _span(span: str, delta: float) -> str:
    if span == "frames":
        return "one frame" if delta == 1 else f"{delta:g} frames"
    return f"{delta:g} m of the path" if span == "distance" else f"{delta:g} s"


def time_rows(timings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table of times."""
    rows = [
        (name.removesuffix("_s").replace("_", " "), f"{seconds:.2f} s")
        for name, seconds in {
            **timings.get("steps", {}),
            "read_write_and_rest_s": timings.get("read_write_and_rest_s"),
            "reconstruction_s": timings.get("reconstruction_s"),
        }.items()
        if seconds is not None
    ]
    if latency := timings.get("latency_s"):
        rows.append(
            (
                "latency, median and 95 %",
                f"{latency['p50']:.2f} s, {latency['p95']:.2f} s",
            )
        )
    if "peak_memory_mb" in timings:
        rows.append(("peak memory", f"{timings['peak_memory_mb']:,.0f} MB"))
    return rows


def count_rows(result: Result) -> list[tuple[str, str]]:
    """Return the rows of the table of counts."""
    found, coverage = result.metrics.result, result.metrics.coverage
    metres = found.metres_per_unit
    return [
        ("images received", f"{found.received:,}"),
        ("frames with geometry", f"{found.published:,} ({coverage.frames:.1%})"),
        ("images without geometry", f"{coverage.dropped:,}"),
        ("messages refused as unusable", f"{sum(found.rejected.values()):,}"),
        *(
            [
                ("frames dropped without geometry", f"{found.gated:,}"),
                ("keyframes", f"{found.keyframes:,}"),
                ("runs of the network", f"{found.windows:,}"),
            ]
            if found.windows
            else []
        ),
        ("map segments", f"{found.segments:,}"),
        ("longest time between poses", f"{coverage.largest_gap_s:.2f} s"),
        ("pixels with depth", f"{coverage.depth:.1%}"),
        (
            "images until geometry, median and most",
            "-"
            if coverage.delay_images_median is None
            else f"{coverage.delay_images_median:g}, {coverage.delay_images_maximum}",
        ),
        ("scale", found.scale_source if metres is None else f"{metres:g} m per unit"),
        *_scale_rows(result),
    ]


def _scale_rows(result: Result) -> list[tuple[str, str]]:
    found = result.metrics.result
    rows: list[tuple[str, str]] = []
    if found.scale_state is not None:
        rows.append(("state of the scale", found.scale_state))
    if found.scale_sigma is not None:
        rows.append(("uncertainty of the scale", f"{found.scale_sigma:.1%}"))
    if found.scale_sources:
        rows.append(("sources of the scale", ", ".join(found.scale_sources)))
    return rows
