"""The fit of a camera's path in a map to metric positions of another source, scale and all.

A monocular map has a unit of its own, and the unit drifts. Its path, step by step, each with a
scale of its own that follows a random walk, is turned and moved onto the positions of odometry,
GPS or an altimeter by a robust Gauss-Newton descent. What else makes the two differ is estimated
with it: a constant difference of the clocks, and where the other sensor sits on the camera's body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

_ITERATIONS = 5
_STARTS = 3
# Residuals from which a position has less weight (Cauchy), in standard deviations.
_ROBUST = 2.0
_TURN_SIGMA = 3.0
_LOG_SCALE_SIGMA = 10.0
_FEWEST = 5


@dataclass(frozen=True)
class PathPiece:
    """N places of a camera, in a map and by another source, in order of time.

    Attributes:
        map_from_camera: (N, 4, 4), lengths in the map's unit.
        positions: (N, 3) of the other source in metres, in a world of its own.
        velocities: (N, 3) metres per second of the same, for a difference of the clocks.
        drift: (N - 1,) standard deviation of the change of the scale's logarithm at each step.
        readings: (N,) of how many readings each position is worth the mean.
    """

    map_from_camera: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    drift: NDArray[np.float64]
    readings: NDArray[np.float64]


@dataclass(frozen=True)
class Freedom:
    """What may differ between a map's path and the other source's.

    Attributes:
        noise: least standard deviation of one reading, metres.
        offset_s: standard deviation of the difference of the clocks; 0 for none.
        lever: standard deviation per axis, metres, of where the other sensor sits on the camera's
            body; 0 where its positions are the camera's.
        axis: (3,) along which alone positions are known, both worlds having it in common; None
            where all of a position is known and the worlds are turned against each other.
        correlated: positions next to each other have much of their error in common: so many of
            them are worth one.
    """

    noise: float = 0.01
    offset_s: float = 0.0
    lever: float = 0.0
    axis: NDArray[np.float64] | None = None
    correlated: float = 3.0


@dataclass(frozen=True)
class AlignedPath:
    """A fit.

    Attributes:
        log_scale: logarithm of metres per unit at the newest step.
        variance: of it.
        offset_s: to be added to a stamp of the map for the same instant's of the other source.
        offset_variance: of it.
        residual: root of the mean square of what is left of positions, metres.
        spread: the same of the positions about their mean, metres.
        log_scales: (N - 1,) logarithm of metres per unit at each step.
        variances: (N - 1,) of them.
        lever: (3,) metres, where the other sensor sits on the camera's body.
        rotation: (3, 3) of the source's world from the map's.
    """

    log_scale: float
    variance: float
    offset_s: float
    offset_variance: float
    residual: float
    spread: float
    log_scales: NDArray[np.float64]
    variances: NDArray[np.float64]
    lever: NDArray[np.float64]
    rotation: NDArray[np.float64]

    @property
    def is_coherent(self) -> bool:
        """Whether both paths have the same shape."""
        return self.residual < 0.2 * self.spread


def align_path(piece: PathPiece, freedom: Freedom) -> AlignedPath | None:
    """Fit a map's path to metric positions.

    Returns:
        The fit, or None where there are too few places, or one of the paths has no extent.
    """
    if len(piece.positions) < _FEWEST:
        return None
    fit = _Fit.start(piece, freedom)
    if fit is None:
        return None
    for iteration in range(_ITERATIONS):
        # The first steps are taken as if noise were what the rough start leaves.
        fit.descend(settled=iteration >= _STARTS - 1)
    return fit.result()


class _Fit:
    """Rotation, translation, log scale of each step, difference of clocks, lever."""

    def __init__(self, piece: PathPiece, freedom: Freedom, rotation: NDArray, scale: float) -> None:
        self._piece, self._freedom = piece, freedom
        self._steps = np.diff(piece.map_from_camera[:, :3, 3], axis=0)
        self._rotation = rotation
        self._log_scale = np.full(len(self._steps), np.log(scale))
        self._offset, self._lever = 0.0, np.zeros(3)
        self._shift = np.zeros(3)
        self._shift = np.median(self._residuals(), axis=0)
        self._noise = freedom.noise
        self._information = np.eye(1)

    @classmethod
    def start(cls, piece: PathPiece, freedom: Freedom) -> _Fit | None:
        """Return the fit of one similarity, from which the descent begins."""
        places, positions = piece.map_from_camera[:, :3, 3], piece.positions
        if freedom.axis is not None:
            found = _line_through(places @ freedom.axis, positions @ freedom.axis)
            return None if found is None else cls(piece, freedom, np.eye(3), found)
        similarity = _robust_similarity(places, positions)
        return None if similarity is None else cls(piece, freedom, *similarity)

    def _residuals(self) -> NDArray[np.float64]:
        """Return what is left of the positions, (N, 3) metres."""
        levers = self._piece.map_from_camera[:, :3, :3] @ self._lever
        places = (self._path() + levers) @ self._rotation.T + self._shift
        return self._piece.positions + self._offset * self._piece.velocities - places

    def _path(self) -> NDArray[np.float64]:
        scaled = np.exp(self._log_scale)[:, None] * self._steps
        return np.vstack([np.zeros(3), np.cumsum(scaled, axis=0)])

    def descend(self, *, settled: bool) -> None:
        """Take one step of Gauss and Newton."""
        residuals, jacobian = self._residuals(), self._jacobian()
        axis = self._freedom.axis
        if axis is not None:
            residuals, jacobian = residuals @ axis[:, None], axis[None, None, :] @ jacobian
        length = np.linalg.norm(residuals, axis=1) * np.sqrt(self._piece.readings)
        typical = 1.4826 * float(np.median(length)) / np.sqrt(1.0 if axis is not None else 2.4)
        self._noise = max(self._freedom.noise, typical)
        limit = _ROBUST * self._noise * (1.0 if settled else 2.0)
        weights = self._piece.readings / (1.0 + (length / limit) ** 2) / self._noise**2
        flat = jacobian.reshape(-1, jacobian.shape[-1])
        weighted = np.repeat(weights, jacobian.shape[1])[:, None] * flat
        information, gradient = flat.T @ weighted, weighted.T @ residuals.reshape(-1)
        prior, pull = self._prior()
        self._information = information + prior
        step = np.asarray(np.linalg.solve(self._information, -(gradient + pull)), np.float64)
        self._move(step)

    def _move(self, step: NDArray[np.float64]) -> None:
        self._rotation = Rotation.from_rotvec(step[:3]).as_matrix() @ self._rotation
        self._shift = self._shift + step[3:6]
        self._offset += float(step[6])
        self._lever = self._lever + step[7:10]
        self._log_scale = self._log_scale + np.clip(step[10:], -1.0, 1.0)

    def _jacobian(self) -> NDArray[np.float64]:
        """Return the derivative (N, 3, 10 + N - 1) of the residuals."""
        count, rotation = len(self._piece.positions), self._rotation
        levers = self._piece.map_from_camera[:, :3, :3] @ self._lever
        turned = (self._path() + levers) @ rotation.T
        result = np.zeros((count, 3, 10 + count - 1))
        result[:, :, :3] = _cross_matrices(turned)
        result[:, :, 3:6] = -np.eye(3)
        result[:, :, 6] = self._piece.velocities
        result[:, :, 7:10] = -rotation @ self._piece.map_from_camera[:, :3, :3]
        steps = (np.exp(self._log_scale)[:, None] * self._steps) @ rotation.T
        before = np.arange(count)[:, None] > np.arange(count - 1)[None, :]
        result[:, :, 10:] = -np.where(before[:, None, :], steps.T[None], 0.0)
        return result

    def _prior(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return information and gradient of what is expected without any position."""
        freedom, size = self._freedom, 10 + len(self._log_scale)
        sigma = np.full(10, 1e-9)
        sigma[:3] = _TURN_SIGMA if freedom.axis is None else 1e-9
        sigma[3:6] = 1e9
        sigma[6] = max(freedom.offset_s, 1e-9)
        sigma[7:] = max(freedom.lever, 1e-9)
        expected = np.concatenate([np.zeros(6), [self._offset], self._lever])
        information = np.zeros((size, size))
        gradient = np.zeros(size)
        information[range(10), range(10)] = 1.0 / sigma**2
        gradient[:10] = expected / sigma**2
        information[10, 10] += 1.0 / _LOG_SCALE_SIGMA**2
        if size > 11:
            tie = 1.0 / self._piece.drift[1:] ** 2
            one, other = np.arange(10, size - 1), np.arange(11, size)
            information[one, one] += tie
            information[other, other] += tie
            information[one, other] -= tie
            information[other, one] -= tie
            jump = tie * np.diff(self._log_scale)
            gradient[other] += jump
            gradient[one] -= jump
        return information, gradient

    def result(self) -> AlignedPath | None:
        """Return the fit; None if the numbers ran away."""
        residuals, positions = self._residuals(), self._piece.positions
        if self._freedom.axis is not None:
            residuals = residuals @ self._freedom.axis[:, None]
            positions = positions @ self._freedom.axis[:, None]
        covariance = np.linalg.inv(self._information)
        variances, of_offset = np.diag(covariance)[10:], float(covariance[6, 6])
        found = (self._log_scale[-1], variances[-1], self._offset)
        if not np.isfinite([*found, residuals.sum()]).all():
            return None
        length = np.linalg.norm(residuals, axis=1)
        typical = np.minimum(length, 3.0 * _ROBUST * self._noise)
        middle = np.median(positions, axis=0)
        return AlignedPath(
            float(self._log_scale[-1]),
            self._freedom.correlated * float(variances[-1]),
            self._offset,
            self._freedom.correlated * of_offset,
            float(np.sqrt((typical**2).mean())),
            float(np.sqrt(((positions - middle) ** 2).sum(axis=1).mean())),
            self._log_scale,
            self._freedom.correlated * variances,
            self._lever,
            self._rotation,
        )


def _cross_matrices(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrices (N, 3, 3) that multiply by a cross product with vectors (N, 3)."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    return np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)


def _robust_similarity(
    places: NDArray[np.float64], positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float] | None:
    """Return rotation and scale that take places to most of the positions (Umeyama, reweighted)."""
    weights = np.ones(len(places))
    rotation, scale = np.eye(3), 1.0
    for _ in range(_STARTS):
        weights = weights / weights.sum()
        source = places - weights @ places
        target = positions - weights @ positions
        extent = float(weights @ (source**2).sum(axis=1))
        height = float(weights @ (target**2).sum(axis=1))
        if extent <= 0.0 or height <= 0.0:
            return None
        u, values, vt = np.linalg.svd((weights[:, None] * target).T @ source)
        signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
        rotation = (u * signs) @ vt
        scale = float((values * signs).sum()) / extent
        if not np.isfinite(scale) or scale <= 0.0:
            return None
        length = np.linalg.norm(target - scale * source @ rotation.T, axis=1)
        usual = max(1.4826 * float(np.median(length)), 1e-6 * np.sqrt(height))
        weights = 1.0 / (1.0 + (length / (_ROBUST * usual)) ** 2)
    return rotation, scale


def _line_through(places: NDArray[np.float64], heights: NDArray[np.float64]) -> float | None:
    """Return the positive slope of heights over places by the median of pairs; None without one."""
    rise = heights[:, None] - heights[None, :]
    run = places[:, None] - places[None, :]
    far = np.abs(run) > 0.3 * np.ptp(places)
    if not far.any() or np.ptp(places) <= 0.0:
        return None
    slope = float(np.median(rise[far] / run[far]))
    return slope if slope > 0.0 else None
