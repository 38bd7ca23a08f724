"""The part of the map around the camera that is known from tracks: keyframes and points.

A sliding-window visual odometry as in the field's monocular systems: every frame's pose from the
points (resection), new points with every keyframe, and bundle adjustment of the last keyframes
with those before them fixed.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import exactly_rigid, inverse
from qvggt_core.stream.adjustment import Adjusted, adjust
from qvggt_core.stream.founding import FoundingViews, founding_views, misfit, path_length
from qvggt_core.stream.map_keyframes import (
    Keyframe,
    agreement,
    bundle_of,
    image_motion,
    last_step,
    pose_after_turn,
    ray_sigma,
    scaled_pose,
    take_covariances,
    turned_since,
)
from qvggt_core.stream.map_points import MeasuredPoints, Points
from qvggt_core.stream.resection import (
    OUTLIER,
    Resection,
    Sighting,
    resect,
    resect_again,
    residuals,
    variance_shown,
)
from qvggt_core.stream.tracks import Tracks

# Keyframes that are adjusted, and those before them that hold the gauge.
_FREE = 10
_HELD = 10
_MIN_POINTS = 12
_MIN_SHARE = 0.5
# Of all points that were followed from the image before, the map knows this share at least, or what
# it knows may be something that moves by itself; in scenes that stand still it is a quarter.
_MIN_OF_FOLLOWED = 0.1
# Where fewer of the points agree on a pose, those that so many keyframes have seen may agree on
# another: if so many more of them do, the others are something that moves by itself.
_UNANIMOUS = 0.8
_PROVEN = 3
_OUTVOTED = 0.2
# Points whose distance is known this well, as a share, distinguish a motion from a turn.
_KNOWN = 0.2
_MIN_KNOWN = 30
# Of a point without any parallax, the distance is known by a factor of about two.
_UNKNOWN = 0.7
# The same of a founded map's points: there what they share with each other counts.
_FOUNDED = 20.0
# A turn that explains what is seen may still be a motion past things that are far away.
_TURN_ADRIFT = 0.1
# After so many keyframes more, whether other views would found the map better is looked at anew.
_TO_REVIEW = (3, 5)
_WORTH_A_CHANGE = 0.92
# Misfit beyond which no map is founded: something that moves by itself may be the larger part. It
# is 0.06 to 0.1 in scenes that stand still, 0.23 where a tenth of the image moves.
_DISPUTED = 0.33
# Keyframes after founding until which the map may turn out to be misread.
_TO_SETTLE = 6
_BAD_SHARE = 0.4
# The next keyframes go on: on kitchen and on synthetic flights six steps gave the same errors.
_ITERATIONS = 3


@dataclass(frozen=True)
class Located:
    """Where a frame was taken.

    Attributes:
        camera_from_map: (4, 4).
        ids: (N,) of the points that were looked for.
        agrees: (N,) which of them lie where the pose says.
        is_lost: whether the pose is not known: it is then that of the frame before.
        covariance: (6, 6) of rotation and translation in the camera's frame, the map taken as
            exact.
        only_turned: whether a turn since the last keyframe explains all that was seen.
        adrift: see `Keyframe`.
    """

    camera_from_map: NDArray[np.float64]
    ids: NDArray[np.int64]
    agrees: NDArray[np.bool_]
    is_lost: bool = False
    covariance: NDArray[np.float64] = field(default_factory=lambda: np.zeros((6, 6)))
    only_turned: bool = False
    adrift: float = 0.0


class LocalMap:
    """Keyframes and points of one map segment.

    Attributes:
        points: what is known of the scene.
        keyframes: the newest last.
        is_founded: whether two views with parallax have confirmed the map; before, distances are
            those of the prior.
        is_measured: whether measured distances founded it: its unit is the metre, about.
        outliers: numbers of points that move otherwise than the scene does.
    """

    def __init__(
        self, tracks: Tracks, camera_from_map: NDArray[np.float64], distance: float = 1.0
    ) -> None:
        """Begin with one view.

        Args:
            tracks: what it sees.
            camera_from_map: (4, 4) its pose.
            distance: how far away things are in general, in the map's unit.
        """
        self.points = Points()
        self.keyframes = [Keyframe(camera_from_map, tracks)]
        self.is_founded = False
        self.is_measured = False
        self._pose = camera_from_map
        self._motion = np.eye(4)
        self._adrift = 0.0
        self._since_founding = 0
        self._last = tracks
        self.outliers: set[int] = set()
        self._add_points(self.keyframes[0], np.ones(len(tracks.ids), bool), 1.0 / distance)

    @property
    def is_settled(self) -> bool:
        """Whether what founded the map has stood for a while: two views may be misread."""
        return self.is_founded and self._since_founding >= _TO_SETTLE

    def found_by(self, measured: MeasuredPoints) -> None:
        """Take distances of the points that the only keyframe sees; they found the map.

        Of the others, distances are like theirs until motion shows them.
        """
        usual = float(np.median(measured.inverse_distance))
        for name, share in (("inverse_distance", 1.0), ("prior", 1.0), ("sigma", _UNKNOWN)):
            getattr(self.points, name)[:] = share * usual
        self.points.prior_sigma[:] = _FOUNDED * usual
        self.points.measure(measured)
        self.keyframes[-1].measured = measured
        self.is_founded = self.is_measured = True
        self._since_founding = _TO_SETTLE

    @property
    def _has_free_scale(self) -> bool:
        """Whether an adjustment may change the unit of poses that went out: only one pose holds.

        Measured distances hold it too.
        """
        is_young = self.is_founded and len(self.keyframes) <= _FREE + 1
        return is_young and not self.is_measured

    def locate(self, tracks: Tracks) -> Located:
        """Return where a frame was taken, and expect the next one to go on like this."""
        starts = [exactly_rigid(self._motion @ self._pose), self._pose]
        if not self.is_founded:
            # What moves by itself may look as if the camera had not turned.
            starts += turned_since(self._last, tracks, self._pose)
        located, resection = self._resected(tracks, starts)
        if not self.is_founded:
            share = _TURN_ADRIFT if located.only_turned else 1.0
            self._adrift += max(
                share * image_motion(self._last, tracks),
                # What disagrees may be the scene, and what agrees something that moves in it.
                image_motion(
                    self._last, tracks.take(~np.isin(tracks.ids, located.ids[located.agrees]))
                ),
            )
        self._last = tracks
        if located.is_lost or resection is None:
            self._motion = np.eye(4)
            return located
        self._motion = located.camera_from_map @ inverse(self._pose)
        self._pose = located.camera_from_map
        wrong = located.ids[~located.agrees]
        self.outliers.update(wrong.tolist())
        index, _ = self.points.find(wrong)
        self._drop(index)
        return replace(located, adrift=self._adrift)

    def disagree(self, located: Located, tracks: Tracks) -> NDArray[np.bool_]:
        """Return which points of a located frame move otherwise than the scene does."""
        wrong = {*self.outliers, *located.ids[~located.agrees].tolist()}
        return np.isin(tracks.ids, np.fromiter(wrong, np.int64, len(wrong)))

    def relocate(self, tracks: Tracks, start: NDArray[np.float64]) -> Located:
        """Return where a frame was taken by what is known now, without consequences."""
        return self._resected(tracks, [start])[0]

    def _resected(
        self, tracks: Tracks, starts: list[NDArray[np.float64]]
    ) -> tuple[Located, Resection | None]:
        index, found = self.points.find(tracks.ids)
        ids = tracks.ids[found]
        if len(index) < _MIN_POINTS:
            return Located(self._pose, ids, np.zeros(len(ids), bool), is_lost=True), None
        seen = self.points.take(index)
        sighting = Sighting(seen, tracks.rays[found], ray_sigma(tracks.focal))
        result = resect(sighting, starts)
        share = result.share
        if share < _UNANIMOUS and self.is_founded:
            proven = self._are_proven(ids)
            if np.count_nonzero(proven) >= _MIN_KNOWN:
                other, of_proven = resect_again(sighting, proven, starts)
                if of_proven > np.mean(result.agrees[proven]) + _OUTVOTED:
                    result, share = other, of_proven
        agrees = result.agrees
        followed = np.isin(tracks.ids, self._last.ids, assume_unique=True)
        fewest = max(_MIN_POINTS, _MIN_OF_FOLLOWED * np.count_nonzero(followed))
        if np.count_nonzero(agrees) < fewest or share < _MIN_SHARE:
            return Located(self._pose, ids, agrees, is_lost=True), None
        known = np.count_nonzero(seen.sigma <= _KNOWN * seen.inverse_distance)
        turned = None
        if known < _MIN_KNOWN:
            moving = [*self.outliers, *ids[~agrees].tolist()]
            turned = pose_after_turn(self.keyframes, tracks, moving)
        pose = result.camera_from_map if turned is None else turned
        located = Located(
            pose, ids, agrees, covariance=result.covariance, only_turned=turned is not None
        )
        return located, result

    def _are_proven(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which points several keyframes have seen.

        Where many points disagree, something moves by itself, and its points may outnumber the
        scene's: those that it brought are none of these.
        """
        seen = np.concatenate([keyframe.tracks.ids for keyframe in self.keyframes])
        numbers, count = np.unique(seen, return_counts=True)
        return np.isin(ids, numbers[count >= _PROVEN])

    def add_keyframe(
        self, tracks: Tracks, located: Located, measured: MeasuredPoints | None = None
    ) -> None:
        """Append the frame that was located last; adjust the last keyframes and their points.

        Args:
            tracks: its points.
            located: where it was taken.
            measured: distances of its points, None without.
        """
        last = self.keyframes[-1]
        keyframe = Keyframe(
            located.camera_from_map,
            tracks,
            located.only_turned,
            adrift=located.adrift,
            measured=measured,
        )
        self.keyframes.append(keyframe)
        _, known = self.points.find(last.tracks.ids)
        new = ~known & np.isin(last.tracks.ids, tracks.ids)
        new &= ~np.isin(last.tracks.ids, np.fromiter(self.outliers, np.int64))
        self._add_points(last, new, self._usual_inverse_distance(keyframe))
        if self.is_measured and last.measured is not None:
            self.points.measure(
                last.measured.take(np.isin(last.measured.ids, last.tracks.ids[new]))
            )
        if self.is_founded:
            self._leave_out_strangers(last, keyframe, last.tracks.ids[new])
        self._since_founding += self.is_founded
        length = path_length(self.keyframes) if self._has_free_scale else None
        if not self.is_founded or self._since_founding in _TO_REVIEW:
            self._try_to_found()
        self.refine()
        if length is not None:
            self.rescale(length / path_length(self.keyframes))
        self._forget()
        self._pose = self.keyframes[-1].camera_from_map

    def _leave_out_strangers(
        self, last: Keyframe, keyframe: Keyframe, new: NDArray[np.int64]
    ) -> None:
        """Drop new points that move otherwise than the scene does, if no motion explains most.

        A few are the adjustment's to find; it would follow the many of something that moves.
        """
        if agreement(last.tracks, keyframe.tracks) >= _UNANIMOUS:
            return
        index, found = self.points.find(keyframe.tracks.ids)
        sigma = ray_sigma(keyframe.tracks.focal)
        sighting = Sighting(self.points.take(index), keyframe.tracks.rays[found], sigma)
        ids = self.points.ids[index]
        is_far_off = residuals(sighting, keyframe.camera_from_map) >= OUTLIER
        wrong = np.isin(ids, new) & is_far_off
        self.outliers.update(ids[wrong].tolist())
        self._drop(index[wrong])

    def refine(self, iterations: int = _ITERATIONS) -> None:
        """Adjust the last keyframes and the points that they see."""
        if len(self.keyframes) < 2:
            return
        keyframes = self.keyframes[-(_FREE + _HELD) :]
        is_free = np.zeros(len(keyframes), bool)
        is_free[-min(_FREE, len(keyframes) - 1) :] = True
        index, bundle = bundle_of(self.points, keyframes, is_free)
        if len(bundle.rays) < 3 * _MIN_POINTS:
            return
        adjusted = adjust(bundle, iterations, with_covariance=True)
        for keyframe, pose in zip(keyframes, adjusted.bundle.camera_from_map, strict=True):
            keyframe.camera_from_map = pose
        shown = variance_shown((adjusted.bundle.residuals() ** 2).sum(axis=1))
        keyframes[-1].step = shown * last_step(keyframes, adjusted.covariance)
        depth = 1.0 / float(np.median(adjusted.bundle.points.inverse_distance))
        take_covariances(keyframes, is_free, shown * adjusted.covariance, depth, self.is_settled)
        self._take(index, adjusted)

    def rescale(self, factor: float) -> None:
        """Multiply all lengths about the first keyframe's centre."""
        centre = inverse(self.keyframes[0].camera_from_map)[:3, 3]
        points = self.points
        points.origins = centre + factor * (points.origins - centre)
        for name in ("inverse_distance", "sigma", "prior", "prior_sigma"):
            setattr(points, name, getattr(points, name) / factor)
        for keyframe in self.keyframes:
            keyframe.rescale(centre, factor)
        self._pose = scaled_pose(self._pose, centre, factor)
        self._motion = self._motion.copy()
        self._motion[:3, 3] *= factor

    def expect(
        self, ids: NDArray[np.int64], inverse_distance: NDArray[np.float64], share: float
    ) -> None:
        """Set what something else than the tracks gives for points.

        Args:
            ids: (N,) of points.
            inverse_distance: (N,) as in `Points`.
            share: standard deviation as a share of the inverse distance.
        """
        index, found = self.points.find(ids)
        expected = inverse_distance[found]
        self.points.prior[index] = expected
        self.points.prior_sigma[index] = share * expected

    def _take(self, index: NDArray[np.int64], adjusted: Adjusted) -> None:
        """Keep the points as adjusted, and drop those that disagree with what was seen."""
        bundle, points = adjusted.bundle, self.points
        points.directions[index] = bundle.points.directions
        points.inverse_distance[index] = bundle.points.inverse_distance
        points.sigma[index] = adjusted.point_sigma
        wrong = np.linalg.norm(bundle.residuals(), axis=1) > OUTLIER
        count = np.bincount(bundle.point, minlength=len(index))
        bad = np.bincount(bundle.point, wrong, len(index)) > _BAD_SHARE * count
        self._drop(index[bad])

    def _drop(self, index: NDArray[np.int64]) -> None:
        kept = np.ones(len(self.points), bool)
        kept[index] = False
        self.points = self.points.take(kept)

    def _add_points(
        self, keyframe: Keyframe, new: NDArray[np.bool_], inverse_distance: float
    ) -> None:
        map_from_camera = inverse(keyframe.camera_from_map)
        rays = keyframe.tracks.rays[new]
        directions = np.column_stack([rays, np.ones(len(rays))]) @ map_from_camera[:3, :3].T
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        expected = np.full(len(rays), inverse_distance)
        self.points = self.points.merged(
            Points(
                keyframe.tracks.ids[new],
                np.tile(map_from_camera[:3, 3], (len(rays), 1)),
                directions,
                expected,
                _UNKNOWN * expected,
                expected.copy(),
                (_FOUNDED if self.is_founded else _UNKNOWN) * expected,
            )
        )

    def _usual_inverse_distance(self, keyframe: Keyframe) -> float:
        """Return the median of the points that a keyframe sees."""
        index, _ = self.points.find(keyframe.tracks.ids)
        if len(index) == 0:
            return float(np.median(self.points.inverse_distance)) if len(self.points) else 1.0
        pose = keyframe.camera_from_map
        local = self.points.take(index).positions @ pose[:3, :3].T + pose[:3, 3]
        return float(1.0 / np.median(np.linalg.norm(local, axis=1)))

    def _try_to_found(self) -> None:
        """Let two views with parallax decide on the poses and points of the map so far.

        Two views alone may be explained badly (a plane, little parallax), and so may be a descent
        from equal distances: what explains all views so far best, is right.
        """
        ways = founding_views(self.keyframes)
        # A founded map is looked at anew as a whole or not at all.
        if not ways or (self.is_founded and ways[0].first > 0):
            return
        as_it_is = copy(self)
        as_it_is.keyframes = [
            # What looked like turns until now were motions.
            replace(keyframe, only_turned=keyframe.only_turned and number < ways[0].first)
            for number, keyframe in enumerate(self.keyframes)
        ]
        as_it_is.points = self.points.take(np.arange(len(self.points)))
        as_it_is.refine(iterations=12)
        maps = [as_it_is, *(self._founded_by(views) for views in ways)]
        first = min(len(each.keyframes) for each in maps)
        misfits = [misfit(each.points, each.keyframes[-first:]) for each in maps]
        best = maps[int(np.argmin(misfits))]
        if min(misfits) > _DISPUTED:
            return
        # Poses that went out stay where they were: a change must be worth it.
        if self.is_founded and min(misfits) > _WORTH_A_CHANGE * misfits[0]:
            return
        self.points, self.keyframes, self.outliers = best.points, best.keyframes, best.outliers
        self.is_founded = True
        # Equal distances, as many points expect them, would go on pulling at the poses.
        self.points.prior_sigma = np.maximum(self.points.prior_sigma, _FOUNDED * self.points.prior)
        self.refine(iterations=12)

    def _founded_by(self, views: FoundingViews) -> LocalMap:
        """Return this map as two views would have it, in its unit as far as that is known."""
        index, found = self.points.find(views.ids)
        pose = self.keyframes[views.first].camera_from_map
        if len(index) < _MIN_POINTS:
            index, found = np.arange(len(self.points)), np.ones(len(views.ids), bool)
        local = self.points.take(index).positions @ pose[:3, :3].T + pose[:3, 3]
        unit = float(
            np.median(np.linalg.norm(local, axis=1))
            / np.median(np.linalg.norm(views.points[found], axis=1))
        )
        other = copy(self)
        other.keyframes = [replace(keyframe) for keyframe in self.keyframes[views.first :]]
        # What disagreed with wrong poses may agree with these.
        other.outliers = set()
        other._found(views.ids, unit * views.points)
        return other

    def _found(self, ids: NDArray[np.int64], points: NDArray[np.float64]) -> None:
        """Begin anew with points (N, 3) in the camera of the first keyframe, which stays."""
        first = self.keyframes[0]
        map_from_camera = inverse(first.camera_from_map)
        distance = np.linalg.norm(points, axis=1)
        usual = np.full(len(points), 1.0 / np.median(distance))
        self.points = Points(
            ids,
            np.tile(map_from_camera[:3, 3], (len(points), 1)),
            points / distance[:, None] @ map_from_camera[:3, :3].T,
            1.0 / distance,
            0.3 / distance,
            usual,
            2.0 * usual,
        )
        pose = first.camera_from_map
        for keyframe in self.keyframes[1:]:
            keyframe.camera_from_map = self.relocate(keyframe.tracks, pose).camera_from_map
            pose = keyframe.camera_from_map
        self.refine(iterations=12)
        for before, keyframe in pairwise(self.keyframes):
            _, known = self.points.find(before.tracks.ids)
            new = ~known & np.isin(before.tracks.ids, keyframe.tracks.ids)
            self._add_points(before, new, self._usual_inverse_distance(keyframe))
        self.refine(iterations=12)

    def _forget(self) -> None:
        """Leave out what no kept keyframe sees."""
        self.keyframes = self.keyframes[-(_FREE + _HELD) :]
        seen = np.unique(np.concatenate([keyframe.tracks.ids for keyframe in self.keyframes]))
        self.points = self.points.take(np.isin(self.points.ids, seen, assume_unique=True))
        newest = set(self.keyframes[-1].tracks.ids.tolist())
        self.outliers &= newest
