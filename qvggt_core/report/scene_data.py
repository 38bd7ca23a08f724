"""The scene of a page in three dimensions, packed for its script."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.report.page import numbers
from qvggt_core.report.pictures import limits
from qvggt_core.report.scene import Framing, spacing, thinned
from qvggt_core.results.result import Result
from qvggt_core.results.samples import Samples
from qvggt_core.util.thinning import spread_indices

_MAX_POINTS = 220_000
_MAX_CAMERAS = 80
_MAX_LINE = 2000


def scene_of(result: Result, cloud: Cloud, samples: Samples | None) -> dict[str, Any]:
    """Return the data of the page's scene: cloud in 12 bytes a point, path, some cameras."""
    track = result.track
    framing = Framing.of(cloud, track)
    truth = np.empty((0, 3)) if result.errors is None else result.errors.truth
    return {
        "cloud": _packed(cloud) if len(cloud) else None,
        "path": _line(track.positions),
        "truth": _line(truth),
        "cameras": [
            {
                "time": float(track.seconds[index]),
                "position": numbers(track.poses[index][:3, 3]),
                "rotation": numbers(track.poses[index][:3, :3]),
            }
            for index in spread_indices(len(track), _MAX_CAMERAS)
        ],
        "cameraSize": 0.028 * framing.radius,
        "frustum": _half_angles(samples),
        "focus": numbers(framing.focus),
        "radius": framing.radius,
        "azimuth": framing.heading + np.pi + 0.5,
        "ceiling": framing.ceiling,
    }


def _line(points: NDArray[np.float64]) -> list[list[float | None]]:
    return [numbers(point) for point in points[spread_indices(len(points), _MAX_LINE)]]


def _half_angles(samples: Samples | None) -> list[float]:
    """Return the tangents of half the angles of view."""
    if samples is None:
        return [0.7, 0.5]
    height, width = samples.depths.shape[1:]
    focal = samples.intrinsics[0]
    return [float(width / 2 / focal[0, 0]), float(height / 2 / focal[1, 1])]


def _packed(cloud: Cloud) -> dict[str, Any]:
    cloud = thinned(cloud, _MAX_POINTS)
    positions = cloud.positions.astype(np.float64)
    low, high = positions.min(axis=0), positions.max(axis=0)
    size = np.maximum(high - low, 1e-9)
    words = np.zeros((len(positions), 4), dtype="<u2")
    words[:, :3] = np.rint((positions - low) / size * 65535)
    confidence = cloud.confidence
    least, most = limits(confidence)
    share = np.clip((confidence - least) / max(most - least, 1e-9), 0.0, 1.0)
    colors = np.column_stack([cloud.colors, np.rint(255 * np.nan_to_num(share))])
    heights = np.percentile(positions[:, 2], [1, 99])
    return {
        "count": len(positions),
        "low": numbers(low),
        "size": numbers(size),
        "heights": numbers(heights),
        "spacing": spacing(positions) or 1.0,
        "positions": base64.b64encode(words.tobytes()).decode("ascii"),
        "colors": base64.b64encode(colors.astype(np.uint8).tobytes()).decode("ascii"),
    }
