"""Dense depth that agrees with triangulated points: a smooth field of log scale."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BANDWIDTH = 0.035
"""Of the field through points that are followed, as a share of the image's width."""

_CELLS = 2.5
"""Per bandwidth."""

# Log depth of a neighbour differs by this much for reasons that no point explains.
_ROUGHNESS = 0.05
_FEWEST_POINTS = 10
# Points (weighted by closeness) and scatter about them from which a pixel counts as supported.
_MIN_SUPPORT = 1.0
_MAX_SCATTER = 0.1
# A far point pulls on the field where no near one is, by this weight of a point.
_PRIOR = 0.02
# How far around a point something holds, as a share of the image's width.
_REACH = 0.05


@dataclass(frozen=True)
class SeenPoints:
    """Triangulated points in one view.

    Attributes:
        pixels: (N, 2) where they are in the view.
        depth: (N,) along the optical axis, positive, in the map's unit.
        sigma: (N,) standard deviation of its logarithm.
    """

    pixels: NDArray[np.float64]
    depth: NDArray[np.float64]
    sigma: NDArray[np.float64]


@dataclass(frozen=True)
class CorrectedDepth:
    """A depth image in the map's unit, and where points support it.

    Attributes:
        depth: (H, W) float32; NaN where the given depth is used and has none.
        is_supported: (H, W) bool, where points lie near and agree.
        follows_network: whether the given depth explains points that were left out better than
            their neighbours alone do; otherwise the result is made of the points alone.
    """

    depth: NDArray[np.float32]
    is_supported: NDArray[np.bool_]
    follows_network: bool


def correct_depth(
    depth: NDArray[np.float32], points: SeenPoints, bandwidth: float = BANDWIDTH
) -> CorrectedDepth | None:
    """Return the depth image multiplied by a smooth field through the points.

    The field is a kernel regression of the log ratio at the points, with outliers weighted down.
    The same is done on constant depth; of the two, the one counts that predicts each point better
    from the others.

    Args:
        depth: (H, W) as predicted, in any unit; NaN where unknown.
        points: triangulated points that the view sees.
        bandwidth: of the field, as a share of the image's width.

    Returns:
        The corrected depth, or None where there are too few points for any.
    """
    height, width = depth.shape
    columns, rows = np.rint(points.pixels).astype(np.int64).reshape(-1, 2).T
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    inside &= (points.depth > 0) & np.isfinite(points.sigma)
    predicted = np.full(len(inside), np.nan)
    predicted[inside] = depth[rows[inside], columns[inside]]
    if np.count_nonzero(inside) < _FEWEST_POINTS:
        return None
    sigma = points.sigma
    alone = _Field(
        points.pixels[inside], np.log(points.depth[inside]), sigma[inside], depth.shape, bandwidth
    )
    field, base, follows = alone, np.ones_like(depth), False
    known = inside & np.isfinite(predicted) & (predicted > 0)
    if np.count_nonzero(known) >= _FEWEST_POINTS:
        ratio = np.log(points.depth[known] / predicted[known])
        with_network = _Field(points.pixels[known], ratio, sigma[known], depth.shape, bandwidth)
        if with_network.error <= alone.error:
            usable = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))
            field, base, follows = with_network, usable, True
    value, support, scatter = field.dense()
    corrected = base * np.exp(value)
    is_supported = (support >= _MIN_SUPPORT) & (scatter <= _MAX_SCATTER)
    return CorrectedDepth(corrected.astype(np.float32), is_supported, follows)


class _Field:
    """A smooth function through values at pixels, by kernel regression on a coarse grid.

    Attributes:
        error: median error at a point when it is predicted from the others.
    """

    def __init__(
        self,
        pixels: NDArray[np.float64],
        values: NDArray[np.float64],
        sigma: NDArray[np.float64],
        shape: tuple[int, ...],
        bandwidth: float,
    ) -> None:
        self._shape = shape
        cell = bandwidth * shape[1] / _CELLS
        self._size = tuple(max(2, int(np.ceil(side / cell))) for side in shape)
        scale = np.array([self._size[1] / shape[1], self._size[0] / shape[0]])
        places = (pixels + 0.5) * scale - 0.5
        limit = np.array([self._size[1] - 1, self._size[0] - 1])
        self._cells = np.rint(places).astype(np.int64).clip(0, limit)
        self._middle = float(np.median(values))
        self._values = values - self._middle
        weights = 1.0 / (sigma**2 + _ROUGHNESS**2)
        for _ in range(2):
            left_out = self._left_out(weights)
            scale_of_error = max(float(np.median(np.abs(left_out))), _ROUGHNESS)
            robust = 1.0 / (1.0 + (left_out / (2.0 * scale_of_error)) ** 2)
            weights = robust / (sigma**2 + _ROUGHNESS**2)
        self._weights, self._off = weights, self._left_out(weights)
        self.error = float(np.median(np.abs(self._off)))

    def dense(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return per pixel (H, W) the value, the support in points, and the scatter of values."""
        weight = self._spread(self._weights)
        total = weight + _PRIOR / _ROUGHNESS**2
        value = self._middle + self._spread(self._weights * self._values) / total
        square = self._spread(self._weights * np.minimum(np.abs(self._off), 1.0) ** 2)
        scatter = np.sqrt(square / np.maximum(weight, 1e-9))
        support = self._spread(np.ones(len(self._values)))
        height, width = self._shape[:2]
        return tuple(  # type: ignore[return-value]
            cv2.resize(each.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            for each in (value, support, scatter)
        )

    def _left_out(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far each value is from what the others predict there."""
        columns, rows = self._cells.T
        weight = self._spread(weights)[rows, columns] - weights
        product = self._spread(weights * self._values)[rows, columns] - weights * self._values
        return self._values - product / (np.maximum(weight, 0.0) + _PRIOR / _ROUGHNESS**2)

    def _spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over the points of their values, weighted by closeness (1 at a point)."""
        flat = self._cells[:, 1] * self._size[1] + self._cells[:, 0]
        count = self._size[0] * self._size[1]
        grid = np.bincount(flat, values, count).reshape(self._size)
        blurred = cv2.GaussianBlur(grid, (0, 0), _CELLS, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(blurred, np.float64) / _PEAK


def _peak() -> float:
    grid = np.zeros((33, 33))
    grid[16, 16] = 1.0
    return float(cv2.GaussianBlur(grid, (0, 0), _CELLS)[16, 16])


_PEAK = _peak()


def around(pixels: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where in an image (H, W) at least two of some points (N, 2) are near."""
    reach = max(1, round(_REACH * shape[1]))
    count = np.zeros(shape, np.uint16)
    for x, y in np.rint(pixels).astype(int).tolist():
        rows, columns = (
            slice(max(0, y - reach), y + reach + 1),
            slice(max(0, x - reach), x + reach + 1),
        )
        count[rows, columns] += 1
    return count >= 2
