"""Results held back until more is known of their scale: for a recording, not for a robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Frame, Reconstruction, Scale, Up
from qvggt_core.stream.gravity import IMU, levelling
from qvggt_core.stream.reconstructor import Reconstructor
from qvggt_core.stream.rescaling import Rescaling

_MAX_FRAMES = 400
AHEAD = 8.0
"""What is in metres waits for measurements from so many least distances further on ..."""

# ... and for so many frames at most, whose images and depth are kept in memory.
_MAX_FRAMES_AHEAD = 120


class DeferredReconstructor:
    """A `Reconstructor` whose segments are in metres from their first frame.

    A live map begins without a scale and gets one on the way, by odometry. Here a segment's
    first results wait until then and come out in metres too. If the scale does not become known
    within 400 frames, or in the segment at all, they come out as they are. Once it is known,
    results wait for what is measured further on, and get the scale that both sides show
    (`ScaleHistory`); where loops are looked for, which move the map, they do not.

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
        self._history, self._rescaling = reconstructor.scale_history, Rescaling()

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame of each camera; return what became known, in metres if that is known."""
        return self._released(self._inner.add(frame, *others))

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come, what was held back included."""
        return (*self._released(self._inner.flush()), *self._release_all())

    def reset(self, reason: str) -> None:
        """Forget all maps, and what was held back of them."""
        self._held = []
        self._inner.reset(reason)
        self._history, self._rescaling = self._inner.scale_history, Rescaling()

    def set_parameters(self, parameters: Parameters) -> None:
        """Take changed parameters."""
        self._inner.set_parameters(parameters)

    def _released(self, results: tuple[Reconstruction, ...]) -> tuple[Reconstruction, ...]:
        done: list[Reconstruction] = []
        for result in results:
            segment = result.odometry_segment
            segment = result.segment if segment is None else segment
            if segment != self._segment:
                done += self._release_all()
                self._segment, self._given_up = segment, False
                self._history, self._rescaling = self._inner.scale_history, Rescaling()
            self._held.append(result)
            if self._frames_held > _MAX_FRAMES:
                self._given_up = True
            if self._given_up or not self._is_awaited(result):
                self._bring()
                done += self._release_seen()
        return tuple(done)

    @property
    def _frames_held(self) -> int:
        return sum(len(held.frames) for held in self._held)

    def _is_awaited(self, result: Reconstruction) -> bool:
        """Return whether something of a segment is not known yet that may become so."""
        metres = self._hopes_for_metres and result.scale.metres_per_unit is None
        return metres or (self._hopes_for_up and result.up.source != IMU)

    def _bring(self) -> None:
        """Bring all that is held to metres and upright, as far as that is known."""
        known = (each.scale for each in self._held if each.scale.metres_per_unit is not None)
        scale = next(known, Scale())
        self._held = [_brought_to(each, scale, self._held[-1].up) for each in self._held]

    def _release_all(self) -> list[Reconstruction]:
        if self._held:
            self._bring()
        held, self._held = self._held, []
        return [self._seen_from_both_sides(each) for each in held]

    def _release_seen(self) -> list[Reconstruction]:
        """Return, oldest first, what has been waited for long enough."""
        done = []
        while self._held and not self._waits(self._held[0]):
            done.append(self._seen_from_both_sides(self._held.pop(0)))
        return done

    def _waits(self, result: Reconstruction) -> bool:
        """Return whether measurements are to come that say more of the scale of a result."""
        metres = result.scale.metres_per_unit
        if metres is None or not result.frames or not self._looks_ahead:
            return False
        if self._frames_held > _MAX_FRAMES_AHEAD:
            return False
        return self._history.drifts_since(_middle_ns(result), metres) < AHEAD

    @property
    def _looks_ahead(self) -> bool:
        parameters = self._inner.parameters
        return not (parameters.loop_closure or parameters.metres_per_unit)

    def _seen_from_both_sides(self, result: Reconstruction) -> Reconstruction:
        if not (self._looks_ahead and result.frames):
            return result
        scale = self._history.scale(_middle_ns(result), result.scale)
        return self._rescaling.apply(result, scale)


def _middle_ns(result: Reconstruction) -> int:
    """Return when the middle one of a result's frames was taken, which all have one scale."""
    return result.frames[len(result.frames) // 2].view.stamp_ns


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
