"""Pictures of a reconstruction, and one self-contained report.html around them."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as PilImage
from scipy.spatial import cKDTree

from qvggt_core.cloud import Cloud
from qvggt_core.stream.frame import FrameGeometry
from qvggt_ros.results import Comparison, Track

# Grey that reads on white and on black: pictures are transparent and follow the page's theme.
_INK = "#7d8590"
_ACCENT = "#2f81f7"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.18,
    "savefig.transparent": True,
    "savefig.dpi": 130,
}
_INVALID = (0.5, 0.5, 0.5, 0.25)
_RENDER_POINTS = 500_000
_RENDER_SIZE = (960, 640)
_FIELD_OF_VIEW = math.radians(50)


@dataclass(frozen=True)
class Report:
    """What a report tells of.

    Attributes:
        title: name of the recording.
        metrics: the content of metrics.json.
        samples: frames to show, spread over the run.
        track: camera poses of the longest segment.
        cloud: map of the same segment.
        comparison: how it compares with a reference, or None without one.
    """

    title: str
    metrics: dict[str, Any]
    samples: Sequence[FrameGeometry]
    track: Track
    cloud: Cloud
    comparison: Comparison | None = None

    @property
    def unit(self) -> str:
        """Unit of length of the map."""
        return str(self.metrics["result"]["unit"])


def write_report(directory: Path, report: Report) -> list[Path]:
    """Write `pictures/*.png` and `report.html` into a directory; return their paths."""
    pictures = directory / "pictures"
    pictures.mkdir(exist_ok=True)
    with mpl.rc_context(_STYLE):
        drawn = {
            "frames.png": _png_of_figure(_frames_figure(report)),
            "path.png": _png_of_figure(_path_figure(report)),
        }
    behind, above = _viewpoints(report.cloud, report.track)
    path = report.track.positions
    drawn["cloud_behind.png"] = _png_of_pixels(render(report.cloud, path, *behind))
    drawn["cloud_above.png"] = _png_of_pixels(render(_below(report.cloud, path), path, *above))
    for name, content in drawn.items():
        (pictures / name).write_bytes(content)
    page = directory / "report.html"
    page.write_text(_page(report, drawn), encoding="utf-8")
    return [*(pictures / name for name in drawn), page]


# Pictures


def _frames_figure(report: Report) -> Figure:
    """Draw input, depth and confidence of the samples, one column each."""
    samples = report.samples
    depths = np.concatenate([frame.depth[np.isfinite(frame.depth)] for frame in samples])
    confidences = np.concatenate([frame.confidence.ravel() for frame in samples])
    confidences = confidences[np.isfinite(confidences)]
    rows = (
        ("depth", "turbo_r", _range(depths), f"depth ({report.unit})"),
        ("confidence", "viridis", _range(confidences), "confidence"),
    )
    height, width = samples[0].depth.shape
    column = 2.1
    figure = Figure(
        figsize=(column * len(samples) + 1.1, 3 * (column * height / width + 0.08) + 0.45),
        layout="constrained",
    )
    axes = figure.subplots(3, len(samples), squeeze=False)
    start = report.track.stamps_ns[0]
    for index, frame in enumerate(samples):
        axes[0, index].imshow(frame.view.image)
        axes[0, index].set_title(f"{(frame.view.stamp_ns - start) * 1e-9:.1f} s", fontsize=10)
    for row, (name, colormap, (low, high), label) in enumerate(rows, start=1):
        colors = mpl.colormaps[colormap].with_extremes(bad=_INVALID)
        for index, frame in enumerate(samples):
            drawn = axes[row, index].imshow(
                getattr(frame, name), cmap=colors, vmin=low, vmax=high, interpolation="nearest"
            )
        bar = figure.colorbar(drawn, ax=list(axes[row]), pad=0.01, aspect=14, label=label)
        bar.outline.set_visible(False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def _range(values: NDArray) -> tuple[float, float]:
    """Return limits that a few wild values do not stretch."""
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [2, 98])
    return float(low), float(max(high, low + 1e-6))


def _path_figure(report: Report) -> Figure:
    """Draw the path from above and its height over time, coloured by time."""
    track, unit = report.track, report.unit
    positions, seconds = track.positions, track.seconds
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    above, height = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    if report.comparison is not None:
        truth = report.comparison.reference_in_map
        above.plot(truth[:, 0], truth[:, 1], color=_INK, lw=1.4, ls="--", label="reference")
    above.plot(positions[:, 0], positions[:, 1], color=_ACCENT, lw=0.8, alpha=0.5)
    drawn = above.scatter(
        positions[:, 0], positions[:, 1], c=seconds, cmap="plasma", s=16, zorder=3
    )
    for index, marker, label in ((0, "o", "start"), (-1, "s", "end")):
        above.scatter(
            *positions[index, :2],
            marker=marker,
            s=90,
            facecolors="none",
            edgecolors=_ACCENT,
            linewidths=1.8,
            zorder=4,
            label=label,
        )
    above.set(title="seen from above", xlabel=f"x ({unit})", ylabel=f"y ({unit})")
    above.set_aspect("equal", adjustable="datalim")
    above.legend(frameon=False, loc="best", labelcolor=_INK)
    bar = figure.colorbar(drawn, ax=above, pad=0.01, label="time (s)")
    bar.outline.set_visible(False)
    height.plot(seconds, positions[:, 2], color=_ACCENT, lw=1.6)
    if report.comparison is not None:
        height.plot(report.comparison.seconds, truth[:, 2], color=_INK, lw=1.4, ls="--")
    height.set(title="height over time", xlabel="time (s)", ylabel=f"z ({unit})")
    height.margins(x=0.02)
    # Without a floor to the range, noise of millimetres would look like a climb.
    span = max(float(np.ptp(positions[:, :2], axis=0).max()) * 0.5, 1e-3)
    middle = float(np.mean([positions[:, 2].min(), positions[:, 2].max()]))
    low, high = height.get_ylim()
    height.set_ylim(min(low, middle - span / 2), max(high, middle + span / 2))
    return figure


def _viewpoints(
    cloud: Cloud, track: Track
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return (eye, focus): from behind and above the flight, and nearly straight from above."""
    path = track.positions
    low, high = np.percentile(cloud.positions if len(cloud) else path, [3, 97], axis=0)
    low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
    focus = (low + high) / 2
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3)
    distance = 0.9 * radius / math.tan(_FIELD_OF_VIEW / 2)
    forward = track.matrices[:, :2, 2].mean(axis=0)
    heading = math.atan2(forward[1], forward[0]) if np.linalg.norm(forward) > 1e-3 else 0.0
    views = []
    for azimuth, elevation in ((heading + 0.4, math.radians(30)), (heading, math.radians(75))):
        back = np.array(
            [
                -math.cos(azimuth) * math.cos(elevation),
                -math.sin(azimuth) * math.cos(elevation),
                math.sin(elevation),
            ]
        )
        views.append((focus + distance * back, focus))
    return views


def _below(cloud: Cloud, path: NDArray[np.float64]) -> Cloud:
    """Return the points that are not above the camera, so that a ceiling hides nothing."""
    if len(cloud) == 0:
        return cloud
    low, high = np.percentile(cloud.positions[:, 2], [3, 97])
    keep = cloud.positions[:, 2] <= path[:, 2].max() + 0.15 * (high - low)
    return Cloud(cloud.positions[keep], cloud.colors[keep], cloud.confidence[keep])


def render(
    cloud: Cloud,
    path: NDArray[np.float64],
    eye: NDArray[np.float64],
    focus: NDArray[np.float64],
    size: tuple[int, int] = _RENDER_SIZE,
) -> NDArray[np.uint8]:
    """Draw a cloud and a path in perspective, by splatting points into a depth buffer.

    Edges of depth are darkened (eye-dome lighting), so that shape shows without normals.

    Args:
        cloud: points in a z-up world.
        path: (N, 3) positions in the same world.
        eye: (3,) where it is seen from.
        focus: (3,) what is in the middle of the picture.
        size: width and height in pixels.

    Returns:
        (height, width, 4) uint8, RGBA; transparent where there is nothing.
    """
    width, height = size
    step = max(1, len(cloud) // _RENDER_POINTS)
    positions = cloud.positions[::step].astype(np.float64)
    rotation = _look_at(eye, focus)
    focal = 0.5 * height / math.tan(_FIELD_OF_VIEW / 2)
    pixels, depths, visible = _projected(positions, eye, rotation, focal, size)
    reach = np.clip(0.7 * _spacing(positions) * focal / depths, 0.8, 7.0)
    image = np.zeros((height, width, 4), dtype=np.uint8)
    depth = np.full((height, width), np.inf)
    _splat(image, depth, pixels, depths, cloud.colors[::step][visible], reach)
    _darken_edges(image, depth)
    # The path is drawn over everything: it is what one looks for.
    line, depths, _ = _projected(_dense(path), eye, rotation, focal, size)
    orange = np.broadcast_to(np.array([255, 140, 26], dtype=np.uint8), (len(line), 3))
    _splat(image, np.full_like(depth, np.inf), line, depths, orange, np.full(len(line), 2.2))
    return image


def _projected(
    points: NDArray[np.float64],
    eye: NDArray[np.float64],
    rotation: NDArray[np.float64],
    focal: float,
    size: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return pixels and depths of the points in front of the eye, and which ones these are."""
    seen = (points - eye) @ rotation.T
    visible = seen[:, 2] > 1e-6
    seen = seen[visible]
    pixels = seen[:, :2] / seen[:, 2:] * focal + np.array(size) / 2
    # Far outside of the picture is outside, however far: the numbers must fit an integer.
    return np.rint(np.clip(pixels, -1e6, 1e6)).astype(np.int64), seen[:, 2], visible


def _look_at(eye: NDArray[np.float64], focus: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation from the world to an optical frame that looks at the focus, upright."""
    forward = (focus - eye) / np.linalg.norm(focus - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _spacing(points: NDArray[np.float64]) -> float:
    """Return the distance to the nearest neighbour that most points keep below."""
    if len(points) < 2:
        return 0.0
    some = points[:: max(1, len(points) // 2000)]
    distances, _ = cKDTree(points).query(some, k=2)
    return float(np.percentile(distances[:, 1], 90))


def _dense(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points on the lines between the positions, close enough to look like lines."""
    if len(path) < 2:
        return path
    share = np.linspace(0.0, 1.0, int(np.clip(200_000 // len(path), 8, 400)))[None, :, None]
    return (path[:-1, None] * (1 - share) + path[1:, None] * share).reshape(-1, 3)


def _splat(
    image: NDArray[np.uint8],
    depth: NDArray[np.float64],
    pixels: NDArray[np.int64],
    depths: NDArray[np.float64],
    colors: NDArray[np.uint8],
    reach: NDArray[np.float64],
) -> None:
    """Draw discs of radius `reach` into a picture and its depth buffer, near over far."""
    height, width = depth.shape
    order = np.argsort(-depths, kind="stable")
    pixels, depths, colors, reach = pixels[order], depths[order], colors[order], reach[order]
    furthest = math.ceil(reach.max(initial=0.0))
    for dy in range(-furthest, furthest + 1):
        for dx in range(-furthest, furthest + 1):
            x, y = pixels[:, 0] + dx, pixels[:, 1] + dy
            drawn = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            drawn &= reach >= math.hypot(dx, dy)
            drawn[drawn] = depths[drawn] < depth[y[drawn], x[drawn]]
            # Sorted far to near: of points that meet in a pixel, the assignment keeps the last.
            depth[y[drawn], x[drawn]] = depths[drawn]
            image[y[drawn], x[drawn], :3] = colors[drawn]
            image[y[drawn], x[drawn], 3] = 255


def _darken_edges(image: NDArray[np.uint8], depth: NDArray[np.float64]) -> None:
    drawn = np.isfinite(depth)
    log_depth = np.log(np.where(drawn, depth, 1.0))
    log_depth[~drawn] = np.nan
    behind = np.zeros(depth.shape)
    for shift in ((0, 2), (0, -2), (2, 0), (-2, 0)):
        step = log_depth - np.roll(log_depth, shift, axis=(0, 1))
        behind += np.clip(np.nan_to_num(step) - 0.005, 0.0, 0.08)
    image[..., :3] = (image[..., :3] * np.exp(-6.0 * behind)[..., None]).astype(np.uint8)


def _png_of_figure(figure: Figure) -> bytes:
    buffer = BytesIO()
    # No metadata: the same reconstruction gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _png_of_pixels(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# The page

_CSS = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --ink: #1f2328; --soft: #59636e;
  --line: #d8dee4; --accent: #0969da; --warn: #9a6700; --warn-card: #fff8c5; --warn-line: #eac54f; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #151b23; --ink: #e6edf3;
  --soft: #9198a1; --line: #30363d; --accent: #4493f8; --warn: #e3b341; --warn-card: #272115;
  --warn-line: #693e00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
header p { margin: 4px 0 0; color: var(--soft); }
h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 18px; }
.brand { font-size: 13px; font-weight: 600; letter-spacing: .08em; text-transform: uppercase;
  color: var(--accent); margin-bottom: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 12px;
  margin: 24px 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 24px; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
section { padding: 20px 24px 24px; margin-top: 16px; }
section > p { margin: 0 0 14px; color: var(--soft); }
img { display: block; width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 16px; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 0 40px; }
figure { margin: 0; }
figure img { border-radius: 8px; background: linear-gradient(var(--page), var(--line)); }
figcaption { margin-top: 6px; color: var(--soft); font-size: 13px; }
.warn { margin: 0 0 8px; padding: 10px 16px; border: 1px solid var(--warn-line);
  border-radius: 10px; background: var(--warn-card); color: var(--ink); }
.warn b { color: var(--warn); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: 6px 0; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
tr:first-child td { border-top: 0; }
td:last-child { text-align: right; padding-left: 16px; }
td:first-child { color: var(--soft); white-space: nowrap; }
ol, ul { margin: 0; padding-left: 20px; }
summary { cursor: pointer; color: var(--accent); margin-top: 14px; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
footer { margin-top: 24px; color: var(--soft); font-size: 13px; }
"""


def _page(report: Report, pictures: dict[str, bytes]) -> str:
    metrics = report.metrics
    result, timings = metrics["result"], metrics["timings"]
    recording = metrics["recording"]
    title = html.escape(report.title)
    warnings = "".join(
        f'<p class="warn"><b>Note</b> &nbsp;{html.escape(_sentence(text))}</p>'
        for text in metrics["warnings"]
    )
    camera = recording["camera_info_topic"] or "no camera_info: intrinsics as predicted"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · qvggt</title>
<style>{_CSS}</style>
</head>
<body><main>
<header>
<div class="brand">qvggt reconstruction</div>
<h1>{title}</h1>
<p>{html.escape(recording["image_topic"])} &nbsp;·&nbsp; {html.escape(camera)}</p>
</header>
<div class="tiles">{_tiles(report)}</div>
{warnings}
<section><h2>What the camera saw, and how far it is</h2>
<p>{len(report.samples)} of {result["published"]} frames, as the network saw them. Near is red, far
is blue; grey has no depth that can be trusted.</p>
{_img(pictures["frames.png"], "input, depth and confidence of sample frames")}</section>
<section><h2>Where the camera went</h2>
<p>{_path_caption(report)}</p>
{_img(pictures["path.png"], "path from above and height over time")}</section>
<section><h2>What was around it</h2>
<p>{len(report.cloud):,} points, one per voxel; the orange line is the camera's path.</p>
<div class="pair">
<figure>{_img(pictures["cloud_behind.png"], "cloud from behind")}
<figcaption>from behind and above the camera</figcaption></figure>
<figure>{_img(pictures["cloud_above.png"], "cloud from above")}
<figcaption>from above; what is higher than the camera is cut away</figcaption></figure>
</div></section>
<section><div class="split">
<div><h2>Where the time went</h2>{_table(_time_rows(timings))}</div>
<div><h2>What was counted</h2>{_table(_count_rows(result))}</div>
</div></section>
{_events(metrics["events"], result["rejected"])}
<section><h2>How it was made</h2>
{_table([*_named(metrics["model"], "network "), *_named(metrics["versions"], "")])}
<details><summary>Parameters</summary><pre>{_parameters(metrics["parameters"])}</pre></details>
</section>
<footer>The messages are in <code>bag/</code>, the numbers in <code>metrics.json</code>,
the poses in <code>trajectory.tum</code>, the points in <code>points.ply</code>.</footer>
</main></body>
</html>
"""


def _tiles(report: Report) -> str:
    result, timings = report.metrics["result"], report.metrics["timings"]
    tiles = [
        (f"{result['published']:,}", "frames with geometry"),
        (f"{timings['frames_per_second']:.1f}", "images per second"),
        (_length(report.track.length, report.unit), "length of the path"),
        (f"{timings['peak_memory_mb']:,.0f} MB", "peak memory"),
    ]
    if report.comparison is not None:
        share = report.comparison.ate / max(report.comparison.reference_length, 1e-9)
        tiles.insert(3, (f"{share:.1%}", "path error (ATE by length)"))
    elif "p95" in timings["latency_s"]:
        tiles.insert(3, (f"{timings['latency_s']['p95']:.2f} s", "image to geometry, 95 %"))
    return "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in tiles
    )


def _length(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}"


def _path_caption(report: Report) -> str:
    frame = "The first camera is the origin, x is its forward, z is up."
    if report.comparison is None:
        return frame
    found = report.comparison
    return (
        f"{frame} Dashed: {html.escape(found.topic)}, aligned by a similarity; the distance to it "
        f"is {found.ate:.4g} (root mean square, in its own unit) on a path of "
        f"{found.reference_length:.4g}."
    )


def _time_rows(timings: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (name.removesuffix("_s").replace("_", " "), f"{seconds:.2f} s")
        for name, seconds in timings["steps"].items()
    ]
    rows.append(("reading, writing, the rest", f"{timings['read_write_and_rest_s']:.2f} s"))
    rows.append(("reconstruction, in all", f"{timings['reconstruction_s']:.2f} s"))
    names = {"p50": "image to geometry, median", "p95": "95 % of images", "max": "slowest image"}
    rows += [(names[key], f"{value:.2f} s") for key, value in timings["latency_s"].items()]
    return rows


def _count_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    metres = result["metres_per_unit"]
    return [
        ("images received", f"{result['received']:,}"),
        ("rejected messages", f"{sum(result['rejected'].values()):,}"),
        ("images without calibration", f"{result['uncalibrated']:,}"),
        ("left out, nothing new in them", f"{result['gated']:,}"),
        ("keyframes", f"{result['keyframes']:,}"),
        ("runs of the network", f"{result['windows']:,}"),
        ("map segments", f"{result['segments']:,}"),
        ("scale", "unknown" if metres is None else f"{metres:g} m ({result['scale_source']})"),
    ]


def _events(events: Sequence[str], rejected: dict[str, int]) -> str:
    lines = [f"{_sentence(reason)} ({count} in all)" for reason, count in rejected.items()]
    lines += [_sentence(event) for event in events if event not in rejected]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<section><h2>What happened on the way</h2><ul>{items}</ul></section>"


def _named(values: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    return [(f"{prefix}{name.replace('_', ' ')}", str(value)) for name, value in values.items()]


def _parameters(parameters: dict[str, Any]) -> str:
    return html.escape("\n".join(f"{name}: {value}" for name, value in parameters.items()))


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _img(content: bytes, alternative: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{encoded}">'
