"""A camera's poses from followed points: tracker and local map, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.confirmation import TrackedView
from qvggt_core.stream.depth_correction import SeenPoints
from qvggt_core.stream.frame import FollowedPoints, Frame
from qvggt_core.stream.local_map import LocalMap, Located
from qvggt_core.stream.map_keyframes import Keyframe
from qvggt_core.stream.map_points import MeasuredPoints
from qvggt_core.stream.tracks import Tracker, Tracks
from qvggt_core.stream.uncertainty import STEP_FACTOR, carried

# A keyframe comes when the gate says so, or when so many of the last one's points are gone.
_KEPT_SHARE = 0.7
# A map begins anew on points of which this share, and so many, reach the next image.
_FOLLOWED_SHARE = 0.4
_MIN_FOLLOWED = 30
# Of a point whose distance is less certain, depth is not given.
_MAX_DEPTH_SIGMA = 0.2


Measure = Callable[[bool], MeasuredPoints | None]


@dataclass
class Observation:
    """What followed points show of one frame.

    Attributes:
        view: the points in the network's view of the frame.
        located: where the frame was taken, when it came.
        keyframe: the frame in the local map, if it is a keyframe there.
        measured: distances of its points by the rig's other cameras; None where not measured.
    """

    view: TrackedView
    located: Located
    keyframe: Keyframe | None = None
    measured: MeasuredPoints | None = None

    @property
    def stamp_ns(self) -> int:
        """Capture time of the frame."""
        return self.view.stamp_ns

    @property
    def is_lost(self) -> bool:
        """Whether its pose is not known."""
        return self.located.is_lost


@dataclass(frozen=True)
class KnownPose:
    """Where a frame was taken.

    Attributes:
        camera_from_map: (4, 4).
        covariance: (6, 6) of rotation and translation in the camera's frame, in the map.
        step: (6, 6) the same against the keyframe before.
        adrift: see `Keyframe`.
    """

    camera_from_map: NDArray[np.float64]
    covariance: NDArray[np.float64]
    step: NDArray[np.float64]
    adrift: float


@dataclass
class TrackOdometry:
    """Follows points, and keeps the local map in which they say where the camera is.

    Attributes:
        tracker: follows the points.
        map: the local map; None before the first frame.
        is_lost: whether the last frame's pose is not known.
    """

    tracker: Tracker = field(default_factory=Tracker)
    map: LocalMap | None = None
    is_lost: bool = False
    _last: Tracks | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.tracker.reset()
        self.forget_map()

    def forget_map(self) -> None:
        """Forget the map; points are followed on."""
        self.map, self.is_lost, self._last = None, False, None

    def track(
        self, frame: Frame, camera: Camera, mask: NDArray[np.uint8] | None = None
    ) -> tuple[Tracks, bool]:
        """Follow the points into a frame; say whether they found their way back to a lost map.

        Returns:
            The points, and whether a new map has to begin with them: the old one is lost, and
            they are followed again.
        """
        of_no_use = () if self.map is None else self.map.outliers
        tracks = self.tracker.track(frame.image, camera, mask, of_no_use)
        last, self._last = self._last, tracks
        if self.map is None or not self.is_lost or last is None:
            return tracks, False
        known = np.isin(tracks.ids, self.map.points.ids).sum()
        followed = np.isin(last.ids, tracks.ids).sum()
        enough = max(_MIN_FOLLOWED, _FOLLOWED_SHARE * len(last.ids))
        return tracks, bool(known < _MIN_FOLLOWED and followed >= enough)

    def observe(
        self,
        view: TrackedView,
        first_pose: NDArray[np.float64],
        is_key: bool,
        measure: Measure = lambda is_keyframe: None,
    ) -> Observation:
        """Locate a frame in the map, and let the map grow by it if it is a keyframe.

        Args:
            view: the frame's points.
            first_pose: (4, 4) camera_from_map of this frame if a map begins with it.
            is_key: whether the gate takes it for a keyframe.
            measure: returns the distances of its points if it is due, None where they are not
                known; is given whether the frame becomes a keyframe.
        """
        tracks = view.tracks
        if self.map is None:
            return self._begun(view, first_pose, measure(True))
        if not self.map.is_founded and (measured := measure(False)) is not None:
            # Nothing stands on a map without distances: it begins anew where they are known.
            return self._begun(view, self.map.keyframes[-1].camera_from_map, measured)
        located = self.map.locate(tracks)
        self.is_lost = located.is_lost
        observation = Observation(view, located)
        if not located.is_lost:
            last = self.map.keyframes[-1].tracks.ids
            last = last[~np.isin(last, list(self.map.outliers))]
            is_key |= bool(np.isin(last, tracks.ids).sum() < _KEPT_SHARE * len(last))
            observation.measured = measure(is_key)
            if is_key:
                self.map.add_keyframe(tracks, located, observation.measured)
                observation.keyframe = self.map.keyframes[-1]
        return observation

    def _begun(
        self,
        view: TrackedView,
        camera_from_map: NDArray[np.float64],
        measured: MeasuredPoints | None,
    ) -> Observation:
        """Begin a map with a frame."""
        tracks = view.tracks
        self.map = LocalMap(tracks, camera_from_map)
        if measured is not None:
            self.map.found_by(measured)
        self.is_lost = len(tracks.ids) < _MIN_FOLLOWED
        every = np.ones(len(tracks.ids), bool)
        located = Located(camera_from_map, tracks.ids, every, self.is_lost)
        return Observation(view, located, self.map.keyframes[0], measured)

    def pose(self, observation: Observation) -> KnownPose | None:
        """Return where a frame was taken by all that is known now, None if it is lost."""
        if observation.is_lost or self.map is None:
            return None
        keyframe = observation.keyframe
        if keyframe is not None and any(keyframe is each for each in self.map.keyframes):
            return KnownPose(
                keyframe.camera_from_map,
                keyframe.covariance[:6, :6],
                keyframe.step,
                keyframe.adrift,
            )
        located = self.map.relocate(observation.view.tracks, observation.located.camera_from_map)
        if located.is_lost:
            located = observation.located
        last = self.map.keyframes[-1]
        motion = located.camera_from_map @ inverse(last.camera_from_map)
        covariance = carried(last.covariance, motion)[:6, :6] + STEP_FACTOR**2 * located.covariance
        adrift = last.adrift if self.map.is_settled else observation.located.adrift
        return KnownPose(located.camera_from_map, covariance, located.covariance, adrift)

    def seen_points(
        self, observation: Observation, camera_from_map: NDArray[np.float64]
    ) -> SeenPoints:
        """Return the points that a frame sees and whose depth is known."""
        found, local, sigma = self._known_points(observation, camera_from_map)
        return SeenPoints(observation.view.pixels[found], local[:, 2], sigma)

    def points_beside(
        self,
        observation: Observation,
        other_from_map: NDArray[np.float64],
        intrinsics: NDArray[np.float64],
    ) -> SeenPoints:
        """Return the points of a frame, of known depth, in another camera that stands beside it.

        Args:
            observation: of the frame.
            other_from_map: (4, 4) of the other camera.
            intrinsics: (3, 3) of its view.
        """
        _, local, sigma = self._known_points(observation, other_from_map)
        pixels = local @ intrinsics.T
        return SeenPoints(pixels[:, :2] / pixels[:, 2:], local[:, 2], sigma)

    def _known_points(
        self, observation: Observation, camera_from_map: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return which points of a frame have a known depth before a camera.

        Returns:
            (N,) their places in the frame's tracks; (N, 3) in the camera; and (N,) standard
            deviations of the depths' logarithms.
        """
        assert self.map is not None
        index, found = self.map.points.find(observation.view.tracks.ids)
        points = self.map.points.take(index)
        local = points.positions @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
        # The distance from where it was first seen, as uncertain as the depth from here.
        sigma = points.sigma / points.inverse_distance
        good = (local[:, 2] > 0) & (sigma <= _MAX_DEPTH_SIGMA)
        return np.flatnonzero(found)[good], local[good], sigma[good]

    def moving_pixels(self, observation: Observation) -> NDArray[np.float64]:
        """Return the pixels (N, 2) in a frame's view of points that move by themselves."""
        assert self.map is not None
        tracked = observation.view
        return tracked.pixels[self.map.disagree(observation.located, tracked.tracks)]

    def followed_points(
        self, observation: Observation, camera_from_map: NDArray[np.float64], width: int
    ) -> FollowedPoints:
        """Return the points of a frame in its view, and where the map puts them.

        Args:
            observation: of the frame.
            camera_from_map: (4, 4).
            width: columns of the view.
        """
        assert self.map is not None
        tracked = observation.view
        index, found = self.map.points.find(tracked.tracks.ids)
        points = self.map.points.take(index)
        local = points.positions @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
        in_front = local[:, 2] > 0
        rays = local[in_front, :2] / local[in_front, 2:]
        # Beside a distorted view this holds for small differences, which is what it is for.
        focal = tracked.tracks.focal * width / tracked.width
        pixels = tracked.pixels[found][in_front]
        off = focal * (rays - tracked.tracks.rays[found][in_front])
        return FollowedPoints(pixels.astype(np.float32), (pixels + off).astype(np.float32))
