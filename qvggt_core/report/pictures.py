"""Pictures of a reconstruction: its frames, its path and its cloud."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as PilImage

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.report.scene import Framing, spacing
from qvggt_core.results.samples import Samples

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


def draw_pictures(
    samples: Samples | None,
    track: Track,
    cloud: Cloud,
    unit: str,
    truth: NDArray[np.float64] | None = None,
) -> dict[str, bytes]:
    """Return PNG files by name.

    Args:
        samples: frames to show; without them there is no frames.png.
        track: camera poses.
        cloud: map of the same segment.
        unit: unit of length of the map.
        truth: (M, 3) positions of the true path in the map, or None.
    """
    drawn = {}
    with mpl.rc_context(_STYLE):
        if samples is not None:
            drawn["frames.png"] = _png_of_figure(_frames_figure(samples, track, unit))
        drawn["path.png"] = _png_of_figure(_path_figure(track, unit, truth))
    framing, path = Framing.of(cloud, track), track.positions
    behind = _viewpoint(framing, 0.4, math.radians(30))
    above = _viewpoint(framing, 0.0, math.radians(75))
    drawn["cloud_behind.png"] = png_of_pixels(render(cloud, path, behind, framing.focus))
    below = framing.below_ceiling(cloud)
    drawn["cloud_above.png"] = png_of_pixels(render(below, path, above, framing.focus))
    return drawn


def _frames_figure(samples: Samples, track: Track, unit: str) -> Figure:
    """Draw input, depth and confidence of the samples, one column each."""
    rows = (
        (samples.depths, "turbo_r", f"depth ({unit})"),
        (samples.confidences, "viridis", "confidence"),
    )
    height, width = samples.depths.shape[1:]
    column = 2.1
    figure = Figure(
        figsize=(column * len(samples) + 1.1, 3 * (column * height / width + 0.08) + 0.45),
        layout="constrained",
    )
    axes = figure.subplots(3, len(samples), squeeze=False)
    start = track.stamps_ns[0]
    for index, (stamp, image) in enumerate(zip(samples.stamps_ns, samples.images, strict=True)):
        axes[0, index].imshow(image)
        axes[0, index].set_title(f"{(stamp - start) * 1e-9:.1f} s", fontsize=10)
    for row, (values, colormap, label) in enumerate(rows, start=1):
        low, high = limits(values)
        colors = mpl.colormaps[colormap].with_extremes(bad=_INVALID)
        for index, value in enumerate(values):
            drawn = axes[row, index].imshow(
                value, cmap=colors, vmin=low, vmax=high, interpolation="nearest"
            )
        bar = figure.colorbar(drawn, ax=list(axes[row]), pad=0.01, aspect=14, label=label)
        bar.outline.set_visible(False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def limits(values: NDArray) -> tuple[float, float]:
    """Return limits that a few wild values do not stretch."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [2, 98])
    return float(low), float(max(high, low + 1e-6))


def _path_figure(track: Track, unit: str, truth: NDArray[np.float64] | None) -> Figure:
    """Draw the path from above and its height over time, coloured by time."""
    positions, seconds = track.positions, track.seconds
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    above, height = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    if truth is not None:
        above.plot(truth[:, 0], truth[:, 1], color=_INK, lw=1.4, ls="--", label="truth")
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
    height.set(title="height over time", xlabel="time (s)", ylabel=f"z ({unit})")
    height.margins(x=0.02)
    # Without a floor to the range, noise of millimetres would look like a climb.
    span = max(float(np.ptp(positions[:, :2], axis=0).max()) * 0.5, 1e-3)
    middle = float(np.mean([positions[:, 2].min(), positions[:, 2].max()]))
    low, high = height.get_ylim()
    height.set_ylim(min(low, middle - span / 2), max(high, middle + span / 2))
    return figure


def _viewpoint(framing: Framing, turn: float, elevation: float) -> NDArray[np.float64]:
    """Return an eye behind the flight, turned about the focus and raised, in radians."""
    azimuth = framing.heading + turn
    distance = 0.9 * framing.radius / math.tan(_FIELD_OF_VIEW / 2)
    back = [
        -math.cos(azimuth) * math.cos(elevation),
        -math.sin(azimuth) * math.cos(elevation),
        math.sin(elevation),
    ]
    return framing.focus + distance * np.array(back)


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
    reach = np.clip(0.7 * spacing(positions) * focal / depths, 0.8, 7.0)
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


def png_of_pixels(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of (H, W, 3 or 4) uint8."""
    buffer = BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
