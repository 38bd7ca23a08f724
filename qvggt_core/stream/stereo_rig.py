"""A rig's other cameras as a measure of distances, and so of the map's unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.frame import Frame
from qvggt_core.stream.known_lengths import LengthRatio
from qvggt_core.stream.map_points import MeasuredPoints, Points
from qvggt_core.stream.metric_scale import BASELINE
from qvggt_core.stream.stereo_points import StereoPair
from qvggt_core.stream.tracks import Tracks

_LEAST_BASELINE_M = 1e-3
# So many measurements follow each other; later ones come with keyframes, or after so long.
_AT_FIRST, _PERIOD_NS = 6, 1_000_000_000
_FEWEST = 20
_ROBUST = 3.0
# What an adjustment leaves of points that move along with their tracks.
_LEAST_SIGMA = 0.002
# An offset of all inverse depths counts from so many standard deviations.
_CLEAR_OFFSET = 3.0


class StereoRig:
    """Measures the distances of points that are followed, by the rig's other cameras.

    Attributes:
        problem: why it does not, for an operator; empty if it does or nothing is known yet.
        is_contradicted: whether that is because images have a camera elsewhere than it is known
            to be, so that no length of the rig is to be believed.
    """

    def __init__(self) -> None:
        """Start without knowing where any camera is."""
        self.problem, self.is_contradicted = "", False
        self._other_from_first: dict[str, NDArray[np.float64]] = {}
        self._pairs: dict[str, tuple[tuple[object, ...], StereoPair]] = {}
        self.begin_map()

    def begin_map(self) -> None:
        """Measure at first as often as images come."""
        self._count = 0
        self._last_ns = 0

    def set_extrinsics(self, source: str, other_from_first: NDArray[np.float64]) -> None:
        """Take where a camera sits: a transform (4, 4) in metres from the first one's axes."""
        known = np.isfinite(other_from_first).all()
        if known and np.linalg.norm(other_from_first[:3, 3]) >= _LEAST_BASELINE_M:
            self._other_from_first[source] = np.asarray(other_from_first, np.float64)
            self._pairs.pop(source, None)

    def first_from(self, source: str) -> NDArray[np.float64] | None:
        """Return where a camera sits on the rig (4, 4) in metres, None if it is not known."""
        found = self._other_from_first.get(source)
        return None if found is None else inverse(found)

    def is_due(self, stamp_ns: int) -> bool:
        """Return whether a frame that is no keyframe should be measured."""
        return self._count < _AT_FIRST or abs(stamp_ns - self._last_ns) >= _PERIOD_NS

    def measure(self, frames: Sequence[Frame], tracks: Tracks) -> MeasuredPoints | None:
        """Return the distances of points in the first frame, by the camera that shows most.

        Args:
            frames: of the rig at one time, the first camera's first.
            tracks: points in the first frame.
        """
        first = frames[0]
        best: MeasuredPoints | None = None
        problems, contradicted = [], []
        for other in frames[1:]:
            pair = self._pair(first.camera, other)
            found: MeasuredPoints | str = (
                pair if isinstance(pair, str) else pair.measure(first.image, other.image, tracks)
            )
            if isinstance(found, str):
                problems.append(f"{other.source}: {found}")
                contradicted.append(not isinstance(pair, str) and pair.is_contradicted)
            elif best is None or len(found.ids) > len(best.ids):
                best = found
        self.problem = "" if best is not None else "; ".join(problems)
        self.is_contradicted = best is None and any(contradicted)
        if best is not None:
            self._count += 1
            self._last_ns = first.stamp_ns
        return best

    def _pair(self, first: Camera | None, other: Frame) -> StereoPair | str:
        transform = self._other_from_first.get(other.source)
        if transform is None:
            return "where it sits is not known: no transform in TF, no baseline in CameraInfo's P"
        if first is None or other.camera is None:
            return "one of the two cameras has no CameraInfo"
        key = (first.key, other.camera.key)
        known = self._pairs.get(other.source)
        if known is None or known[0] != key:
            known = self._pairs[other.source] = (key, StereoPair(first, other.camera, transform))
        return known[1].problem or known[1]


def measured_unit(
    measured: MeasuredPoints, points: Points, camera_from_map: NDArray[np.float64]
) -> LengthRatio | None:
    """Return the length of a map's unit by measured distances; None where there are too few.

    Args:
        measured: distances from a camera.
        points: of the map.
        camera_from_map: (4, 4) of that camera.
    """
    index, found = points.find(measured.ids)
    seen = points.take(index)
    local = seen.positions @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    distance = np.linalg.norm(local, axis=1)
    per_metre, sigma = measured.inverse_distance[found], measured.sigma[found]
    known = (distance > 0.0) & (seen.sigma < 0.5 * seen.inverse_distance)
    if np.count_nonzero(known) < _FEWEST:
        return None
    stretch = measured.stretch[found][known]
    per_metre, sigma, distance = per_metre[known], sigma[known], distance[known]
    log_ratio = -np.log(per_metre * distance)
    weights = (per_metre / sigma) ** 2
    agrees = _near_most(log_ratio, 1.0 / np.sqrt(weights))
    if np.count_nonzero(agrees) < max(_FEWEST, 0.5 * len(agrees)):
        return None
    log_ratio, weights = log_ratio[agrees], weights[agrees]
    mean = float(weights @ log_ratio / weights.sum())
    spread = float(weights @ (log_ratio - mean) ** 2 / len(weights))
    noise = float(np.sqrt(max(1.0, spread) / weights.sum()))
    offset = _offset(
        stretch[agrees] * per_metre[agrees],
        stretch[agrees] / distance[agrees],
        stretch[agrees] * sigma[agrees],
    )
    common = float(np.hypot(measured.common, offset))
    share = common * float(weights @ (1.0 / (stretch * per_metre)[agrees]) / weights.sum())
    return LengthRatio(BASELINE, float(np.exp(mean)), float(np.hypot(noise, _LEAST_SIGMA)), share)


def _near_most(values: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which values (N,) agree with their median, as far as they are known."""
    off = np.abs(values - np.median(values)) / sigma
    return off <= _ROBUST * max(1.0, 1.4826 * float(np.median(off)))


def _offset(
    measured: NDArray[np.float64], known: NDArray[np.float64], sigma: NDArray[np.float64]
) -> float:
    """Return by how much inverse depths (N,) are off alike beside a factor, 0 if that is not clear.

    A camera that is turned from what its transform has adds to them all; what the map knows by
    its own motion has no such part.
    """
    columns = np.column_stack([known, np.ones(len(known))]) / sigma[:, None]
    normal = columns.T @ columns
    if np.linalg.cond(normal) > 1e12:
        return 0.0
    covariance = np.linalg.inv(normal)
    offset = float((covariance @ columns.T @ (measured / sigma))[1])
    return offset if abs(offset) > _CLEAR_OFFSET * np.sqrt(covariance[1, 1]) else 0.0
