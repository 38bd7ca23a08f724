"""A keyframe on its way to those that look for its place, and where they put its odometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.stream.confirmation import depth_at
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.frame import FrameGeometry
from qvggt_core.stream.image_features import features_of
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.loop_verification import Corners

WORLD = 0
"""Number of a loaded map; segments that begin beside it have others."""

_CORNERS, _WIDTH = 800, 640


@dataclass(frozen=True)
class NewKeyframe:
    """A keyframe on its way into the graph.

    Attributes:
        segment: number of its segment.
        geometry: its pose and depth, before any correction.
        step: (7, 7) covariance of pose and scale against the keyframe before, in its own frame.
        tokens: what the network's encoder made of it.
        image: (H, W, 3) uint8 as it was taken.
        camera: of that image.
        view_pixels: gives where pixels (N, 2) with rays (N, 2) lie in the network's view.
        scale_sigma: standard deviation of the logarithm of the unit where it is the metre;
            infinite where it is the map's own.
        unit: of `geometry`, per unit of the segment's map as the network gave it.
    """

    segment: int
    geometry: FrameGeometry
    step: NDArray[np.float64]
    tokens: Any
    image: NDArray[np.uint8]
    camera: Camera
    view_pixels: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    scale_sigma: float = np.inf
    unit: float = 1.0


@dataclass(frozen=True)
class Placement:
    """Where loops put the newest segment, and all keyframes.

    Attributes:
        segment: the newest segment.
        world: the segment whose world it is in; its own, as long as no loop joins it to another.
        gauge: how often the unit or the axes of odometry had changed by then.
        map_from_odometry: (4, 4) rigid, at the newest keyframe; its unit is that of the map.
        corrections: at all keyframes.
        length: of a unit of the segment's map, where a loaded map has just shown it.
    """

    segment: int
    world: int
    gauge: int
    map_from_odometry: NDArray[np.float64]
    corrections: KeyframeCorrections
    length: LengthRatio | None = None


def corners_of(keyframe: NewKeyframe) -> Corners:
    """Return the corners of a keyframe's image, with depth where it is known."""
    grey = cv2.cvtColor(keyframe.image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if width > _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    features = features_of(np.asarray(grey, np.uint8), _CORNERS)
    scale = np.array([grey.shape[1] / width, grey.shape[0] / height])
    pixels = (features.pixels.astype(np.float64) + 0.5) / scale - 0.5
    rays = keyframe.camera.rays(pixels)
    depth = depth_at(keyframe.geometry.depth, keyframe.view_pixels(pixels, rays))
    focal = float(scale[0] * keyframe.camera.intrinsics[0, 0])
    area = grey.size / focal**2
    return Corners(features, rays, depth.astype(np.float32), focal, area)
