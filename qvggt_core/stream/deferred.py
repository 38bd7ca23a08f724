"""Results held back until their scale is known, for who has the time: a recording, not a robot."""

from __future__ import annotations

from dataclasses import replace

from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Array64, Frame, Reconstruction, Scale
from qvggt_core.stream.known_lengths import RangeReading
from qvggt_core.stream.reconstructor import Reconstructor

_MAX_FRAMES = 400


class DeferredReconstructor:
    """A `Reconstructor` whose segments are in metres from their first frame.

    A live map begins without a scale and gets one on the way, by odometry. Here a segment's
    first results wait until then and come out in metres too. If the scale does not become known
    within 400 frames, or in the segment at all, they come out as they are.

    Attributes:
        gated: as of the reconstructor.
    """

    def __init__(self, reconstructor: Reconstructor, *, hopes_for_metres: bool = True) -> None:
        """Take over a reconstructor.

        Args:
            reconstructor: gives the results.
            hopes_for_metres: whether anything may give the scale; else nothing is held back.
        """
        self._inner = reconstructor
        self._hopes_for_metres = hopes_for_metres
        self._held: list[Reconstruction] = []
        self._given_up = False
        self._segment = reconstructor.segment

    @property
    def gated(self) -> int:
        """Number of frames that left the window without geometry."""
        return self._inner.gated

    @property
    def withheld(self) -> int:
        """As of the reconstructor."""
        return self._inner.withheld

    @property
    def not_finite(self) -> int:
        """As of the reconstructor."""
        return self._inner.not_finite

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take a frame of each camera; return what became known, in metres if that is known."""
        return self._released(self._inner.add(frame, *others))

    def flush(self) -> tuple[Reconstruction, ...]:
        """Return what is still to come, what was held back included."""
        return (*self._released(self._inner.flush()), *self._release(Scale()))

    def add_odometry(
        self, stamp_ns: int, position: Array64, odom_from_camera: Array64 | None = None
    ) -> None:
        """Take where odometry has the camera; see `Reconstructor.add_odometry`."""
        self._inner.add_odometry(stamp_ns, position, odom_from_camera)

    def add_gps(self, stamp_ns: int, position: Array64, sigma: float) -> None:
        """Take where GPS has the robot; see `Reconstructor.add_gps`."""
        self._inner.add_gps(stamp_ns, position, sigma)

    def add_range(self, reading: RangeReading) -> None:
        """Take a distance along a known axis."""
        self._inner.add_range(reading)

    def set_baseline(self, source: str, metres: float) -> None:
        """Take how far a rig's camera is from its first one."""
        self._inner.set_baseline(source, metres)

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
            if result.segment != self._segment:
                done += self._release(Scale())
                self._segment, self._given_up = result.segment, False
            if result.scale.metres_per_unit is not None:
                done += self._release(result.scale)
            elif self._hopes_for_metres and not self._given_up:
                self._held.append(result)
                if sum(len(held.frames) for held in self._held) > _MAX_FRAMES:
                    self._given_up = True
                    done += self._release(Scale())
                continue
            done.append(result)
        return tuple(done)

    def _release(self, scale: Scale) -> tuple[Reconstruction, ...]:
        held, self._held = self._held, []
        if scale.metres_per_unit is None:
            return tuple(held)
        return tuple(_in_metres(result, scale) for result in held)


def _in_metres(result: Reconstruction, scale: Scale) -> Reconstruction:
    factor = scale.metres_per_unit or 1.0

    return replace(
        result,
        frames=tuple(geometry.scaled(factor) for geometry in result.frames),
        scale=scale,
        position_sigma=factor * result.position_sigma,
    )
