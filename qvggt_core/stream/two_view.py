"""What two views of the same points show: how the camera moved, and how far away the points are."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import transform

_CONFIDENCE = 0.999
# Beyond this distance, in baselines, a triangulated point is as good as at infinity.
_FARTHEST = 200.0
_FEWEST = 8
# Distance from an epipolar line, in standard deviations, within which a point supports it.
_INLIER = 1.5


@dataclass(frozen=True)
class TwoViews:
    """Two views of a rigid scene; the unit of length is the distance between them.

    Attributes:
        second_from_first: (4, 4), with a translation of length 1.
        agrees: (N,) which points move as the scene does, and lie in front of both cameras.
        points: (N, 3) in the first camera's frame; of no meaning where `agrees` is false.
        parallax: median angle in radians between the rays to the points that agree.
    """

    second_from_first: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    points: NDArray[np.float64]
    parallax: float

    @property
    def share(self) -> float:
        """Share of the points that agree."""
        return float(np.mean(self.agrees)) if len(self.agrees) else 0.0


def relate(
    first: NDArray[np.float64], second: NDArray[np.float64], sigma: float
) -> TwoViews | None:
    """Return the motion between two views by the five-point algorithm and RANSAC, if there is one.

    Nister, "An efficient solution to the five-point relative pose problem", PAMI 2004, as OpenCV
    has it.

    Args:
        first: (N, 2) x / z and y / z of the points in the first view.
        second: (N, 2) of the same points in the second view.
        sigma: standard deviation of both.
    """
    if len(first) < _FEWEST:
        return None
    cv2.setRNGSeed(0)
    essential, mask = cv2.findEssentialMat(
        first, second, np.eye(3), cv2.RANSAC, _CONFIDENCE, _INLIER * sigma
    )
    if essential is None or essential.shape != (3, 3):
        return None
    _, rotation, direction, mask, homogeneous = cv2.recoverPose(
        essential, first, second, np.eye(3), distanceThresh=_FARTHEST, mask=mask
    )
    agrees = mask.ravel() > 0
    if not agrees.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        points = (homogeneous[:3] / homogeneous[3]).T
    pose = transform(rotation, direction.ravel())
    centre = -rotation.T @ direction.ravel()
    angle = _angle(points[agrees], points[agrees] - centre)
    return TwoViews(pose, agrees, points, float(np.median(angle)))


def relate_by_plane(
    first: NDArray[np.float64], second: NDArray[np.float64], sigma: float
) -> list[TwoViews]:
    """Return the motions between two views of which most points lie in a plane: at most two.

    There the five-point algorithm finds anything; a homography has two explanations, of which
    further views decide. Malis and Vargas, "Deeper understanding of the homography decomposition
    for vision-based control", 2007, as OpenCV has it.

    Args:
        first: (N, 2) x / z and y / z of the points in the first view.
        second: (N, 2) of the same points in the second view.
        sigma: standard deviation of both.
    """
    if len(first) < _FEWEST:
        return []
    cv2.setRNGSeed(0)
    homography, mask = cv2.findHomography(first, second, cv2.RANSAC, 2.0 * _INLIER * sigma)
    if homography is None or not np.isfinite(homography).all():
        return []
    on_plane = mask.ravel() > 0
    _, rotations, shifts, normals = cv2.decomposeHomographyMat(homography, np.eye(3))
    found = []
    rays = np.column_stack([first, np.ones(len(first))])
    for rotation, shift, normal in zip(rotations, shifts, normals, strict=True):
        length = float(np.linalg.norm(shift))
        is_in_front = (rays[on_plane] @ normal.ravel() > 0).mean() > 0.5
        if length > 0.0 and is_in_front:
            motion = transform(rotation, shift.ravel() / length)
            views = triangulated(motion, first, second, 3.0 * sigma)
            if views is not None:
                found.append(views)
    return found


def triangulated(
    second_from_first: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    tolerance: float,
) -> TwoViews | None:
    """Return two views whose motion (4, 4) is known; points agree to the tolerance of the rays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        homogeneous = cv2.triangulatePoints(
            np.eye(4)[:3], second_from_first[:3], first.T.copy(), second.T.copy()
        )
        points = (homogeneous[:3] / homogeneous[3]).T
        there = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
        off = [
            np.linalg.norm(local[:, :2] / local[:, 2:] - rays, axis=1)
            for local, rays in ((points, first), (there, second))
        ]
        agrees = (np.maximum(*off) < tolerance) & (points[:, 2] > 0) & (there[:, 2] > 0)
        agrees &= points[:, 2] < _FARTHEST
    if not agrees.any():
        return None
    centre = -second_from_first[:3, :3].T @ second_from_first[:3, 3]
    angle = _angle(points[agrees], points[agrees] - centre)
    return TwoViews(second_from_first, agrees, points, float(np.median(angle)))


def turn_between(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rotation (3, 3) that takes the first view's rays closest to the second's.

    Weighted Kabsch, with weights of Cauchy in the median residual. The second array holds the
    angles in radians that are left, (N,).
    """
    one, other = _unit(first), _unit(second)
    weights = np.ones(len(one))
    rotation, rest = np.eye(3), np.zeros(len(one))
    for _ in range(3):
        u, _, vt = np.linalg.svd((other * weights[:, None]).T @ one)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u) * np.linalg.det(vt)]) @ vt
        rest = _angle(one @ rotation.T, other)
        scale = max(float(np.median(rest)), 1e-6)
        weights = 1.0 / (1.0 + (rest / scale) ** 2)
    return rotation, rest


def _unit(rays: NDArray[np.float64]) -> NDArray[np.float64]:
    directions = np.column_stack([rays, np.ones(len(rays))])
    return directions / np.linalg.norm(directions, axis=1)[:, None]


def _angle(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    sine = np.linalg.norm(np.cross(one, other), axis=1)
    return np.arctan2(sine, (one * other).sum(axis=1))
