"""Results held back until metres and the vertical are known: for a recording, not for a robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame, Reconstruction, Scale, Up
from qvggt_core.stream.gravity import IMU, levelling
from qvggt_core.stream.reconstructor import Reconstructor

_MAX_FRAMES = 400


class DeferredReconstructor:
    """A `Reconstructor` whose segments are in metres from their first frame.

    A live map begins without a scale and gets one on the way, by odometry. Here a segment's
    first results wait until then and come out in metres too. If the scale does not become known
    within 400 frames, or in the segment at all, they come out as they are.

    Attributes:
        sensors: as of the reconstructor.
        losses: as of the reconstructor.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        *,
        hopes_for_metres: bool = True,
        hopes_for_up: bool = False,
    ) -> None:
        """Take over a reconstructor.

        Args:
            reconstructor: gives the results.
            hopes_for_metres: whether anything may give the scale; else nothing waits for it.
            hopes_for_up: whether an IMU may show which way is up; else nothing waits for it.
        """
        self._inner = reconstructor
        self.sensors = reconstructor.sensors
        self.losses = reconstructor.losses
        self._hopes_for_metres = hopes_for_metres
        self._hopes_for_up = hopes_for_up
        self._held: list[Reconstruction] = []
        self._given_up = False
        self._segment = reconstructor.segment

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame of each camera; return what became known, in metres if that is known."""
        return self._released(self._inner.add(frame, *others))

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come, what was held back included."""
        return (*self._released(self._inner.flush()), *self._release())

    def reset(self, reason: str) -> None:
        """Forget all maps, and what was held back of them."""
        self._held = []
        self._inner.reset(reason)

    def set_parameters(self, parameters: Parameters) -> None:
        """Take changed parameters."""
        self._inner.set_parameters(parameters)

    def _released(self, results: tuple[Reconstruction, ...]) -> tuple[Reconstruction, ...]:
        done: list[Reconstruction] = []
        for result in results:
            segment = result.odometry_segment
            segment = result.segment if segment is None else segment
            if segment != self._segment:
                done += self._release()
                self._segment, self._given_up = segment, False
            self._held.append(result)
            if sum(len(held.frames) for held in self._held) > _MAX_FRAMES:
                self._given_up = True
            if self._given_up or not self._is_awaited(result):
                done += self._release()
        return tuple(done)

    def _is_awaited(self, result: Reconstruction) -> bool:
        """Return whether something of a segment is not known yet that may become so."""
        metres = self._hopes_for_metres and result.scale.metres_per_unit is None
        return metres or (self._hopes_for_up and result.up.source != IMU)

    def _release(self) -> tuple[Reconstruction, ...]:
        held, self._held = self._held, []
        known = (each.scale for each in held if each.scale.metres_per_unit is not None)
        scale = next(known, Scale())
        return tuple(_brought_to(each, scale, held[-1].up) for each in held)


def _brought_to(result: Reconstruction, scale: Scale, up: Up) -> Reconstruction:
    """Return a result in a scale, if it has none, and in a map that is upright."""
    frames, factor = result.frames, 1.0
    if result.scale.metres_per_unit is None and scale.metres_per_unit is not None:
        factor = scale.metres_per_unit
        frames = tuple(geometry.scaled(factor) for geometry in frames)
        correction = result.map_from_odometry.copy()
        correction[:3, 3] *= factor
        result = replace(
            result,
            scale=scale,
            position_sigma=factor * result.position_sigma,
            map_from_odometry=correction,
            corrections=None,
        )
    if up.source != result.up.source:
        turn = levelling(up.direction) @ levelling(result.up.direction).T
        upright = transform(turn, np.zeros(3))
        correction = result.map_from_odometry @ inverse(upright)
        if not _is_in_loaded_map(result):
            # Else the map's vertical is its own, and only odometry is turned.
            frames = tuple(geometry.turned(turn) for geometry in frames)
            correction = upright @ correction
        result = replace(result, map_from_odometry=correction, corrections=None)
    return replace(result, frames=frames, up=up)


def _is_in_loaded_map(result: Reconstruction) -> bool:
    is_joined = result.odometry_segment is not None
    return is_joined and result.loops is not None and result.loops.is_in_loaded_map
