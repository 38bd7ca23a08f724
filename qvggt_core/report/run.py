"""The report of one run: pictures, and one page around them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.report.page import data_uri, numbers, painted, photo, ramp, render_page, series
from qvggt_core.report.pictures import draw_pictures, limits
from qvggt_core.report.result import Errors, ResultView
from qvggt_core.results.reconstruction import Samples
from qvggt_core.results.schema import AlignedAccuracy, Numbers

_MAX_POINTS = 220_000
_MAX_CAMERAS = 80
_BINS = 24
_DEPTH_COLORS, _CONFIDENCE_COLORS, _ERROR_COLORS = "turbo_r", "viridis", "magma"


def write_report(directory: Path, title: str | None = None) -> list[Path]:
    """Write `pictures/*.png` and `report.html` into a result's directory; return their paths.

    Args:
        directory: a result, with what an evaluation left in it.
        title: what to call it; the name of its recording if not given.

    Raises:
        RecordingError: it is no result, or a file of it cannot be read.
        EvaluationError: its metrics or trajectory cannot be read.
    """
    result = ResultView.read(directory)
    cloud, samples = result.cloud, result.samples
    truth = None if result.errors is None else result.errors.truth
    pictures = directory / "pictures"
    pictures.mkdir(exist_ok=True)
    drawn = draw_pictures(samples, result.track, cloud, result.metrics.result.unit, truth)
    for name, content in drawn.items():
        (pictures / name).write_bytes(content)
    page = directory / "report.html"
    page.write_text(
        _page(result, cloud, samples, title or result.metrics.recording.name, drawn),
        encoding="utf-8",
    )
    return [*(pictures / name for name in drawn), page]


def _page(
    result: ResultView,
    cloud: Cloud,
    samples: Samples | None,
    title: str,
    pictures: dict[str, bytes],
) -> str:
    metrics, track = result.metrics, result.track
    scene = _scene(cloud, track, samples, result.errors)
    low, high = scene["cloud"]["heights"] if scene["cloud"] else (0.0, 1.0)
    cut = (scene["ceiling"] - low) / max(high - low, 1e-9)
    recording = metrics.recording
    return render_page(
        "run.html",
        {**scene, "charts": _charts(result)},
        title=title,
        brand="qvggt reconstruction",
        subtitle=" · ".join(
            [
                recording.image_topic,
                recording.camera_info_topic or "no camera_info: intrinsics as predicted",
                f"network {metrics.model.get('file', 'unknown')}",
            ]
        ),
        tiles=_tiles(result),
        notes=[_sentence(text) for text in metrics.warnings],
        cloud_caption=_cloud_caption(cloud, scene, metrics.result.unit),
        poster=data_uri(pictures["cloud_behind.png"]),
        has_truth=bool(scene["truth"]),
        cut=f"{min(1.0, max(0.05, cut)):.2f}",
        duration=f"{track.seconds[-1]:.3f}",
        path_caption=_path_caption(result),
        truth_unit="m",
        **_accuracy_tables(result),
        **_frames(samples, result),
        time_caption=str(result.run.get("latency_is", "")),
        time_rows=_time_rows(result.run.get("timings", {})),
        count_rows=_count_rows(result),
        events=[
            *(_sentence(text) for text in metrics.events),
            *(
                f"{count} times: {_sentence(reason)}"
                for reason, count in metrics.result.rejected.items()
            ),
        ],
        network_rows=[
            (f"network's {name.replace('_', ' ')}", str(value))
            for name, value in metrics.model.items()
        ],
        version_rows=[(name, str(value)) for name, value in result.run.get("versions", {}).items()],
        parameters=yaml.safe_dump(result.run.get("parameters", {}), sort_keys=False),
    )


# The scene in three dimensions


def _scene(
    cloud: Cloud, track: Track, samples: Samples | None, errors: Errors | None
) -> dict[str, Any]:
    """Return what the viewer draws: the cloud in 12 bytes a point, the path, some cameras."""
    path = track.positions
    spread = cloud.positions if len(cloud) else path
    low, high = np.percentile(spread, [3, 97], axis=0)
    low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3)
    # Above the camera there is a ceiling at most, and it hides the rest.
    ceiling = float(path[:, 2].max() + 0.15 * (high[2] - low[2]))
    high[2] = min(high[2], ceiling)
    forward = track.matrices[:, :2, 2].mean(axis=0)
    heading = float(np.arctan2(forward[1], forward[0])) if np.linalg.norm(forward) > 1e-3 else 0.0
    chosen = np.unique(np.linspace(0, len(path) - 1, min(len(path), _MAX_CAMERAS)).astype(int))
    return {
        "cloud": _packed(cloud) if len(cloud) else None,
        "path": [numbers(point) for point in path[_some(len(path))]],
        "truth": []
        if errors is None
        else [numbers(p) for p in errors.truth[_some(len(errors.truth))]],
        "cameras": [
            {
                "time": float(track.seconds[index]),
                "position": numbers(track.poses[index][:3, 3]),
                "rotation": numbers(track.poses[index][:3, :3]),
            }
            for index in chosen
        ],
        "cameraSize": 0.028 * radius,
        "frustum": _half_angles(samples),
        "focus": numbers((low + high) / 2),
        "radius": radius,
        "azimuth": heading + np.pi + 0.5,
        "ceiling": ceiling,
    }


def _some(count: int, most: int = 2000) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _half_angles(samples: Samples | None) -> list[float]:
    """Return the tangents of half the angles of view."""
    if samples is None:
        return [0.7, 0.5]
    height, width = samples.depths.shape[1:]
    focal = samples.intrinsics[0]
    return [float(width / 2 / focal[0, 0]), float(height / 2 / focal[1, 1])]


def _packed(cloud: Cloud) -> dict[str, Any]:
    chosen = np.arange(len(cloud))
    if len(cloud) > _MAX_POINTS:
        # The map is sorted by place: every n-th point would leave stripes.
        chosen = np.random.default_rng(0).choice(len(cloud), _MAX_POINTS, replace=False)
    positions = cloud.positions[chosen].astype(np.float64)
    low, high = positions.min(axis=0), positions.max(axis=0)
    size = np.maximum(high - low, 1e-9)
    words = np.zeros((len(positions), 4), dtype="<u2")
    words[:, :3] = np.rint((positions - low) / size * 65535)
    confidence = cloud.confidence[chosen]
    least, most = limits(confidence)
    share = np.clip((confidence - least) / max(most - least, 1e-9), 0.0, 1.0)
    colors = np.column_stack([cloud.colors[chosen], np.rint(255 * np.nan_to_num(share))])
    heights = np.percentile(positions[:, 2], [1, 99])
    return {
        "count": len(positions),
        "low": numbers(low),
        "size": numbers(size),
        "heights": numbers(heights),
        "spacing": _spacing(positions),
        "positions": base64.b64encode(words.tobytes()).decode("ascii"),
        "colors": base64.b64encode(colors.astype(np.uint8).tobytes()).decode("ascii"),
    }


def _spacing(positions: NDArray[np.float64]) -> float:
    """Return the distance to the nearest neighbour that most points keep below."""
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return 1.0
    some = positions[:: max(1, len(positions) // 2000)]
    distances, _ = cKDTree(positions).query(some, k=2)
    return float(np.percentile(distances[:, 1], 80))


# Charts


def _charts(result: ResultView) -> dict[str, Any]:
    unit = result.metrics.result.unit
    track, errors = result.track, result.errors
    seconds, positions = track.seconds, track.positions
    charts: dict[str, Any] = {}
    plan = [series("path", positions[:, 0], positions[:, 1], "c3", time=seconds, ends=True)]
    if errors is not None:
        truth = errors.truth
        plan.insert(
            0,
            series("truth", truth[:, 0], truth[:, 1], "c2", time=errors.seconds, dash=True),
        )
    charts["plan"] = {
        "kind": "plan",
        "x": f"x ({unit})",
        "y": f"y ({unit})",
        "label": "The camera's path seen from above",
        "series": plan,
        "timed": True,
    }
    span = max(float(np.ptp(positions, axis=0).max()) * 0.4, 1e-3)
    for axis, name in enumerate("xyz"):
        lines = [series("path", seconds, positions[:, axis], "c3")]
        if errors is not None:
            lines.insert(0, series("truth", errors.seconds, errors.truth[:, axis], "c2", dash=True))
        # Without a floor to the range, noise of millimetres would look like a climb.
        charts[name] = _line(f"{name} ({unit})", f"{name} over time", lines, floor=span, height=330)
    if errors is not None:
        charts |= _error_charts(errors)
    if result.depth_errors is not None:
        when, values = result.depth_errors
        line = series("AbsRel", when, values, "c1", area=True)
        charts["depth"] = _line("AbsRel", "Depth error over time", [line], zero=True)
    for name, key, label, title in (
        ("latency", "latency_s", "seconds", "Latency over the images"),
        ("memory", "memory_mb", "MB", "Memory over the images"),
    ):
        points = np.array(result.run.get("series", {}).get(key, []), dtype=float).reshape(-1, 2)
        if len(points):
            lines = [series(key.split("_")[0], points[:, 0], points[:, 1], "c5", area=True)]
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


def _error_charts(errors: Errors) -> dict[str, Any]:
    most = float(errors.translation.max())
    edges = np.linspace(0.0, most if most > 0.0 else 1.0, _BINS + 1)
    counts, _ = np.histogram(errors.translation, edges)
    charts: dict[str, Any] = {
        "error": _line(
            "error (m)",
            "Position error along the path",
            [series("position error", errors.seconds, errors.translation, "c1", area=True)],
            zero=True,
        ),
        "turn": _line(
            "error (deg)",
            "Rotation error along the path",
            [series("rotation error", errors.seconds, errors.rotation, "c5", area=True)],
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
            [series("scale", errors.seconds[known], errors.scale_ratio[known], "c4")],
            floor=0.05,
        )
    return charts


# Words and tables


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tiles(result: ResultView) -> list[tuple[str, str]]:
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


def _cloud_caption(cloud: Cloud, scene: dict[str, Any], unit: str) -> str:
    if not scene["cloud"]:
        return "No point was sure enough to be kept."
    shown = scene["cloud"]["count"]
    some = "" if shown == len(cloud) else f", of which {shown:,} are shown"
    where = "metres" if unit == "m" else "units of the network: the scale is unknown"
    return f"{len(cloud):,} points, one per voxel{some}. Lengths are in {where}."


def _path_caption(result: ResultView) -> str:
    frame = "The first camera is the origin, x is its forward, z is up."
    accuracy = result.metrics.accuracy
    if accuracy is None or result.errors is None:
        return frame
    return (
        f"{frame} The dashed line is the truth, {accuracy.truth.source}, brought into the map by "
        f"the inverse of the {accuracy.alignment} alignment of {len(result.errors.seconds)} poses."
    )


def _accuracy_tables(result: ResultView) -> dict[str, Any]:
    accuracy = result.metrics.accuracy
    segment = None
    if accuracy is not None:
        segment = next((s for s in accuracy.segments if s.segment == result.segment), None)
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


def _frames(samples: Samples | None, result: ResultView) -> dict[str, Any]:
    """Return the pictures of the sample frames, row by row, and their legends."""
    metrics, unit = result.metrics, result.metrics.result.unit
    if samples is None:
        return {
            "frames": [],
            "frame_rows": [],
            "ramps": [],
            "depth_rows": [],
            "frames_title": "What the camera saw",
            "frames_caption": "There are no sample frames in this result.",
        }
    truths = samples.truths
    known = truths is not None and bool(np.isfinite(truths).any())
    scale = result.quoted.scale if result.quoted is not None else 1.0
    depths = samples.depths * np.float32(scale) if known else samples.depths
    shown = np.stack([depths, truths]) if known and truths is not None else depths
    low, high = limits(shown)
    least, most = limits(samples.confidences)
    rows = [("image", "image"), ("depth", "depth")]
    sure = bool(np.isfinite(samples.confidences).any())
    ramps = [
        ramp(
            f"depth ({'m' if known else unit})",
            _DEPTH_COLORS,
            f"{low:.1f}",
            f"{high:.1f}",
        )
    ]
    wrong = None
    if known and truths is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            wrong = np.abs(depths - truths) / truths
        rows += [("true depth", "truth"), ("error", "error")]
        ramps.append(ramp("error by true depth", _ERROR_COLORS, "0", "20 % and more"))
    if sure:
        rows.append(("confidence", "confidence"))
        ramps.append(ramp("confidence", _CONFIDENCE_COLORS, f"{least:.1f}", f"{most:.1f}"))
    frames = []
    for index, stamp in enumerate(samples.stamps_ns):
        frame = {
            "time": f"{(int(stamp) - result.track.stamps_ns[0]) * 1e-9:.1f} s",
            "image": photo(samples.images[index]),
            "depth": painted(depths[index], _DEPTH_COLORS, low, high),
            "confidence": painted(samples.confidences[index], _CONFIDENCE_COLORS, least, most),
        }
        if wrong is not None and truths is not None:
            frame["truth"] = painted(truths[index], _DEPTH_COLORS, low, high)
            frame["error"] = painted(wrong[index], _ERROR_COLORS, 0.0, 0.2)
        frames.append(frame)
    depth = metrics.accuracy.depth if metrics.accuracy is not None else None
    return {
        "frames": frames,
        "frame_rows": rows,
        "ramps": ramps,
        "depth_rows": [
            [
                {"none": "nothing", "trajectory": "the trajectory", "median": "medians"}[name],
                f"{found.abs_rel:.4f}",
                f"{found.rmse:.3f}",
                f"{found.delta_1:.1%}",
                f"{found.delta_2:.1%}",
                f"{found.valid:.1%}",
            ]
            for name, found in (depth.alignments.items() if depth is not None else ())
        ],
        "frames_title": (
            "Depth beside the truth" if known else "What the camera saw, and how far it is"
        ),
        "frames_caption": (
            f"{len(frames)} of {metrics.result.published} frames, as the network saw them. Near is "
            "red, far is blue; grey has no depth that can be trusted."
            + (
                " The depth is scaled by the trajectory's alignment, so that errors of scale show."
                if known and result.quoted is not None and unit != "m"
                else ""
            )
        ),
    }


def _time_rows(timings: dict[str, Any]) -> list[tuple[str, str]]:
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


def _count_rows(result: ResultView) -> list[tuple[str, str]]:
    found, coverage = result.metrics.result, result.metrics.coverage
    metres = found.metres_per_unit
    return [
        ("images received", f"{found.received:,}"),
        ("frames with geometry", f"{found.published:,} ({coverage.frames:.1%})"),
        ("images without geometry", f"{coverage.dropped:,}"),
        ("messages refused as unusable", f"{sum(found.rejected.values()):,}"),
        *(
            [
                ("frames that showed nothing new", f"{found.gated:,}"),
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
    ]
