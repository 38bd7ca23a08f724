"""From a map segment's own unit and tilt to metres and the vertical: all sources at one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qvggt_core.parameters import Parameters
from qvggt_core.stream.align import Anchor
from qvggt_core.stream.conditioning import Conditioning
from qvggt_core.stream.frame import FrameGeometry, PlacedView, Scale, Up, View
from qvggt_core.stream.gravity import FIRST_CAMERA, GROUND, IMU, Gravity, levelling
from qvggt_core.stream.known_lengths import KnownLengths, LengthRatio, height_ratio
from qvggt_core.stream.level_ground import GroundSearch, LevelGround
from qvggt_core.stream.metric_depth import MetricDepthNetwork, MetricDepthSchedule, map_unit
from qvggt_core.stream.metric_scale import (
    BASELINE,
    CAMERA_HEIGHT,
    CONDITIONING,
    METRIC_DEPTH,
    MetricScale,
)
from qvggt_core.stream.scale_history import ScaleHistory
from qvggt_core.stream.sensor_inputs import SensorInputs
from qvggt_core.stream.stereo_rig import StereoRig
from qvggt_core.stream.window import Entry

# Noise of a map unit's length, in logarithms, by one window with known cameras and by one image.
_CONDITIONING_SIGMA = 0.02
_METRIC_DEPTH_SIGMA = 0.03


class MetricMap:
    """Holds a map segment's views against what is known in metres, and gives them out in metres.

    Attributes:
        up: what the map's vertical stands on.
    """

    def __init__(
        self,
        parameters: Parameters,
        metric_depth: MetricDepthNetwork | None,
        add_event: Callable[[str], None],
    ) -> None:
        """Begin a segment.

        Args:
            parameters: of the scale.
            metric_depth: gives the scale every `scale_period_s`, None to do without.
            add_event: is given a sentence on each change of the scale or the vertical.
        """
        self._scale = MetricScale(parameters.metres_per_unit, parameters.min_odometry_distance)
        self._lengths = KnownLengths(parameters.camera_height)
        self._gravity = Gravity()
        self._ground = GroundSearch()
        self._metric_depth = metric_depth
        self._schedule = MetricDepthSchedule(parameters.scale_period_s)
        self._add_event = add_event
        self.set_parameters(parameters)
        self._begin_upright()

    def set_parameters(self, parameters: Parameters) -> None:
        """Take parameters that may change while running."""
        self._schedule.period_s = parameters.scale_period_s
        self._scale.min_distance = parameters.min_odometry_distance
        self._scale.set_parameter(parameters.metres_per_unit)
        self._lengths.camera_height = parameters.camera_height
        self._ground.keeps_height = parameters.camera_height > 0.0

    def reset(self) -> None:
        """Begin a segment with an origin and a unit of its own."""
        self._scale.reset()
        self._schedule.begin_map()
        self._gravity.begin_map()
        self._ground.begin_map()
        self._begin_upright()

    @property
    def scale(self) -> Scale:
        """What is known of the scale."""
        return self._scale.scale

    @property
    def factor(self) -> float:
        """What lengths of the map are multiplied by as they are given out."""
        return self._scale.factor

    @property
    def history(self) -> ScaleHistory:
        """What sources have given of this segment's scale."""
        return self._scale.history

    def sensor_inputs(self, conditioning: Conditioning, rig: StereoRig) -> SensorInputs:
        """Return where samples of sensors go in; odometry is for the network too."""
        return SensorInputs(self._scale, self._lengths, self._gravity, conditioning, rig)

    def explain_rig(self, problem: str) -> None:
        """Take why a rig's cameras measure no distances, for an operator; empty if they do."""
        if problem:
            self._scale.explain(BASELINE, problem)

    def observe(self, view: View, placed: PlacedView) -> None:
        """Take where the first camera was, in map units."""
        stamp, pose = view.stamp_ns, placed.map_from_camera
        altitude = self._lengths.altitude(stamp, pose)
        if altitude is not None:
            self._scale.add_altitude(stamp, altitude)
        self._gravity.observe(stamp, pose)
        change = self._scale.observe(stamp, pose)
        if change:
            self._add_event(change)

    def place(
        self,
        entries: list[Entry],
        frames: tuple[FrameGeometry, ...],
        first_camera: str,
        metres_per_unit: float | None,
        *,
        rig_holds: bool = True,
    ) -> tuple[FrameGeometry, ...]:
        """Take what a window gives of the scale; return its frames in metres if it is known.

        Args:
            entries: the window.
            frames: its new frames, in map units.
            first_camera: source of the rig's first camera, by which the ground is sought.
            metres_per_unit: metres per map unit by a network that knows its cameras, or None.
            rig_holds: whether how the network relates a rig's cameras is believed.

        Returns:
            The frames; all of a window have one scale.
        """
        newest = entries[-1].view.stamp_ns
        if metres_per_unit is not None:
            ratio = LengthRatio(CONDITIONING, metres_per_unit, _CONDITIONING_SIGMA)
            self.observe_ratio(newest, ratio)
        elif frames and self._metric_depth is not None:
            self._schedule.run_s = self._metric_depth.run_s
            due = self._schedule.due(newest, len(frames), self._scale.noise)
            # Evenly over the new frames, the newest always.
            for back in reversed(range(due)):
                number = len(frames) - 1 - back * len(frames) // due
                frames = self._observe_metric_depth(entries, frames, number)
        known = [frame for frame in frames if not frame.is_lost]
        for stamp, ratio in self._lengths.ratios(known, rig_holds=rig_holds):
            self.observe_ratio(stamp, ratio)
        own = [frame for frame in frames if frame.view.source == first_camera]
        self._find_up(self._seen_ground([frame for frame in own if not frame.is_lost]))
        return tuple(self._in_metres(frame) for frame in frames)

    def _begin_upright(self) -> None:
        self.up, self._level, self._is_metric = Up(), np.eye(3), False

    def _seen_ground(self, own: list[FrameGeometry]) -> LevelGround | None:
        """Return the ground that new frames show, where it is of use, and take its scale."""
        height = self._lengths.camera_height
        gives_up = self.up.source == FIRST_CAMERA and self.scale.metres_per_unit is None
        if not (height or gives_up):
            return None
        new = [frame.view.stamp_ns for frame in own if self._ground.observe(frame)]
        ground = self._ground.ground if new else None
        if height and own:
            self._scale.explain(CAMERA_HEIGHT, self._ground.problem)
        if ground is not None and height:
            self.observe_ratio(new[-1], height_ratio(height, ground))
        return ground

    def _find_up(self, ground: LevelGround | None) -> None:
        """Turn the map upright, once: when an IMU shows how, or else as the scale becomes known.

        The ground is only believed while nothing is built on the map in metres: a map that turns
        later is worse than one that is a little tilted.
        """
        was_metric, self._is_metric = self._is_metric, self.scale.metres_per_unit is not None
        if self.up.source == IMU:
            return
        if ground is not None and not self._is_metric:
            self._gravity.observe_ground(ground.up, ground.tilt_sigma)
        found = self._gravity.up
        if found.source == IMU or (found.source == GROUND and self._is_metric > was_metric):
            self.up, self._level = found, levelling(found.direction)
            tilt = np.degrees(np.arccos(np.clip(found.direction[2], -1.0, 1.0)))
            self._add_event(f"the map is level by {found.source}: it was tilted by {tilt:.1f} deg")

    def observe_ratio(self, stamp_ns: int, ratio: LengthRatio) -> None:
        """Take the length of a map unit as one image or window gives it."""
        event = self._scale.observe_ratio(
            stamp_ns, ratio.metres, ratio.sigma, ratio.source, ratio.common
        )
        if event:
            self._add_event(event)

    def _observe_metric_depth(
        self, entries: list[Entry], frames: tuple[FrameGeometry, ...], number: int
    ) -> tuple[FrameGeometry, ...]:
        """Hold a frame against its metric depth; return the frames, its sky taken out."""
        assert self._metric_depth is not None
        seen = frames[number]
        metric = self._metric_depth.depth(seen.view.image, seen.intrinsics)
        unit = map_unit(metric, seen)
        depth = np.where(metric.sky, np.float32(np.nan), seen.depth)
        for entry in entries:
            if entry.view is seen.view and entry.anchor is not None:
                entry.anchor = Anchor(entry.anchor.map_from_camera, depth)
        if unit is not None and unit.is_trusted:
            ratio = LengthRatio(METRIC_DEPTH, unit.metres, _METRIC_DEPTH_SIGMA)
            self.observe_ratio(seen.view.stamp_ns, ratio)
        return (*frames[:number], replace(seen, depth=depth), *frames[number + 1 :])

    def _in_metres(self, geometry: FrameGeometry) -> FrameGeometry:
        # After all of the window is observed: its frames go out with one scale.
        placed = self._scale.place(geometry.map_from_camera)
        in_metres = replace(geometry.scaled(self.factor), map_from_camera=placed)
        return in_metres if self.up.source == FIRST_CAMERA else in_metres.turned(self._level)
