"""Where a camera is in a map that was saved: the work of localisation, beside that of loops.

The map is not changed. A place counts once several keyframes in a row say the same; where two
places of the map look alike, or nothing is recognised, the camera stays outside the map.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.geometry.similarities import (
    adjoint_of,
    inverse_similarity,
    motion_of,
    moved_by,
    rigid,
    rotation_of,
    scale_of,
    similarity,
)
from qvggt_core.stream.corrected_path import KeyframeCorrections
from qvggt_core.stream.frame import LoopStatus
from qvggt_core.stream.keyframe_placement import WORLD, NewKeyframe, Placement, corners_of
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.loop_verification import Corners, are_the_same, compare
from qvggt_core.stream.metric_scale import SAVED_MAP
from qvggt_core.stream.place_index import PlaceIndex, place_descriptor
from qvggt_core.stream.pose_graph import OUTLIER_SQUARE
from qvggt_core.stream.saved_map import SavedMap

_COMPARED, _MOST_KEPT = 4, 4000
# So many keyframes of the last few have to say the same.
_AGREEING, _WITHIN = 3, 5
# Another place of the map: turned by more radians, or away by more depths.
_OTHER_TURN, _OTHER_SHIFT = float(np.radians(45.0)), 1.0
# Beyond this a keyframe is left out; metres of two flights differ by no more (log).
_IMPLAUSIBLE, _SAME_METRE = 4.0 * OUTLIER_SQUARE, 0.3


@dataclass(frozen=True)
class _Sighting:
    """What one keyframe says of where the camera is.

    Attributes:
        number: of the keyframe.
        odometry_from_camera: (4, 4).
        map_from_camera: (4, 4) similarity, map units per unit of odometry.
        covariance: (7, 7) of small motions of the camera.
        agreeing: corners that agree.
        depth: usual one, in odometry's unit.
    """

    number: int
    odometry_from_camera: NDArray[np.float64]
    map_from_camera: NDArray[np.float64]
    covariance: NDArray[np.float64]
    agreeing: int
    depth: float

    @property
    def map_from_odometry(self) -> NDArray[np.float64]:
        """(4, 4) similarity by this keyframe alone."""
        return self.map_from_camera @ inverse(self.odometry_from_camera)

    def off(self, other: _Sighting) -> NDArray[np.float64]:
        """Return the similarity (4, 4) by which another one is off, in the other's camera."""
        expected = self.map_from_odometry @ other.odometry_from_camera
        return inverse_similarity(expected) @ other.map_from_camera

    def agrees(self, other: _Sighting) -> bool:
        """Return whether another one says the same."""
        return are_the_same(self.off(other), other.depth)


@dataclass
class _Passed:
    """A keyframe of this flight, and where the map had its odometry when it came."""

    stamp_ns: int
    segment: int
    map_from_odometry: NDArray[np.float64] | None


class MapLocaliser:
    """Finds keyframes in a saved map; takes the place of a `LoopFinder`.

    Lengths in metres on both sides are held against each other. Without metres on either side, the
    map takes odometry's unit where the camera is, as loops have it.

    Attributes:
        saved: the map.
        placement: None before the first localisation.
        status: of all this, as it was after the last keyframe.
        gauge: how often the unit or the axes of a segment changed.
    """

    def __init__(self, saved: SavedMap) -> None:
        """Take a map."""
        self.saved = saved
        self.placement: Placement | None = None
        self.gauge = 0
        self._index = PlaceIndex()
        for row in saved.places:
            self._index.append(row)
        self._rejected: Counter[str] = Counter()
        self._accepted = 0
        self._passed: list[_Passed] = []
        self._begin(-1)
        self.status = self._status()

    def _begin(self, segment: int) -> None:
        """Begin a segment that has no relation to the map yet."""
        self._segment, self._looked, self._found_after = segment, 0, 0
        self._now: NDArray[np.float64] | None = None
        self._recent: list[_Sighting] = []
        self._length: LengthRatio | None = None
        # (7, 7) what was added since the last localisation, as of a small motion of odometry.
        self._added = np.zeros((7, 7))

    @property
    def map_from_odometry(self) -> NDArray[np.float64] | None:
        """(4, 4) similarity with the map's unit, None while the camera is not localised."""
        return self._now

    def take(self, keyframe: NewKeyframe) -> None:
        """Look where a keyframe is in the map."""
        if keyframe.segment != self._segment:
            self._begin(keyframe.segment)
        self._looked += 1
        moved = adjoint_of(keyframe.geometry.map_from_camera)
        self._added = self._added + moved @ keyframe.step @ moved.T
        self._recent = [each for each in self._recent if each.number > self._looked - _WITHIN]
        sighting = self._sighting(keyframe)
        if sighting is not None:
            self._consider(sighting, keyframe)
        stamp = keyframe.geometry.view.stamp_ns
        self._passed = self._passed[-_MOST_KEPT:]
        self._passed.append(_Passed(stamp, self._segment, self._now))
        if self._now is not None:
            self._place(keyframe)
        self.status = self._status()

    def settle(self) -> None:
        """Nothing waits to be solved: each keyframe is placed by itself."""

    def rebase(self, segment: int, factor: float, rotation: NDArray[np.float64]) -> None:
        """Change the unit and the axes of a segment's odometry; see `LoopFinder.rebase`."""
        change = similarity(factor, rotation, np.zeros(3))
        back = inverse_similarity(change)
        for each in self._passed:
            if each.segment == segment and each.map_from_odometry is not None:
                each.map_from_odometry = each.map_from_odometry @ back
        if segment == self._segment:
            self._now = None if self._now is None else self._now @ back
            self._recent = []
            moved = adjoint_of(change)
            self._added = moved @ self._added @ moved.T
        self.placement, self.gauge = None, self.gauge + 1

    def _status(self) -> LoopStatus:
        name = self.saved.name
        found = f"not localised in map {name} yet"
        if self._now is not None:
            found = f"localised in map {name} after {self._found_after} keyframes"
        count = len(self.saved.keyframes)
        return LoopStatus(
            count,
            self._accepted,
            dict(self._rejected),
            localisation=found,
            is_in_loaded_map=self._now is not None,
        )

    def _sighting(self, keyframe: NewKeyframe) -> _Sighting | None:
        """Return where the camera is by this keyframe, if the map has one such place."""
        if not np.isfinite(keyframe.geometry.depth).any():
            self._rejected["the keyframe has no depth"] += 1
            return None
        corners = corners_of(keyframe)
        wanted = place_descriptor(keyframe.tokens, keyframe.geometry.view.image)
        everywhere = np.ones(len(self.saved.keyframes), bool)
        found = self._compared(
            keyframe, corners, self._index.nearest(wanted, everywhere, _COMPARED)
        )
        if not found:
            return None
        best = max(found, key=lambda each: each.agreeing)
        if self._now is None:
            other = self._index.nearest(wanted, self._is_elsewhere(best), _COMPARED)
            found += self._compared(keyframe, corners, other)
        if not all(best.agrees(each) for each in found):
            self._rejected["places of the map look alike"] += 1
            return None
        differs = abs(np.log(scale_of(best.map_from_camera)))
        if self.saved.is_metric and np.isfinite(keyframe.scale_sigma) and differs > _SAME_METRE:
            self._rejected["the map has other metres"] += 1
            return None
        return best

    def _compared(
        self, keyframe: NewKeyframe, corners: Corners, numbers: NDArray[np.int64]
    ) -> list[_Sighting]:
        """Return where the camera is by those keyframes of the map that see the same."""
        depth = float(np.nanmedian(keyframe.geometry.depth))
        found = []
        for number in numbers:
            same = compare(self.saved.keyframes[number].corners, corners)
            if isinstance(same, str):
                self._rejected[same] += 1
                continue
            found.append(
                _Sighting(
                    self._looked,
                    keyframe.geometry.map_from_camera,
                    self.saved.poses[number] @ same.first_from_second,
                    same.covariance,
                    same.agreeing,
                    depth,
                )
            )
        return found

    def _is_elsewhere(self, found: _Sighting) -> NDArray[np.bool_]:
        """Return which keyframes of the map (N,) see another place."""
        poses, here = self.saved.poses, found.map_from_camera
        away = np.linalg.norm(poses[:, :3, 3] - here[:3, 3], axis=1)
        turns = rotation_angle(rotation_of(here).T @ poses[:, :3, :3])
        depth = found.depth * float(scale_of(here))
        return (away > _OTHER_SHIFT * depth) | (turns > _OTHER_TURN)

    def _consider(self, sighting: _Sighting, keyframe: NewKeyframe) -> None:
        """Take the camera to be where enough keyframes in a row have it."""
        same = [each for each in self._recent if each.agrees(sighting)]
        self._recent.append(sighting)
        if len(same) + 1 < _AGREEING:
            return
        if self._now is not None and not self._is_plausible(sighting):
            # One of the two is wrong, and nothing says which.
            self._rejected["it contradicts the place so far"] += 1
            self._now, self._recent, self._looked = None, [], 0
            self.placement = None
            return
        if self._now is None:
            self._found_after = self._looked
        offs = [np.zeros(7), *(-motion_of(each.off(sighting)) for each in same)]
        camera = sighting.map_from_camera @ moved_by(np.mean(offs, axis=0))
        self._now = camera @ inverse(sighting.odometry_from_camera)
        self._added = np.zeros((7, 7))
        self._accepted += 1
        for each in self._passed:
            if each.segment == self._segment and each.map_from_odometry is None:
                each.map_from_odometry = self._now
        self._length = None
        if self.saved.is_metric:
            metres = float(scale_of(camera)) * keyframe.unit
            sigma = float(np.sqrt(sighting.covariance[6, 6]))
            self._length = LengthRatio(SAVED_MAP, metres, sigma)

    def _is_plausible(self, sighting: _Sighting) -> bool:
        """Return whether odometry may have drifted so far since the camera was last found."""
        assert self._now is not None
        expected = self._now @ sighting.odometry_from_camera
        off = motion_of(inverse_similarity(expected) @ sighting.map_from_camera)
        back = adjoint_of(inverse(sighting.odometry_from_camera))
        # What was found then is as uncertain as what is found now.
        covariance = back @ self._added @ back.T + 2.0 * sighting.covariance
        return bool(off @ np.linalg.solve(covariance, off) < _IMPLAUSIBLE)

    def _place(self, keyframe: NewKeyframe) -> None:
        """Put odometry where the camera was found."""
        assert self._now is not None
        pose = keyframe.geometry.map_from_camera
        factor = 1.0
        if not (self.saved.is_metric and np.isfinite(keyframe.scale_sigma)):
            factor = 1.0 / float(scale_of(self._now))
        unit = similarity(factor, np.eye(3), np.zeros(3))
        moves = [
            np.eye(4) if each.map_from_odometry is None else unit @ each.map_from_odometry
            for each in self._passed
        ]
        segments = np.array([each.segment for each in self._passed], np.int64)
        is_found = [each.map_from_odometry is not None for each in self._passed]
        placement = Placement(
            self._segment,
            WORLD,
            self.gauge,
            rigid(unit @ self._now @ pose) @ inverse(pose),
            KeyframeCorrections(
                np.array([each.stamp_ns for each in self._passed], np.int64),
                segments,
                np.where(is_found, WORLD, segments),
                np.stack(moves),
            ),
        )
        self.placement = replace(placement, length=self._length)
        self._length = None
