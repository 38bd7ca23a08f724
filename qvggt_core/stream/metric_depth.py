"""Metres from single images: a network whose depth is metric, as a source of the map's scale.

Depth Anything 3 Metric gives depth for a camera of 300 pixels focal length; times focal length
over 300 it is metres (section 3.4 of its paper). Where it sees the sky there is no depth.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.errors import CheckpointError
from qvggt_core.model import VGGT
from qvggt_core.stream.frame import FrameGeometry

FOCAL_LENGTH = 300.0
"""Pixels; the focal length for which the network's depth is in metres."""
SKY_LEVEL = 0.3
"""Output of the sky branch from which a pixel is sky."""

_MIN_VALID_SHARE = 0.05
_MAX_SPREAD = 1.5
"""Ratio of the 75th to the 25th percentile of a view's own ratios from which it is not used."""


_AT_ONCE = 3
# At a segment's beginning images are so many times as close as the period has them, until the
# scale is known to so much (logarithm, noise alone); later a little closer where noise is more.
_FIRST, _AT_FIRST, _KNOWN = 24, 20.0, 0.01
_OFTEN, _UNCERTAIN = 5.0, 0.015
# The rest of the time is the stream's.
_MOST_OF_TIME = 1.0 / 3.0


@dataclass
class MetricDepthSchedule:
    """When a map segment's images are given to the network: as often as its scale needs them.

    One image may be far off, of three the odd one is known, and noise becomes less by more; what
    is left is the same for all images of the network. At first they are a twentieth of the period
    apart, until the scale is known to 1 % or 24 were seen; then the period, or a fifth of it while
    the map may have drifted by more than they show. A slow network gets a third of the time.

    Attributes:
        period_s: seconds between two images of a map whose scale is known.
        run_s: seconds for which a run holds the stream up; 0 where nothing waits for it.
    """

    period_s: float
    run_s: float = 0.0
    _seen: int = 0
    _last_ns: int | None = None
    _is_first: bool = True

    def begin_map(self) -> None:
        """Begin anew: nothing is known of the segment's unit."""
        self._seen, self._last_ns, self._is_first = 0, None, True

    def due(self, stamp_ns: int, available: int, sigma: float = math.inf) -> int:
        """Return how many of a window's new images are to be given to it, at most `available`.

        Args:
            stamp_ns: of the newest.
            available: number of new images.
            sigma: standard deviation of the scale's logarithm by noise alone, all sources
                together; infinite where it is not known.
        """
        self._is_first &= self._seen < _FIRST and sigma > _KNOWN
        # Not where the images give no scale at all: more of them would not either.
        is_uncertain = _UNCERTAIN < sigma < math.inf
        often = _AT_FIRST if self._is_first else _OFTEN if is_uncertain else 1.0
        wait = max(self.period_s / often, self.run_s / _MOST_OF_TIME)
        if self._last_ns is not None and 0 <= stamp_ns - self._last_ns < 1e9 * wait:
            return 0
        count = min(available, _AT_ONCE if self._seen == 0 else 1)
        self._seen, self._last_ns = self._seen + count, stamp_ns
        return count


@dataclass(frozen=True)
class MetricDepth:
    """Depth of one view.

    Attributes:
        metres: (H, W) float32 along the optical axis; NaN where the sky is seen.
        sky: (H, W) bool.
    """

    metres: NDArray[np.float32]
    sky: NDArray[np.bool_]


@dataclass(frozen=True)
class MapUnit:
    """Length of a map's unit from one view.

    Attributes:
        metres: median over the pixels.
        spread: 75th over 25th percentile of the pixels' own ratios, at least 1.
    """

    metres: float
    spread: float

    @property
    def is_trusted(self) -> bool:
        """Whether the two depths differ by little more than a factor."""
        return self.spread <= _MAX_SPREAD


class MetricDepthNetwork:
    """Gives metric depth of single views.

    Attributes:
        is_awaited: whether a live stream waits for its runs, so that their time counts.
    """

    def __init__(self, model: VGGT, device: str = "cpu") -> None:
        """Take a loaded network into use.

        Raises:
            CheckpointError: it is no network for single images.
        """
        if not (model.config.is_single_view and model.config.depth_head):
            raise CheckpointError(
                "scale_network is no metric network for single images: choose da3metric-large"
            )
        self._model = model.eval()
        self._device = torch.device(device)
        self.is_awaited = False
        self._runs_s: deque[float] = deque(maxlen=2)

    @property
    def run_s(self) -> float:
        """Seconds for which a run holds the stream up; 0 where nothing waits for it."""
        # Of two runs: the first one warms up.
        return min(self._runs_s, default=0.0) if self.is_awaited else 0.0

    @torch.inference_mode()
    def depth(self, image: NDArray[np.uint8], intrinsics: NDArray[np.float64]) -> MetricDepth:
        """Return the metric depth of a view.

        Args:
            image: (H, W, 3) RGB of any size; it is resized to whole patches.
            intrinsics: (3, 3) of the image, pixels.
        """
        start = time.perf_counter()
        height, width = image.shape[:2]
        patch = self._model.config.patch_size
        rows, columns = (max(1, round(side / patch)) for side in (height, width))
        size = (columns * patch, rows * patch)
        seen = np.ascontiguousarray(image)
        if size != (width, height):
            seen = np.asarray(cv2.resize(seen, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        focal = 0.5 * (intrinsics[0, 0] * size[0] / width + intrinsics[1, 1] * size[1] / height)
        pixels = torch.from_numpy(seen).to(self._device).permute(2, 0, 1)[None, None].float()
        found = self._model(pixels / 255.0, heads=("depth",))
        assert found.depth is not None
        metres = found.depth[0, 0].float().cpu().numpy() * np.float32(focal / FOCAL_LENGTH)
        sky = np.zeros_like(metres, dtype=bool)
        if found.sky is not None:
            sky = found.sky[0, 0].float().cpu().numpy() >= SKY_LEVEL
        if size != (width, height):
            metres = cv2.resize(metres, (width, height), interpolation=cv2.INTER_NEAREST)
            sky = cv2.resize(sky.astype(np.uint8), (width, height), interpolation=0).astype(bool)
        self._runs_s.append(time.perf_counter() - start)
        return MetricDepth(np.where(sky, np.float32(np.nan), metres), sky)


def map_unit(metric: MetricDepth, geometry: FrameGeometry) -> MapUnit | None:
    """Return how long a map's unit is by one view's depth, None if too few pixels have both.

    Args:
        metric: of the view.
        geometry: of the view, its depth in map units, NaN where it is not trusted.
    """
    both = np.isfinite(metric.metres) & np.isfinite(geometry.depth) & (metric.metres > 0)
    if np.count_nonzero(both) < _MIN_VALID_SHARE * both.size:
        return None
    ratios = np.log(metric.metres[both].astype(np.float64) / geometry.depth[both])
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return MapUnit(float(np.exp(middle)), float(np.exp(high - low)))
