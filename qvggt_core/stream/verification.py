"""What the images say of a window: a verdict on the network, poses and depth that they support."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, cross_matrix, inverse
from qvggt_core.stream import uncertainty
from qvggt_core.stream.confirmation import TrackedView, confirm, depth_at
from qvggt_core.stream.depth_correction import SeenPoints, around, correct_depth
from qvggt_core.stream.depth_scale import valid_depth
from qvggt_core.stream.frame import Confirmation, Frame, PlacedView, Verdict, View, WindowPrediction
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.map_points import MeasuredPoints
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.stream.stereo_rig import StereoRig, measured_unit
from qvggt_core.stream.track_odometry import KnownPose, Observation, TrackOdometry

# How far the network's depth is off, in logarithms, where the images confirm it and elsewhere.
_CONFIRMED_DEPTH = 0.2
_UNCONFIRMED_DEPTH = 0.7
# A pose that was never known is as uncertain as after so long a time, in seconds.
_NEVER_S = 10.0
# What is left of the confidence around points that move by themselves.
_MOVING_CONFIDENCE = 0.25


class Verifier:
    """Follows the first camera's points, judges windows by them, and places views.

    Attributes:
        is_trusted: whether the last window on which the images had something to say was
            confirmed; while they say nothing, the network is believed or not by that.
        rig: the other cameras' places, by which points' distances are measured.
    """

    def __init__(self, odometry: TrackOdometry | None = None) -> None:
        """Start without an image.

        Args:
            odometry: follows the points, one of its own if not given.
        """
        self.is_trusted = False
        self.rig = StereoRig()
        self._odometry = odometry or TrackOdometry()
        self._camera: Camera | None = None
        self.forget_map()

    def forget_map(self) -> None:
        """Begin a map with the next frame; points are followed on."""
        self.is_trusted = False
        self.rig.begin_map()
        self._odometry.forget_map()
        self._last_pose = FLU_FROM_OPTICAL
        self._last_stamp: int | None = None
        self._usual_depth = 1.0
        self._last_covariance = np.zeros((6, 6))
        self._since_keyframe = np.zeros((6, 6))
        self._has_unit = False

    def reset(self) -> None:
        """Forget everything: the next frame does not continue the last."""
        self.forget_map()
        self._odometry.reset()
        self._camera = None

    def follow(
        self, frame: Frame, view: View, preprocessor: Preprocessor
    ) -> tuple[TrackedView | None, bool]:
        """Follow points into a frame.

        Returns:
            The points, or None while no calibration is known; and whether a new map has to begin
            with them, because the old one was lost for good.
        """
        camera = frame.camera or self._camera
        if camera is None:
            return None, False
        tracks, begins_anew = self._odometry.track(frame, camera, frame.mask)
        pixels = preprocessor.view_pixels(frame, view, tracks.pixels, tracks.rays)
        width = tracks.focal / camera.intrinsics[0, 0] * frame.image.shape[1]
        return TrackedView(frame.stamp_ns, tracks, pixels, width), begins_anew

    def observe(
        self, tracked: TrackedView, is_keyframe: bool, frames: Sequence[Frame] = ()
    ) -> Observation:
        """Locate a frame by its points.

        Args:
            tracked: its points.
            is_keyframe: whether the gate takes it for one.
            frames: it and those of the rig's other cameras, where they may measure distances.
        """

        def measure(is_keyframe: bool) -> MeasuredPoints | None:
            if len(frames) < 2 or not (is_keyframe or self.rig.is_due(tracked.stamp_ns)):
                return None
            return self.rig.measure(frames, tracked.tracks)

        first_pose = inverse(self._last_pose)
        return self._odometry.observe(tracked, first_pose, is_keyframe, measure)

    @property
    def is_measured(self) -> bool:
        """Whether the map stands on measured distances, so that its unit is about the metre."""
        return self._odometry.map is not None and self._odometry.map.is_measured

    def lengths(self, observations: Sequence[Observation]) -> list[tuple[int, LengthRatio]]:
        """Return what measured distances give of the map's unit, with their stamps."""
        local_map, found = self._odometry.map, []
        for each in observations:
            pose = None if each.measured is None else self._odometry.pose(each)
            if local_map is None or each.measured is None or pose is None:
                continue
            unit = measured_unit(each.measured, local_map.points, pose.camera_from_map)
            if unit is not None:
                found.append((each.stamp_ns, unit))
        return found

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a predicted calibration."""
        return self._camera is not None

    def calibrate(self, camera: Camera, last_pose: NDArray[np.float64]) -> None:
        """Take the calibration that the network predicted, where no other is known.

        Args:
            camera: of the images as they come.
            last_pose: (4, 4) map_from_camera of the last frame, near which the map begins.
        """
        self._camera = camera
        self._last_pose = last_pose

    def judge(
        self, prediction: WindowPrediction, observations: Sequence[Observation | None]
    ) -> Confirmation:
        """Return whether the images confirm a window, and keep the last verdict that is one."""
        views = [None if each is None or each.is_lost else each.view for each in observations]
        found = confirm(prediction, views)
        if found.verdict is not Verdict.UNDECIDED:
            self.is_trusted = found.verdict is Verdict.CONFIRMED
        return found

    def expect(
        self,
        prediction: WindowPrediction,
        observations: Sequence[Observation | None],
        verdict: Verdict,
    ) -> float | None:
        """Give points that have little parallax the network's depth, and the map its unit.

        Returns:
            Map units per unit of the prediction, by the points; None where there are none.
        """
        found = self._predicted_points(prediction, observations)
        if found is None or self._odometry.map is None:
            return None
        ids, predicted, known = found
        ratio = float(np.median(np.log(known / predicted)))
        if self.is_measured:
            # Measured distances are the map's unit, and better than predicted ones.
            return float(np.exp(-ratio))
        if not self._has_unit:
            # The map has no unit yet: that of the network's first window.
            self._odometry.map.rescale(float(np.exp(ratio)))
            self._has_unit, ratio = True, 0.0
        is_believed = verdict is Verdict.CONFIRMED or self.is_trusted
        if verdict is Verdict.CONTRADICTED or not is_believed or prediction.is_solved:
            return float(np.exp(-ratio))
        share = _CONFIRMED_DEPTH if verdict is Verdict.CONFIRMED else _UNCONFIRMED_DEPTH
        self._odometry.map.expect(ids, np.exp(ratio) * predicted, share)
        return float(np.exp(-ratio))

    def place(
        self,
        observation: Observation,
        depth: NDArray[np.float32],
        confidence: NDArray[np.float32],
        percentile: float,
    ) -> PlacedView:
        """Return a view's pose and depth as far as the images support them.

        Args:
            observation: the view's points.
            depth: (H, W) as predicted.
            confidence: (H, W) of it.
            percentile: pixels below this percentile of the confidence are not trusted.
        """
        found = self._odometry.pose(observation)
        if found is None:
            return self._lost_view(observation, depth)
        pose = found.camera_from_map
        seen = self._odometry.seen_points(observation, pose)
        if len(seen.depth):
            self._usual_depth = float(np.median(seen.depth))
        covariance, motion = self._covariances(observation, found)
        self._last_pose, self._last_stamp = inverse(pose), observation.stamp_ns
        result, sure = self._supported(depth, confidence, percentile, seen)
        moving = around(self._odometry.moving_pixels(observation), depth.shape)
        sure = np.where(moving, 1.0 + _MOVING_CONFIDENCE * (sure - 1.0), sure)
        return PlacedView(
            self._last_pose,
            result,
            sure.astype(np.float32),
            covariance=covariance,
            motion_covariance=motion,
            followed=self._odometry.followed_points(observation, pose, depth.shape[1]),
        )

    def place_beside(
        self,
        observation: Observation,
        first: PlacedView,
        view: View,
        predicted: tuple[NDArray[np.float32], NDArray[np.float32]],
        percentile: float,
    ) -> PlacedView | None:
        """Return pose and depth of a rig's other camera; None where its place is not known.

        Args:
            observation: of the first camera at the same time.
            first: where that camera was placed.
            view: the other camera's.
            predicted: depth (H, W) and confidence (H, W) of it.
            percentile: as in `place`.
        """
        first_from_other = self.rig.first_from(view.source)
        if first_from_other is None or view.intrinsics is None:
            return None
        depth, confidence = predicted
        pose = first.map_from_camera @ first_from_other
        covariance = None
        if first.covariance is not None:
            covariance = _shifted(first.covariance, pose[:3, 3] - first.map_from_camera[:3, 3])
        if first.is_lost:
            nothing = np.full_like(depth, np.nan)
            return PlacedView(pose, nothing, np.ones_like(depth), True, covariance)
        seen = self._odometry.points_beside(observation, inverse(pose), view.intrinsics)
        result, sure = self._supported(depth, confidence, percentile, seen)
        return PlacedView(pose, result, sure.astype(np.float32), covariance=covariance)

    def _supported(
        self,
        depth: NDArray[np.float32],
        confidence: NDArray[np.float32],
        percentile: float,
        seen: SeenPoints,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return depth (H, W) and confidence (H, W) as far as points support them."""
        corrected = correct_depth(depth, seen)
        if corrected is None:
            return np.full_like(depth, np.nan), np.ones_like(confidence)
        sure = np.where(corrected.is_supported, confidence, 1.0 + 0.5 * (confidence - 1.0))
        if self.is_trusted and corrected.follows_network:
            return valid_depth(corrected.depth, confidence, percentile), sure
        return np.where(corrected.is_supported, corrected.depth, np.float32(np.nan)), sure

    def _lost_view(self, observation: Observation, depth: NDArray[np.float32]) -> PlacedView:
        """Return the last pose again, ever less certain, without depth."""
        seconds = _NEVER_S
        if self._last_stamp is not None:
            seconds = max(0, observation.stamp_ns - self._last_stamp) * 1e-9
        grown = uncertainty.lost(seconds, self._usual_depth)
        camera_from_map = inverse(self._last_pose)
        covariance = self._last_covariance + grown
        return PlacedView(
            self._last_pose,
            np.full_like(depth, np.nan),
            np.ones_like(depth),
            is_lost=True,
            covariance=uncertainty.in_map(covariance, camera_from_map),
            motion_covariance=_translation_first(grown),
        )

    def _covariances(
        self, observation: Observation, found: KnownPose
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the covariances (6, 6) of a pose in the map, and of the motion that led to it."""
        least = uncertainty.floor(self._usual_depth)
        is_keyframe = observation.keyframe is not None
        here = found.covariance + uncertainty.adrift(found.adrift, self._usual_depth)
        self._last_covariance = here
        motion = uncertainty.STEP_FACTOR**2 * (found.step + self._since_keyframe) + least
        self._since_keyframe = np.zeros((6, 6)) if is_keyframe else found.step
        total = uncertainty.in_map(here + least, found.camera_from_map)
        return total, _translation_first(motion)

    def _predicted_points(
        self, prediction: WindowPrediction, observations: Sequence[Observation | None]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
        """Return numbers of points, and their inverse distances as predicted and as known.

        Both are from where the point was first seen; the predicted ones are in the window's unit.
        """
        local_map = self._odometry.map
        if local_map is None:
            return None
        without_depth = len(observations) - len(prediction.depth)
        ids, ratios = [], []
        for observation, depth in zip(observations[without_depth:], prediction.depth, strict=True):
            found_pose = None if observation is None else self._odometry.pose(observation)
            if observation is None or found_pose is None:
                continue
            pose = found_pose.camera_from_map
            index, found = local_map.points.find(observation.view.tracks.ids)
            points = local_map.points.take(index)
            here = points.positions @ pose[2, :3] + pose[2, 3]
            there = depth_at(depth, observation.view.pixels[found])
            good = np.isfinite(there) & (there > 0) & (here > 0)
            ids.append(points.ids[good])
            ratios.append(here[good] / there[good])
        if not ids or sum(map(len, ids)) == 0:
            return None
        every, ratio = np.concatenate(ids), np.concatenate(ratios)
        numbers, first = np.unique(every[::-1], return_index=True)
        ratio = ratio[::-1][first]
        index, _ = local_map.points.find(numbers)
        known = local_map.points.inverse_distance[index]
        return numbers, known * ratio, known


def _shifted(covariance: NDArray[np.float64], lever: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance (6, 6) of position and rotation, in the map, of another place (3,)."""
    matrix = np.eye(6)
    matrix[:3, 3:] = -cross_matrix(lever)
    return matrix @ covariance @ matrix.T


def _translation_first(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a covariance (6, 6) of rotation and translation in the other order, as ROS has it."""
    order = [3, 4, 5, 0, 1, 2]
    return covariance[np.ix_(order, order)]
