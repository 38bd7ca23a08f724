"""How a cloud and a path are framed: what is in the middle, how large it is, where it is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud

_OUTLIERS_PERCENT = 3
_HEADROOM = 0.15


@dataclass(frozen=True)
class Framing:
    """What a view of a scene needs.

    Attributes:
        focus: (3,) middle of cloud and path.
        radius: half of the diagonal about them.
        ceiling: height above which points are left out: above the camera there is a ceiling at
            most, and it hides the rest.
        heading: mean direction of the camera in the plane, radians from x.
    """

    focus: NDArray[np.float64]
    radius: float
    ceiling: float
    heading: float

    @classmethod
    def of(cls, cloud: Cloud, track: Track) -> Framing:
        """Return the framing of a map; a few wild points do not stretch it."""
        path = track.positions
        spread = cloud.positions if len(cloud) else path
        percents = [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT]
        low, high = np.percentile(spread, percents, axis=0)
        low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
        radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3)
        ceiling = float(path[:, 2].max() + _HEADROOM * (high[2] - low[2]))
        high[2] = min(high[2], ceiling)
        forward = track.matrices[:, :2, 2].mean(axis=0)
        known = np.linalg.norm(forward) > 1e-3
        heading = float(np.arctan2(forward[1], forward[0])) if known else 0.0
        return cls((low + high) / 2, radius, ceiling, heading)

    def below_ceiling(self, cloud: Cloud) -> Cloud:
        """Return the points that are not above the camera."""
        return chosen(cloud, cloud.positions[:, 2] <= self.ceiling)


def chosen(cloud: Cloud, which: NDArray) -> Cloud:
    """Return some points of a cloud, by indices or by a mask."""
    return Cloud(cloud.positions[which], cloud.colors[which], cloud.confidence[which])


def thinned(cloud: Cloud, most: int) -> Cloud:
    """Return at most so many points of a map, the same ones each time."""
    if len(cloud) <= most:
        return cloud
    # The map is sorted by place: every n-th point would leave stripes.
    return chosen(cloud, np.random.default_rng(0).choice(len(cloud), most, replace=False))


def spacing(positions: NDArray[np.float64]) -> float:
    """Return the distance to the nearest neighbour that most points keep below; 0 of one point."""
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return 0.0
    some = positions[:: max(1, len(positions) // 2000)]
    distances, _ = cKDTree(positions).query(some, k=2)
    return float(np.percentile(distances[:, 1], 90))
