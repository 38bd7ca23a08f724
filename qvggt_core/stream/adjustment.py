"""Robust bundle adjustment: camera poses and points that agree best with where points were seen.

Levenberg-Marquardt on the Schur complement (Triggs, McLauchlan, Hartley, Fitzgibbon, "Bundle
adjustment, a modern synthesis", 2000), in NumPy over all observations at once. A point is
(u, v, rho) about the direction and the centre from which it was first seen (Civera, Davison,
Montiel, "Inverse depth parametrization for monocular SLAM", T-RO 2008), so that one without
parallax is as linear as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.poses import transform

_FIRST_DAMPING = 1e-4
_MAX_DAMPING = 1e4
# Below this relative decrease of the cost further iterations do not pay.
_CONVERGED = 1e-4
_NO_DEPTH = 1e-3


@dataclass
class Bundle:
    """Cameras, points, and what each camera saw of which point.

    Attributes:
        camera_from_map: (K, 4, 4).
        is_free: (K,) whether a camera's pose is adjusted; the others hold the gauge.
        origins: (L, 3) centres in the map from which the points are described.
        directions: (L, 3) of the points from there, unit length.
        inverse_distance: (L,) one over the distance, positive.
        camera: (N,) index of the camera of each observation.
        point: (N,) index of its point; a pair occurs once.
        rays: (N, 2) x / z and y / z of the observation.
        sigma: standard deviation of `rays`.
        prior_inverse_distance: (L,) what else is known of the inverse distances.
        prior_sigma: (L,) its standard deviation; infinite where nothing is known.
        turning: (P, 2) pairs of cameras between which the camera only turned: indices of the
            earlier and the later one.
        turning_sigma: standard deviation of the distance between the centres of such a pair.
    """

    camera_from_map: NDArray[np.float64]
    is_free: NDArray[np.bool_]
    origins: NDArray[np.float64]
    directions: NDArray[np.float64]
    inverse_distance: NDArray[np.float64]
    camera: NDArray[np.int64]
    point: NDArray[np.int64]
    rays: NDArray[np.float64]
    sigma: float
    prior_inverse_distance: NDArray[np.float64] | None = None
    prior_sigma: NDArray[np.float64] | None = None
    turning: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    turning_sigma: float = 1.0

    @property
    def points(self) -> NDArray[np.float64]:
        """The points in the map, (L, 3)."""
        return self.origins + self.directions / self.inverse_distance[:, None]

    def residuals(self) -> NDArray[np.float64]:
        """Return the observations' reprojection errors (N, 2) in standard deviations."""
        return _project(self, self.camera_from_map, self.directions, self.inverse_distance)[0]


@dataclass(frozen=True)
class Adjusted:
    """A bundle after its adjustment.

    Attributes:
        bundle: with poses and points replaced.
        weights: (N,) of the observations, 1 for those that agree, towards 0 for outliers.
        covariance: (6 F, 6 F) of the F free poses, in order: rotation, then translation, in the
            camera's frame, with the points marginalised; the observations' sigma taken as true.
        point_sigma: (L,) standard deviation of the inverse distances with the poses given.
        iterations: number of linear systems solved.
        cost: mean robust cost of an observation.
    """

    bundle: Bundle
    weights: NDArray[np.float64]
    covariance: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    point_sigma: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    iterations: int = 0
    cost: float = 0.0


def adjust(
    bundle: Bundle, iterations: int = 8, outlier: float = 2.0, with_covariance: bool = False
) -> Adjusted:
    """Return the bundle with the poses and points that minimise Cauchy's robust cost.

    Args:
        bundle: cameras, points and observations; at least one camera must not be free, or the
            points need priors, for the gauge to be fixed.
        iterations: most linear systems to solve.
        outlier: residual in standard deviations at which an observation counts half.
        with_covariance: whether to compute the covariance too.
    """
    state = _State(bundle)
    plan = _Plan(bundle)
    damping = _FIRST_DAMPING
    residual, cost, weights = _evaluate(bundle, state, outlier)
    done = 0
    system = None
    while done < iterations:
        if system is None:
            system = _linearise(bundle, plan, state, residual, weights)
        done += 1
        step = system.solve(damping)
        moved = state if step is None else state.moved(bundle, plan, *step)
        if step is not None:
            new_residual, new_cost, new_weights = _evaluate(bundle, moved, outlier)
        if step is None or not new_cost < cost:
            damping *= 10.0
            if damping > _MAX_DAMPING:
                break
            continue
        gain = (cost - new_cost) / max(cost, 1e-12)
        state, residual, cost, weights = moved, new_residual, new_cost, new_weights
        system = None
        damping = max(damping * 0.1, 1e-8)
        if gain < _CONVERGED:
            break
    covariance, point_sigma = np.empty((0, 0)), np.empty(0)
    if with_covariance:
        system = _linearise(bundle, plan, state, residual, weights)
        covariance, point_sigma = system.covariance()
    mean = cost / max(len(bundle.rays), 1)
    return Adjusted(state.applied(bundle), weights, covariance, point_sigma, done, mean)


class _State:
    """What an iteration changes."""

    def __init__(self, bundle: Bundle) -> None:
        self.poses = bundle.camera_from_map
        self.directions = bundle.directions
        self.rho = bundle.inverse_distance

    def moved(
        self, bundle: Bundle, plan: _Plan, poses: NDArray[np.float64], points: NDArray[np.float64]
    ) -> _State:
        """Return the state after a step (F, 6) of the free poses and (L, 3) of the points."""
        result = _State(bundle)
        result.poses = self.poses.copy()
        result.poses[plan.free] = _moved_poses(self.poses[plan.free], poses)
        first, second = _tangents(self.directions)
        turned = self.directions + points[:, :1] * first + points[:, 1:2] * second
        length = np.linalg.norm(turned, axis=1)
        result.directions = turned / length[:, None]
        # (u, v, rho) describes the point up to length: (d + u e1 + v e2) / rho.
        rho = np.maximum(self.rho + points[:, 2], 0.1 * self.rho)
        result.rho = rho / length
        return result

    def applied(self, bundle: Bundle) -> Bundle:
        return Bundle(
            **{
                **bundle.__dict__,
                "camera_from_map": self.poses,
                "directions": self.directions,
                "inverse_distance": self.rho,
            }
        )


class _Plan:
    """Orders and indices that stay the same over the iterations."""

    def __init__(self, bundle: Bundle) -> None:
        self.free = np.flatnonzero(bundle.is_free)
        slot = np.full(len(bundle.is_free), -1)
        slot[self.free] = np.arange(len(self.free))
        self.slot = slot[bundle.camera]
        self.moving = np.flatnonzero(self.slot >= 0)
        self.by_point = np.argsort(bundle.point, kind="stable")
        ordered = bundle.point[self.by_point]
        self.seen, self.starts = np.unique(ordered, return_index=True)
        moving_slots = self.slot[self.moving]
        self.by_pose = self.moving[np.argsort(moving_slots, kind="stable")]
        self.pose_bounds = np.searchsorted(
            self.slot[self.by_pose], np.arange(len(self.free) + 1)
        ).tolist()


@dataclass
class _System:
    """The normal equations: poses, points, and what couples them."""

    pose_blocks: NDArray[np.float64]
    pose_gradient: NDArray[np.float64]
    point_blocks: NDArray[np.float64]
    point_gradient: NDArray[np.float64]
    coupling: NDArray[np.float64]
    point: NDArray[np.int64]
    slot: NDArray[np.int64]
    between: NDArray[np.float64]

    def _reduced(
        self, damping: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        count, points = len(self.pose_blocks), len(self.point_blocks)
        blocks = self.point_blocks.copy()
        diagonal = np.arange(3)
        blocks[:, diagonal, diagonal] *= 1.0 + damping
        blocks[:, diagonal, diagonal] += 1e-9
        factor = _inverse_factors(blocks)
        spread = np.zeros((points, 3, count, 6))
        coupled = self.coupling @ factor[self.point]
        spread[self.point, :, self.slot] = coupled.transpose(0, 2, 1)
        white = spread.reshape(points * 3, count * 6)
        gradient = (self.point_gradient[:, None] @ factor)[:, 0]
        matrix = self.between - white.T @ white
        for i in range(count):
            block = self.pose_blocks[i].copy()
            block[np.arange(6), np.arange(6)] *= 1.0 + damping
            matrix[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] += block
        right = self.pose_gradient.ravel() - white.T @ gradient.ravel()
        return matrix, right, white, factor

    def solve(self, damping: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the steps of poses (F, 6) and points (L, 3), or None if there is none."""
        matrix, right, white, factor = self._reduced(damping)
        try:
            poses = cho_solve(cho_factor(matrix, check_finite=False), right, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        gradient = (self.point_gradient[:, None] @ factor)[:, 0]
        rest = gradient - (white @ poses).reshape(-1, 3)
        points = (factor @ rest[:, :, None])[:, :, 0]
        return -poses.reshape(-1, 6), -points

    def covariance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        matrix, _, _, factor = self._reduced(0.0)
        size = len(matrix)
        try:
            found = cho_solve(cho_factor(matrix, check_finite=False), np.eye(size))
        except np.linalg.LinAlgError:
            found = np.full((size, size), np.inf)
        return found, np.sqrt((factor[:, 2] ** 2).sum(axis=1))


def _linearise(
    bundle: Bundle,
    plan: _Plan,
    state: _State,
    residual: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> _System:
    _, local, rotated, depth = _project(bundle, state.poses, state.directions, state.rho)
    root = np.sqrt(weights) / bundle.sigma
    x, y = local[:, 0], local[:, 1]
    inverse_z = root / depth
    rho = state.rho[bundle.point]
    first, second = _tangents(state.directions)
    rotations = state.poses[:, :3, :3]
    axes = np.stack([first, second], axis=1)[bundle.point]
    about = np.empty((len(x), 3, 3))
    about[:, :, :2] = np.einsum("nij,nkj->nik", rotations[bundle.camera], axes, optimize=False)
    about[:, :, 2] = rotated
    by_point = np.empty((len(x), 2, 3))
    by_point[:, 0] = inverse_z[:, None] * (about[:, 0] - x[:, None] * about[:, 2])
    by_point[:, 1] = inverse_z[:, None] * (about[:, 1] - y[:, None] * about[:, 2])
    moving = plan.moving
    by_pose = _pose_jacobian(x[moving], y[moving], root[moving], (inverse_z * rho)[moving])
    error = root[:, None] * residual * bundle.sigma
    ordered = by_point[plan.by_point]
    count = len(bundle.inverse_distance)
    point_blocks = np.zeros((count, 3, 3))
    products = np.einsum("nai,naj->nij", ordered, ordered)
    point_blocks[plan.seen] = np.add.reduceat(products, plan.starts, axis=0)
    point_gradient = np.zeros((count, 3))
    pulled = np.einsum("nai,na->ni", ordered, error[plan.by_point])
    point_gradient[plan.seen] = np.add.reduceat(pulled, plan.starts, axis=0)
    _add_priors(bundle, state, point_blocks, point_gradient)
    index = np.empty(len(x), np.int64)
    index[moving] = np.arange(len(moving))
    pose_blocks, pose_gradient = _pose_normals(plan, by_pose, error, index)
    between, pull = _turning_normals(bundle, plan, state)
    return _System(
        pose_blocks,
        pose_gradient + pull,
        point_blocks,
        point_gradient,
        by_pose.transpose(0, 2, 1) @ by_point[moving],
        bundle.point[moving],
        plan.slot[moving],
        between,
    )


def _turning_normals(
    bundle: Bundle, plan: _Plan, state: _State
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what pairs that share a centre add to the poses' matrix and gradient."""
    count = len(plan.free)
    matrix, gradient = np.zeros((6 * count, 6 * count)), np.zeros((count, 6))
    slots = np.full(len(bundle.is_free), -1)
    slots[plan.free] = np.arange(count)
    for pair in bundle.turning:
        off = _centres_apart(bundle, state.poses, pair)
        parts = [
            (int(slots[camera]), sign * state.poses[camera, :3, :3].T / bundle.turning_sigma)
            for camera, sign in zip(pair, (1.0, -1.0), strict=True)
            if slots[camera] >= 0
        ]
        for slot, jacobian in parts:
            gradient[slot, 3:] += jacobian.T @ off
            for other, second in parts:
                rows = slice(6 * slot + 3, 6 * slot + 6)
                matrix[rows, 6 * other + 3 : 6 * other + 6] += jacobian.T @ second
    return matrix, gradient


def _centres_apart(
    bundle: Bundle, poses: NDArray[np.float64], pair: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the vector (3,) from a pair's first centre to its second, in sigmas."""
    first, second = (-poses[camera, :3, :3].T @ poses[camera, :3, 3] for camera in pair)
    return (second - first) / bundle.turning_sigma


def _pose_jacobian(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    root: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return d(x, y) / d(rotation, translation) of a camera that moves in its own frame."""
    result = np.zeros((len(x), 2, 6))
    result[:, 0, 0] = -root * x * y
    result[:, 0, 1] = root * (1.0 + x * x)
    result[:, 0, 2] = -root * y
    result[:, 1, 0] = -root * (1.0 + y * y)
    result[:, 1, 1] = root * x * y
    result[:, 1, 2] = root * x
    result[:, 0, 3] = shift
    result[:, 0, 5] = -x * shift
    result[:, 1, 4] = shift
    result[:, 1, 5] = -y * shift
    return result


def _pose_normals(
    plan: _Plan, by_pose: NDArray[np.float64], error: NDArray[np.float64], index: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count = len(plan.free)
    blocks, gradient = np.zeros((count, 6, 6)), np.zeros((count, 6))
    for i in range(count):
        rows = plan.by_pose[plan.pose_bounds[i] : plan.pose_bounds[i + 1]]
        jacobian = by_pose[index[rows]].reshape(-1, 6)
        blocks[i] = jacobian.T @ jacobian
        gradient[i] = jacobian.T @ error[rows].ravel()
        blocks[i, np.arange(6), np.arange(6)] += 1e-9
    return blocks, gradient


def _add_priors(
    bundle: Bundle,
    state: _State,
    blocks: NDArray[np.float64],
    gradient: NDArray[np.float64],
) -> None:
    if bundle.prior_inverse_distance is None or bundle.prior_sigma is None:
        return
    information = bundle.prior_sigma**-2.0
    blocks[:, 2, 2] += information
    gradient[:, 2] += information * (state.rho - bundle.prior_inverse_distance)


def _evaluate(
    bundle: Bundle, state: _State, outlier: float
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    residual, _, _, depth = _project(bundle, state.poses, state.directions, state.rho)
    square = (residual**2).sum(axis=1) / outlier**2
    weights = 1.0 / (1.0 + square)
    cost = outlier**2 * float(np.log1p(square).sum())
    behind = depth < _NO_DEPTH
    weights[behind] = 1e-6
    cost += 50.0 * float(np.count_nonzero(behind))
    if bundle.prior_inverse_distance is not None and bundle.prior_sigma is not None:
        off = (state.rho - bundle.prior_inverse_distance) / bundle.prior_sigma
        cost += float((off**2).sum())
    for pair in bundle.turning:
        cost += float((_centres_apart(bundle, state.poses, pair) ** 2).sum())
    return residual, cost, weights


def _project(
    bundle: Bundle,
    poses: NDArray[np.float64],
    directions: NDArray[np.float64],
    rho: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return residuals (N, 2) in sigmas, rays, the origins seen by the cameras, and depths.

    Depths are in units of the points' distances: those of R d + rho (R o + t).
    """
    rotations, shifts = poses[bundle.camera, :3, :3], poses[bundle.camera, :3, 3]
    both = np.stack([directions[bundle.point], bundle.origins[bundle.point]], axis=2)
    turned = rotations @ both
    origin = turned[:, :, 1] + shifts
    local = turned[:, :, 0] + rho[bundle.point, None] * origin
    depth = local[:, 2]
    safe = np.where(depth < _NO_DEPTH, _NO_DEPTH, depth)
    rays = local[:, :2] / safe[:, None]
    return (rays - bundle.rays) / bundle.sigma, rays, origin, safe


def _tangents(
    directions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two unit vectors (L, 3) each that are orthogonal to the directions."""
    helper = np.zeros_like(directions)
    helper[np.arange(len(directions)), np.abs(directions).argmin(axis=1)] = 1.0
    first = np.cross(directions, helper)
    first /= np.linalg.norm(first, axis=1)[:, None]
    return first, np.cross(directions, first)


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


def _moved_poses(poses: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the poses (F, 4, 4) after moves (F, 6) in their own frames: exp(step) pose."""
    turns = Rotation.from_rotvec(steps[:, :3]).as_matrix()
    return np.stack(
        [
            transform(turn @ pose[:3, :3], turn @ pose[:3, 3] + step[3:])
            for turn, pose, step in zip(turns, poses, steps, strict=True)
        ]
    )
