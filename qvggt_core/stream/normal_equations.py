"""The linear system of one step of bundle adjustment, and its solution by the Schur complement.

Triggs, McLauchlan, Hartley, Fitzgibbon, "Bundle adjustment, a modern synthesis", 2000, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import bsr_matrix, csr_matrix, issparse, spmatrix

from qvggt_core.geometry.poses import inverse
from qvggt_core.stream.bundle import Bundle, Evaluation, tangents, turned
from qvggt_core.stream.map_points import pose_jacobian
from qvggt_core.stream.pose_graph import solved_sparse

# Keeps what nothing observes invertible.
_LEAST = 1e-9
# Of more cameras, each sees what few others do: most of the matrix is zero.
_MOST_DENSE = 40


class Plan:
    """Orders and indices of a bundle that stay the same over the iterations.

    Attributes:
        is_sparse: whether the system is kept without its zeros.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Sort the observations by free cameras."""
        self.free = np.flatnonzero(bundle.is_free)
        self.slots = np.full(len(bundle.is_free), -1)
        self.slots[self.free] = np.arange(len(self.free))
        slot = self.slots[bundle.camera]
        by_slot = np.argsort(slot, kind="stable")
        self.moving = by_slot[slot[by_slot] >= 0]
        self.slot = slot[self.moving]
        edges = np.arange(len(self.free) + 1)
        self.pose_bounds = np.searchsorted(self.slot, edges).tolist()
        has_more = len(bundle.turning) > 0 or bundle.log_focal_sigma > 0.0
        self.is_sparse = len(self.free) > _MOST_DENSE and not has_more


@dataclass(frozen=True)
class Normals:
    """One kind's part of the normal equations: n unknowns of size d each, uncoupled.

    Attributes:
        blocks: (n, d, d) second derivatives.
        gradient: (n, d).
    """

    blocks: NDArray[np.float64]
    gradient: NDArray[np.float64]

    def damped(self, damping: float) -> NDArray[np.float64]:
        """Return the blocks with Marquardt's factor on their diagonals."""
        result = self.blocks.copy()
        diagonal = np.arange(result.shape[1])
        result[:, diagonal, diagonal] *= 1.0 + damping
        return result


@dataclass(frozen=True)
class FocalPart:
    """The part of the normal equations of the focal length's logarithm.

    Attributes:
        block: second derivative.
        gradient: first derivative.
        by_pose: (F, 6) what couples it to the free cameras.
        by_point: (L, 3) what couples it to the points.
    """

    block: float
    gradient: float
    by_pose: NDArray[np.float64]
    by_point: NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """The normal equations: poses, the focal length if it is free, points, and what couples them.

    Attributes:
        poses: of the F free cameras.
        points: of the L points.
        coupling: (N', 6, 3) of the observations by free cameras.
        point: (N',) their points.
        slot: (N',) their cameras' places among the free ones.
        between: (6 F, 6 F) what couples poses directly; sparse where the system is to be so.
        prior: (L,) what priors add to the second derivatives by the inverse distances.
        focal: of the focal length, None where it is known.
    """

    poses: Normals
    points: Normals
    coupling: NDArray[np.float64]
    point: NDArray[np.int64]
    slot: NDArray[np.int64]
    between: NDArray[np.float64] | spmatrix
    prior: NDArray[np.float64]
    focal: FocalPart | None

    def solve(
        self, damping: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
        """Return the steps of poses (F, 6), points (L, 3) and focal length, or None for none."""
        factors = self._point_factors(damping)
        white = self._whitened_coupling(factors)
        gradient = (self.points.gradient[:, None] @ factors)[:, 0]
        right = self._gradient() - white.T @ gradient.ravel()
        try:
            found = _solved(self._reduced(white, damping), right)
        except (np.linalg.LinAlgError, RuntimeError):  # SciPy has the latter for sparse matrices
            return None
        rest = gradient - (white @ found).reshape(-1, 3)
        points = (factors @ rest[:, :, None])[:, :, 0]
        poses, focal = np.split(found, [self.poses.gradient.size])
        return -poses.reshape(-1, 6), -points, -float(focal.sum())

    def point_sigmas(self) -> NDArray[np.float64]:
        """Return the sigmas (L,) of the inverse distances, poses and focal length given."""
        return np.sqrt((self._point_factors(0.0)[:, 2] ** 2).sum(axis=1))

    def covariance(self) -> NDArray[np.float64]:
        """Return the poses' covariance (6 F, 6 F), points and focal length marginalised.

        What is expected of distances is wrong for all points alike where it is wrong: all priors
        together count as much as one. Along what nothing observes, variances are large but finite.
        """
        blocks = self.points.blocks.copy()
        blocks[:, 2, 2] -= (1.0 - 1.0 / max(len(blocks), 1)) * self.prior
        factors = _inverse_factors(blocks + _LEAST * np.eye(3))
        matrix = self._reduced(self._whitened_coupling(factors), 0.0)
        try:
            factor = cho_factor(matrix, check_finite=False)
            found: NDArray[np.float64] = cho_solve(factor, np.eye(len(matrix)))
        except np.linalg.LinAlgError:  # rounding leaves what is not observed at zero or below
            values, vectors = np.linalg.eigh(matrix)
            found = (vectors / np.maximum(values, _LEAST)) @ vectors.T
        size = self.poses.gradient.size
        return found[:size, :size]

    def _point_factors(self, damping: float) -> NDArray[np.float64]:
        return _inverse_factors(self.points.damped(damping) + _LEAST * np.eye(3))

    def _gradient(self) -> NDArray[np.float64]:
        poses = self.poses.gradient.ravel()
        return poses if self.focal is None else np.append(poses, self.focal.gradient)

    def _whitened_coupling(self, factors: NDArray[np.float64]) -> Any:
        """Return W (3 L, 6 F or 6 F + 1), W^T W what the points take from the reduced matrix."""
        count, points = len(self.poses.blocks), len(self.points.blocks)
        first, second, third = self.coupling.T
        factor = factors.T[:, :, self.point]
        coupled = np.empty((3, *first.shape))
        coupled[0] = first * factor[0, 0]
        coupled[1] = first * factor[1, 0] + second * factor[1, 1]
        coupled[2] = first * factor[2, 0] + second * factor[2, 1] + third * factor[2, 2]
        if issparse(self.between):
            row = 3 * self.point + np.arange(3)[:, None, None]
            column = 6 * self.slot + np.arange(6)[None, :, None]
            places = [each.ravel() for each in np.broadcast_arrays(row, column)]
            return csr_matrix((coupled.ravel(), tuple(places)), shape=(3 * points, 6 * count))
        spread = np.zeros((points, 3, count, 6))
        spread[self.point, :, self.slot] = coupled.transpose(2, 0, 1)
        white = spread.reshape(points * 3, count * 6)
        if self.focal is None:
            return white
        return np.column_stack([white, (self.focal.by_point[:, None] @ factors).ravel()])

    def _reduced(self, white: Any, damping: float) -> Any:
        """Return the matrix of poses and focal length, without the points."""
        size = self.poses.gradient.size
        if issparse(self.between):
            blocks, places = self.poses.damped(damping), np.arange(size // 6 + 1)
            own = bsr_matrix((blocks, places[:-1], places))
            return self.between + own - white.T @ white
        matrix = -white.T @ white
        matrix[:size, :size] += self.between
        for i, block in enumerate(self.poses.damped(damping)):
            matrix[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] += block
        if self.focal is not None:
            coupling = self.focal.by_pose.ravel()
            matrix[size, :size] += coupling
            matrix[:size, size] += coupling
            matrix[size, size] += (1.0 + damping) * self.focal.block
        return matrix


def linearise(here: Evaluation, plan: Plan) -> System:
    """Return the normal equations at a bundle; the sigma of its rays stays outside."""
    bundle, seen = here.bundle, here.projection
    root = np.sqrt(here.weights) / bundle.sigma
    scaled = np.exp(bundle.log_focal) * root
    by_point = _point_jacobian(here, scaled)
    moving, rho = plan.moving, bundle.points.inverse_distance[bundle.point]
    by_pose = pose_jacobian(seen.rays[moving], (rho / seen.depth)[moving])
    by_pose *= scaled[moving, None, None]
    error = root[:, None] * seen.residual * bundle.sigma
    poses = _pose_normals(plan, by_pose, error[moving])
    between, pull = _direct_normals(bundle, plan)
    focal = None
    if bundle.log_focal_sigma > 0.0:
        by_focal = scaled[:, None] * seen.rays
        focal = _focal_part(bundle, plan, (by_focal, by_pose, by_point), error)
    return System(
        Normals(poses.blocks, poses.gradient + pull),
        _point_normals(bundle, by_point, error),
        _products(by_pose, by_point[moving]),
        bundle.point[moving],
        plan.slot,
        between,
        bundle.points.prior_sigma**-2.0,
        focal,
    )


def _point_jacobian(here: Evaluation, root: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return d rays / d (u, v, rho) (N, 2, 3), weighted; in memory as `pose_jacobian` is."""
    bundle, seen = here.bundle, here.projection
    about = np.stack(
        [*(turned(bundle, axis) for axis in tangents(bundle.points.directions)), seen.origins.T]
    )
    result = about[:, :2] - seen.rays.T * about[:, 2:]
    result *= root / seen.depth
    return result.T


def _products(by_pose: NDArray[np.float64], by_point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return J^T K (N, 6, 3) of derivatives J (N, 2, 6) and K (N, 2, 3) of the same rays."""
    poses, points = by_pose.T[None], by_point.T[:, None]
    result = points[:, :, 0] * poses[:, :, 0]
    result += points[:, :, 1] * poses[:, :, 1]
    return result.T


def _point_normals(
    bundle: Bundle, by_point: NDArray[np.float64], error: NDArray[np.float64]
) -> Normals:
    points, count = bundle.points, len(bundle.points)
    blocks, gradient = np.empty((count, 3, 3)), np.empty((count, 3))
    for i, first in enumerate(by_point.T):
        gradient[:, i] = np.bincount(bundle.point, (first * error.T).sum(axis=0), count)
        for j, second in enumerate(by_point.T[: i + 1]):
            sums = np.bincount(bundle.point, (first * second).sum(axis=0), count)
            blocks[:, i, j], blocks[:, j, i] = sums, sums
    information = points.prior_sigma**-2.0
    blocks[:, 2, 2] += information
    gradient[:, 2] += information * (points.inverse_distance - points.prior)
    return Normals(blocks, gradient)


def _pose_normals(plan: Plan, by_pose: NDArray[np.float64], error: NDArray[np.float64]) -> Normals:
    count = len(plan.free)
    blocks, gradient = np.zeros((count, 6, 6)), np.zeros((count, 6))
    for i in range(count):
        own = slice(plan.pose_bounds[i], plan.pose_bounds[i + 1])
        jacobian = by_pose.T[:, :, own].reshape(6, -1)
        blocks[i] = jacobian @ jacobian.T + _LEAST * np.eye(6)
        gradient[i] = jacobian @ error.T[:, own].ravel()
    return Normals(blocks, gradient)


def _focal_part(
    bundle: Bundle,
    plan: Plan,
    jacobians: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    error: NDArray[np.float64],
) -> FocalPart:
    by_focal, by_pose, by_point = jacobians
    information = bundle.log_focal_sigma**-2.0
    pulled = (by_focal[plan.moving, None] @ by_pose)[:, 0]
    poses, points = np.zeros((len(plan.free), 6)), np.zeros((len(bundle.points), 3))
    np.add.at(poses, plan.slot, pulled)
    np.add.at(points, bundle.point, (by_focal[:, None] @ by_point)[:, 0])
    return FocalPart(
        float((by_focal**2).sum()) + information,
        float((by_focal * error).sum()) + information * bundle.log_focal,
        poses,
        points,
    )


def _direct_normals(bundle: Bundle, plan: Plan) -> tuple[Any, NDArray[np.float64]]:
    """Return what couples poses without points: matrix, sparse or not, and gradient."""
    size = 6 * len(plan.free)
    if not plan.is_sparse:
        matrix, gradient = _turning_normals(bundle, plan)
    else:
        matrix, gradient = csr_matrix((size, size)), np.zeros((len(plan.free), 6))
    if bundle.edges is None:
        return matrix, gradient
    edges = bundle.edges
    blocks, sides = edges.normals(inverse(bundle.camera_from_map), np.ones(len(edges)))
    # A camera moves in its own frame, against the motion of the node; its unit stays.
    own = np.r_[:6, 7:13]
    slots = plan.slots[np.stack([edges.first, edges.second], axis=1)]
    unknowns = np.where(slots >= 0, 6 * slots, size)[:, :, None] + np.arange(6)
    unknowns = unknowns.reshape(len(edges), 12)
    pull = np.bincount(unknowns.ravel(), -sides[:, own].ravel(), size + 6)[:size]
    row, column = np.repeat(unknowns, 12, axis=1).ravel(), np.tile(unknowns, (1, 12)).ravel()
    values = blocks[:, own[:, None], own].ravel()
    added = csr_matrix((values, (row, column)), shape=(size + 6, size + 6))[:size, :size]
    matrix = matrix + (added if plan.is_sparse else added.toarray())
    return matrix, gradient + pull.reshape(-1, 6)


def _turning_normals(bundle: Bundle, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what pairs that share a centre add to the poses' matrix and gradient."""
    count = len(plan.free)
    matrix, gradient = np.zeros((6 * count, 6 * count)), np.zeros((count, 6))
    for pair in bundle.turning:
        off = bundle.centres_apart(pair)
        parts = [
            (
                int(plan.slots[camera]),
                sign * bundle.camera_from_map[camera, :3, :3].T / bundle.turning_sigma,
            )
            for camera, sign in zip(pair, (1.0, -1.0), strict=True)
            if plan.slots[camera] >= 0
        ]
        for slot, jacobian in parts:
            gradient[slot, 3:] += jacobian.T @ off
            for other, second in parts:
                rows = slice(6 * slot + 3, 6 * slot + 6)
                matrix[rows, 6 * other + 3 : 6 * other + 6] += jacobian.T @ second
    return matrix, gradient


def _solved(matrix: Any, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x of matrix x = right, symmetric and positive.

    Raises:
        LinAlgError, RuntimeError: it is not.
    """
    if issparse(matrix):
        return solved_sparse(matrix, right)
    factor = cho_factor(matrix, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False))


def _inverse_factors(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F (L, 3, 3), upper triangular, with F F^T the inverses of positive matrices."""
    lower = np.linalg.cholesky(blocks)
    result = np.zeros_like(lower)
    a, b, c = lower[:, 0, 0], lower[:, 1, 1], lower[:, 2, 2]
    d, e, f = lower[:, 1, 0], lower[:, 2, 0], lower[:, 2, 1]
    result[:, 0, 0], result[:, 1, 1], result[:, 2, 2] = 1 / a, 1 / b, 1 / c
    result[:, 0, 1] = -d / (a * b)
    result[:, 1, 2] = -f / (b * c)
    result[:, 0, 2] = (d * f - b * e) / (a * b * c)
    return result
