"""Frames in, geometry out: the whole of the streaming reconstruction, step by step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import AlignmentError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.align import (
    USUAL_ANGLE,
    USUAL_DISTANCE,
    Alignment,
    Anchor,
)
from qvggt_core.stream.conditioning import Conditioning
from qvggt_core.stream.frame import (
    Confirmation,
    Frame,
    FrameGeometry,
    Losses,
    PlacedView,
    Reconstruction,
    Verdict,
    View,
    WindowPrediction,
)
from qvggt_core.stream.interruption import interruption
from qvggt_core.stream.keyframes import KeyframeGate
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.metric_depth import MetricDepthNetwork
from qvggt_core.stream.metric_map import MetricMap
from qvggt_core.stream.network import Network
from qvggt_core.stream.poses_from_matches import PosesFromMatches
from qvggt_core.stream.prediction_check import has_intrinsics, has_poses
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.stream.scale_history import ScaleHistory
from qvggt_core.stream.track_odometry import Observation
from qvggt_core.stream.verification import Verifier
from qvggt_core.stream.window import Entry, SlidingWindow
from qvggt_core.stream.window_placement import (
    alignment_to_map,
    first_alignment,
    placed_views,
    trusted_depth,
)
from qvggt_core.stream.window_run import WindowRun
from qvggt_core.util.opencv import take_working_memory

_MAX_REFUSALS = 2
_MAX_EVENTS = 32


class Reconstructor:
    """Turns the frames of a camera, or of a rig of cameras, into poses and depth in one map.

    Each frame becomes a view; the gate says whether it is a keyframe; the window says when the
    network runs; the views that the window shares with the map say where it lies. A view gets
    its geometry once, from the first window that is placed in the map.

    The map begins at the segment's first camera, which is taken to be level: x forward, y left,
    z up. Inside, its unit is that of the segment's first window; what is given out is in metres
    as soon as a parameter or odometry gives the scale. Memory is bounded: only the window's
    views are kept.

    Attributes:
        sensors: where samples of other sensors go in.
        losses: what has no geometry so far.
        segment: number of the current map.
        parameters: how to reconstruct, see `set_parameters`.
    """

    def __init__(
        self,
        network: Network,
        parameters: Parameters,
        metric_depth: MetricDepthNetwork | None = None,
        loops: LoopClosure | None = None,
    ) -> None:
        """Start with an empty map.

        Args:
            network: gives the geometry of windows.
            parameters: how to reconstruct.
            metric_depth: gives the scale every `scale_period_s`, None to do without.
            loops: finds places that are seen again; one that works at once, if not given.

        Raises:
            MemoryError: there is not enough to work with.
        """
        take_working_memory()
        self.losses = Losses()
        self._loops = loops or LoopClosure()
        self.segment = self._loops.first_segment
        self._network = network
        self.parameters = parameters
        # One for each camera of a rig: each remembers how to rectify its own.
        self._preprocessors: dict[str, Preprocessor] = {}
        self._events: deque[str] = deque(maxlen=_MAX_EVENTS)
        self._metric = MetricMap(parameters, metric_depth, self._add_event)
        conditioning = Conditioning(parameters.condition_on)
        self._verifier = Verifier()
        self.sensors = self._metric.sensor_inputs(conditioning, self._verifier.rig)
        self._gate = KeyframeGate(parameters.keyframe_min_motion)
        self._window = SlidingWindow(parameters.window_size, parameters.window_stride)
        matches = None
        if parameters.poses_from == "matches":
            matches = PosesFromMatches(network, parameters.use_camera_intrinsics)
        self._window_run = WindowRun(network, self._window, conditioning, self._add_event, matches)
        self._last: tuple[Frame, ...] = ()
        self._map_is_empty = True
        self._refusals = 0
        # What is done but not given out, as the network failed after it.
        self._held: tuple[Reconstruction, ...] = ()

    def add(self, frame: Frame, *others: Frame) -> tuple[Reconstruction, ...]:
        """Take the next frame; return what became known, oldest first, often nothing.

        A frame that does not continue what was before (a gap, a step back in time, another size
        or camera) begins a new segment, after the views that wait have got their geometry.

        Args:
            frame: of the camera, or of the first camera of a rig, which gives time and motion.
            others: of the rig's other cameras at about the same time; they see the same window.

        Raises:
            ImageError: an image or its calibration cannot be used. The frames are left out, all
                else is as before.
        """
        frames = (frame, *others)
        views = [self._preprocessor(each).view(each) for each in frames]
        if self._last and frame.stamp_ns == self._last[0].stamp_ns:
            self._add_event(f"a second frame with the stamp {frame.stamp_ns} ns was left out")
            self.losses.gated += len(frames)
            return ()
        try:
            self._take(frames, views)
        except Exception:  # of the network: what did not even come into the window is gone
            waiting = {id(entry.view) for entry in self._window.entries}
            self.losses.gated += sum(id(view) not in waiting for view in views)
            raise
        done, self._held = self._held, ()
        return done

    def _take(self, frames: tuple[Frame, ...], views: list[View]) -> None:
        """Put the views of frames into the window; run the network if it is due."""
        frame = frames[0]
        reason = interruption(self._last, frames, self.parameters.max_gap_s)
        if reason:
            self._held = self._completed()
            self._leave_map(reason)
            self._verifier.reset()
        self._last = frames
        if self.parameters.loop_closure:
            self._loops.remember(frame, self._preprocessor(frame))

        tracked, begins_anew = None, False
        if self._follows:
            preprocessor = self._preprocessor(frame)
            tracked, begins_anew = self._verifier.follow(frame, views[0], preprocessor)
        if begins_anew:
            self._held = self._completed()
            self._leave_map("the camera was lost: no point of the map was found again")
        is_keyframe = self._gate.decide(views[0]).is_keyframe
        for view in views:
            left = self._window.add(view, is_keyframe)
            self.losses.gated += left is not None and not left.is_published
        if tracked is not None:
            first = self._window.entries[-len(views)]
            # Poses that the network gave go on as they are: the map is not begun anew below them.
            may_measure = self._map_is_empty or self._verifier.is_measured
            rig = frames if may_measure and self.parameters.refine else ()
            first.observation = self._verifier.observe(tracked, is_keyframe, rig)
            self._metric.explain_rig(self._verifier.rig.problem)
        self._window_run.encode()
        if self._window.is_due:
            self._held += self._run()

    def set_parameters(self, parameters: Parameters) -> None:
        """Take parameters that differ from the former in what may change while running."""
        if self.parameters.loop_closure and not parameters.loop_closure:
            self._loops.reset()
        self.parameters = parameters
        self._gate.min_motion = parameters.keyframe_min_motion
        self._metric.set_parameters(parameters)

    def flush(self) -> tuple[Reconstruction, ...]:
        """Give the views that wait for a full stride their geometry, at the end of a stream.

        Events, and a correction by loops, that no reconstruction has carried yet come in one
        without frames.
        """
        return self._completed(is_last=True)

    def _completed(self, *, is_last: bool = False) -> tuple[Reconstruction, ...]:
        if any(not entry.is_published for entry in self._window.entries):
            self._held += self._run(is_last=True)
        is_moved = self.parameters.loop_closure and self._loops.settle(is_last=is_last)
        if self._events or is_moved:
            self._held += (self._reconstruction(),)
        done, self._held = self._held, ()
        return done

    def reset(self, reason: str = "reset on request") -> None:
        """Forget all maps and the views that wait; the next frame begins the first segment."""
        self._last = ()
        self.segment = self._loops.first_segment
        self._map_is_empty = True
        self.losses.gated += sum(len(result.frames) for result in self._held)
        self._held = ()
        self._leave_map(reason)
        self._verifier.reset()
        self._loops.reset()

    @property
    def scale_history(self) -> ScaleHistory:
        """What sources have given of the current segment's scale."""
        return self._metric.history

    @property
    def _follows(self) -> bool:
        """Whether points are followed at all."""
        return self.parameters.confirm or self.parameters.refine

    def _run(self, is_last: bool = False) -> tuple[Reconstruction, ...]:
        """Predict, align, place: geometry for the views that have none."""
        # Of those whose encoding failed when they came; the others are.
        self._window_run.encode()
        clock = [time.perf_counter()]
        prediction = self._window_run.predict(self.parameters.scale_views)
        entries = self._window.entries
        clock.append(time.perf_counter())
        self._window.ran()
        if not self._is_usable(entries, prediction):
            return ()
        confirmation = self._judge(entries, prediction)
        if self._goes_by_tracks(entries, confirmation):
            frames = self._place_by_tracks(entries, prediction, confirmation)
            clock.append(time.perf_counter())
            seconds = self._window_run.seconds(clock)
            return (self._reconstruction(frames, None, len(entries), seconds, confirmation),)
        if not has_poses(prediction):
            return ()
        depth = trusted_depth(entries, prediction, self.parameters.min_confidence_percentile)
        try:
            alignment = self._align(entries, prediction, depth)
        except AlignmentError as refusal:
            self._refusals += 1
            is_final = is_last or self._refusals == _MAX_REFUSALS
            if not is_final and self._window.run_again(coming=len(self._last)):
                self._add_event(f"a window was refused, the next frame tries again: {refusal}")
                return ()
            self._restart_map(f"{self._refusals} window(s) refused in a row: {refusal}")
            alignment = self._align(entries, prediction, depth)
        self._refusals = 0
        frames = self._place(entries, prediction, depth, alignment)
        unit = prediction.metres_per_map_unit(alignment.map_from_window.scale)
        # While images contradict the network, or where a camera sits, the rig gives no scale.
        holds = confirmation is None or self._verifier.is_trusted
        holds &= not self._verifier.rig.is_contradicted
        first = self._last[0].source
        frames = self._metric.place(entries, frames, first, unit, rig_holds=holds)
        clock.append(time.perf_counter())
        if self._is_withheld(confirmation):
            self.losses.withheld += len(frames)
            frames = ()
        self._calibrate(entries, prediction)
        seconds = self._window_run.seconds(clock)
        return (self._reconstruction(frames, alignment, len(entries), seconds, confirmation),)

    def _is_usable(self, entries: list[Entry], prediction: WindowPrediction) -> bool:
        """Return whether a prediction can be placed, by followed points if not by its poses."""
        own_first = self.parameters.use_camera_intrinsics
        has_lenses = has_intrinsics(prediction, [entry.view for entry in entries], own_first)
        if has_lenses and has_poses(prediction):
            return True
        self.losses.not_finite += 1
        what = "poses" if has_lenses else "intrinsics"
        self._add_event(
            f"the network gave {what} that are not finite or that no camera has, its window of "
            f"{len(entries)} views was left out; does compute_dtype float32 help?"
        )
        return has_lenses and self._refines and self._has_observations(entries)

    def _has_observations(self, entries: list[Entry]) -> bool:
        return all(
            entry.observation is not None
            for entry in entries
            if not entry.is_published and entry.view.source == self._last[0].source
        )

    def _judge(self, entries: list[Entry], prediction: WindowPrediction) -> Confirmation | None:
        if not self.parameters.confirm:
            return None
        return self._verifier.judge(prediction, [entry.observation for entry in entries])

    def _goes_by_tracks(self, entries: list[Entry], confirmation: Confirmation | None) -> bool:
        """Return whether poses come from followed points and depth from what they support."""
        if not self._refines or not self._has_observations(entries):
            return False
        contradicted = confirmation is not None and confirmation.verdict is Verdict.CONTRADICTED
        return not (contradicted and self.parameters.on_contradiction == "publish")

    def _is_withheld(self, confirmation: Confirmation | None) -> bool:
        if confirmation is None or confirmation.verdict is not Verdict.CONTRADICTED:
            return False
        action = self.parameters.on_contradiction
        return action == "withhold" or (action == "tracks" and not self._refines)

    @property
    def _refines(self) -> bool:
        """Whether poses are refined.

        Those of a rig are the network's, it alone relates them, unless the cameras' places are
        known and they measure distances together.
        """
        return self.parameters.refine and (len(self._last) == 1 or self._verifier.is_measured)

    def _calibrate(self, entries: list[Entry], prediction: WindowPrediction) -> None:
        """Let points be followed by predicted intrinsics, where there are no others."""
        frame = self._last[0]
        if not self._follows or frame.camera is not None or self._verifier.is_calibrated:
            return
        newest = max(i for i, entry in enumerate(entries) if entry.view.source == frame.source)
        anchor = entries[newest].anchor
        assert anchor is not None
        camera = self._preprocessor(frame).camera(frame, prediction.intrinsics[newest])
        self._verifier.calibrate(camera, anchor.map_from_camera)

    def _place_by_tracks(
        self,
        entries: list[Entry],
        prediction: WindowPrediction,
        confirmation: Confirmation | None,
    ) -> tuple[FrameGeometry, ...]:
        """Place the window's views by followed points; return those that were never given out."""
        observations = [entry.observation for entry in entries]
        verdict = Verdict.CONFIRMED if confirmation is None else confirmation.verdict
        map_units = self._verifier.expect(prediction, observations, verdict)
        seen = [each.observation for each in entries if each.observation and not each.is_published]
        frames = list(self._placed_views(entries, prediction))
        for stamp, ratio in self._verifier.lengths(seen):
            self._metric.observe_ratio(stamp, ratio)
        self._map_is_empty = False
        self._refusals = 0
        # Lengths of a prediction that the images contradict give no scale.
        known = map_units if verdict is not Verdict.CONTRADICTED else None
        unit = prediction.metres_per_map_unit(known)
        in_metres = self._metric.place(entries, tuple(frames), self._last[0].source, unit)
        if self._is_withheld(confirmation):
            self.losses.withheld += len(frames)
            return ()
        return in_metres

    def _placed_views(
        self, entries: list[Entry], prediction: WindowPrediction
    ) -> Iterator[FrameGeometry]:
        """Place those of a window's views that were never given out by followed points.

        The points are the first camera's; a rig's others go where they sit beside it.
        """
        without_depth = len(entries) - len(prediction.depth)
        percentile = self.parameters.min_confidence_percentile
        head: tuple[Observation, PlacedView] | None = None
        for index, entry in enumerate(entries):
            if entry.is_published:
                continue
            at = index - without_depth
            predicted = (prediction.depth[at], prediction.confidence[at])
            placed: PlacedView | None = None
            if entry.observation is not None:
                placed = self._verifier.place(entry.observation, *predicted, percentile)
                head = (entry.observation, placed)
            elif head is not None:
                placed = self._verifier.place_beside(*head, entry.view, predicted, percentile)
            if placed is None:
                entry.is_published = True
                self.losses.gated += 1
                continue
            placed = replace(placed, depth=entry.view.static(placed.depth))
            entry.anchor = Anchor(placed.map_from_camera, placed.depth)
            yield self._publish(entry, prediction.intrinsics[index], placed)

    def _place(
        self,
        entries: list[Entry],
        prediction: WindowPrediction,
        depth: NDArray[np.float32],
        alignment: Alignment,
    ) -> tuple[FrameGeometry, ...]:
        """Put the window's views into the map; return those that were never given out."""
        frames = tuple(
            self._publish(entries[index], prediction.intrinsics[index], placed)
            for index, placed in placed_views(entries, prediction, depth, alignment.map_from_window)
        )
        self._map_is_empty = False
        return frames

    def _align(
        self, entries: list[Entry], prediction: WindowPrediction, depth: NDArray[np.float32]
    ) -> Alignment:
        if self._map_is_empty:
            return first_alignment(entries, prediction)
        return alignment_to_map(entries, prediction, depth, self.parameters.max_scale_spread)

    def _publish(
        self, entry: Entry, intrinsics: NDArray[np.float64], placed: PlacedView
    ) -> FrameGeometry:
        """Return a view's geometry in map units, once."""
        entry.is_published = True
        if entry.view.source == self._last[0].source and not placed.is_lost:
            self._metric.observe(entry.view, placed)
        if entry.view.intrinsics is not None and self.parameters.use_camera_intrinsics:
            intrinsics = entry.view.intrinsics
        return FrameGeometry(
            view=entry.view,
            intrinsics=intrinsics,
            is_keyframe=entry.is_keyframe,
            **vars(placed),
        )

    def _reconstruction(
        self,
        frames: tuple[FrameGeometry, ...] = (),
        alignment: Alignment | None = None,
        window_size: int = 0,
        seconds: dict[str, float] | None = None,
        confirmation: Confirmation | None = None,
    ) -> Reconstruction:
        events = tuple(self._events)
        self._events.clear()
        result = Reconstruction(
            segment=self.segment,
            frames=frames,
            scale=self._metric.scale,
            window_size=window_size,
            position_sigma=self._position_sigma(frames, alignment),
            rotation_sigma=max(alignment.rotation_residual, USUAL_ANGLE) if alignment else 0.0,
            seconds=seconds or {},
            events=events,
            confirmation=confirmation,
            up=self._metric.up,
        )
        if not self.parameters.loop_closure:
            return result
        corrected = self._loops.correct(result, self._tokens)
        length = self._loops.take_length()
        if length is not None and frames:
            self._metric.observe_ratio(frames[-1].view.stamp_ns, length)
        return corrected

    def _tokens(self, geometry: FrameGeometry) -> Any:
        """Return what the encoder made of a view in the window."""
        return next(entry.tokens for entry in self._window.entries if entry.view is geometry.view)

    def _position_sigma(
        self, frames: tuple[FrameGeometry, ...], alignment: Alignment | None
    ) -> float:
        if alignment is None:
            return 0.0
        residual = self._metric.factor * alignment.translation_residual
        depths = [frame.depth[np.isfinite(frame.depth)] for frame in frames]
        depth = np.concatenate(depths) if depths else np.empty(0)
        usual = USUAL_DISTANCE * float(np.median(depth)) if depth.size else 0.0
        return max(residual, usual)

    def _preprocessor(self, frame: Frame) -> Preprocessor:
        if frame.source not in self._preprocessors:
            self._preprocessors[frame.source] = Preprocessor(
                self._network.image_width, self._network.patch_size, self.parameters.rectify
            )
        return self._preprocessors[frame.source]

    def _leave_map(self, reason: str) -> None:
        """Begin a segment with the next frame."""
        self.losses.gated += sum(not entry.is_published for entry in self._window.entries)
        self._window.clear()
        self._gate.reset()
        self._verifier.forget_map()
        self._restart_map(reason)

    def _restart_map(self, reason: str) -> None:
        """Begin a segment with the views in the window that have no geometry yet."""
        if not self._map_is_empty:
            self.segment += 1
        self._map_is_empty = True
        self._metric.reset()
        self._refusals = 0
        self._add_event(
            f"segment {self.segment} begins with an origin and a unit of its own: {reason}"
        )

    def _add_event(self, event: str) -> None:
        self._events.append(event)
