"""Results in metres brought to a better scale, without a jump of the pose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import transform
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, Scale
from qvggt_core.stream.gravity import levelling


class Rescaling:
    """Gives results other scales, in the order in which they came.

    As in `MetricScale.place`, a change of the scale begins at the last frame before it: the way
    from there on is longer or shorter, and what was before stays where it is.
    """

    def __init__(self) -> None:
        """Begin a segment: its first camera is the origin, in any scale."""
        self._was, self._is = np.zeros(3), np.zeros(3)
        self._level: NDArray[np.float64] | None = None

    def apply(self, result: Reconstruction, scale: Scale) -> Reconstruction:
        """Return a result, in metres already, in another scale.

        Args:
            result: of this segment, not moved by loops.
            scale: the better one.
        """
        known = result.scale.metres_per_unit
        if known is None or scale.metres_per_unit is None:
            return result
        factor = scale.metres_per_unit / known
        self._turn_to(levelling(result.up.direction))
        shift = self._is - factor * self._was
        frames = tuple(_moved(frame.scaled(factor), shift) for frame in result.frames)
        if frames:
            self._was = result.frames[-1].map_from_camera[:3, 3].copy()
            self._is = frames[-1].map_from_camera[:3, 3].copy()
        sigma = factor * result.position_sigma
        return replace(result, frames=frames, scale=scale, position_sigma=sigma)

    def _turn_to(self, level: NDArray[np.float64]) -> None:
        """Follow a map that was turned upright on the way."""
        if self._level is not None:
            turn = level @ self._level.T
            self._was, self._is = turn @ self._was, turn @ self._is
        self._level = level


def _moved(frame: FrameGeometry, shift: NDArray[np.float64]) -> FrameGeometry:
    return frame.moved(transform(np.eye(3), shift))
