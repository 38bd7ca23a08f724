"""Points of the map, and how what a camera sees of them depends on its pose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NEAREST = 1e-3
"""Depth, as a share of a point's distance from where it was first seen, below which it counts as
behind the camera."""


@dataclass
class Points:
    """L points of the map in order of their numbers.

    A point is described by its direction and inverse distance from where it was first seen
    (Civera, Davison, Montiel, "Inverse depth parametrization for monocular SLAM", T-RO 2008), so
    that one without parallax is as linear as any other.

    Attributes:
        ids: (L,) increasing numbers of their tracks.
        origins: (L, 3) centres in the map from which the points are described.
        directions: (L, 3) of the points from there, unit length.
        inverse_distance: (L,) one over the distance, positive.
        sigma: (L,) standard deviation of the inverse distance, the poses given.
        prior: (L,) inverse distance that is expected without parallax.
        prior_sigma: (L,) its standard deviation; infinite where nothing is expected.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    origins: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    directions: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    inverse_distance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    sigma: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    prior: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    prior_sigma: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.ids)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Where they are in the map, (L, 3)."""
        return self.origins + self.directions / self.inverse_distance[:, None]

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the indices of those of some numbers that are points, and which these are."""
        if len(self.ids) == 0:
            return np.empty(0, np.int64), np.zeros(len(ids), bool)
        index = np.searchsorted(self.ids, ids).clip(0, len(self.ids) - 1)
        found = self.ids[index] == ids
        return index[found], found

    def take(self, index: NDArray) -> Points:
        """Return some of the points."""
        return Points(**{name: values[index] for name, values in self.__dict__.items()})

    def measure(self, measured: MeasuredPoints) -> None:
        """Take distances, in the map's unit, from where the points were first seen."""
        index, found = self.find(measured.ids)
        for name in ("inverse_distance", "prior"):
            getattr(self, name)[index] = measured.inverse_distance[found]
        for name in ("sigma", "prior_sigma"):
            getattr(self, name)[index] = measured.sigma[found]

    def merged(self, other: Points) -> Points:
        """Return these points and others, in order."""
        both = {
            name: np.concatenate([values, getattr(other, name)])
            for name, values in self.__dict__.items()
        }
        return Points(**both).take(np.argsort(both["ids"], kind="stable"))


@dataclass(frozen=True)
class MeasuredPoints:
    """Distances in metres of points that one view sees, by something else than its own motion.

    Attributes:
        ids: (N,) increasing numbers of their tracks.
        inverse_distance: (N,) per metre, from the view's centre.
        sigma: (N,) standard deviation of it, of each point's own.
        stretch: (N,) the distance by the depth, 1 in the middle of the image and more outwards.
        common: standard deviation, per metre, of the inverse depth, alike for all points.
    """

    ids: NDArray[np.int64]
    inverse_distance: NDArray[np.float64]
    sigma: NDArray[np.float64]
    stretch: NDArray[np.float64]
    common: float

    def take(self, index: NDArray) -> MeasuredPoints:
        """Return some of the points."""
        return MeasuredPoints(
            self.ids[index],
            self.inverse_distance[index],
            self.sigma[index],
            self.stretch[index],
            self.common,
        )


def pose_jacobian(
    rays: NDArray[np.float64], inverse_depth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return d rays / d (rotation, translation) of a camera that moves in its own frame.

    Args:
        rays: (N, 2) x / z and y / z of points.
        inverse_depth: (N,) their 1 / z.

    Returns:
        (N, 2, 6), its transpose in one run of memory: each entry is computed for all points at
        once.
    """
    x, y = rays.T
    result = np.zeros((6, 2, len(x)))
    result[0, 0], result[1, 0], result[2, 0] = -x * y, 1.0 + x * x, -y
    result[0, 1], result[1, 1], result[2, 1] = -1.0 - y * y, x * y, x
    result[3, 0], result[5, 0] = inverse_depth, -x * inverse_depth
    result[4, 1], result[5, 1] = inverse_depth, -y * inverse_depth
    return result.T
