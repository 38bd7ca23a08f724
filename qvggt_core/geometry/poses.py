"""Rigid transforms, axis conventions and unprojection, in float64 on the host.

Transforms are named `a_from_b`: 4x4 matrices that take coordinates in frame b to frame a.
Camera frames are optical (x right, y down, z forward, REP-103), worlds are z-up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FLU_FROM_OPTICAL: NDArray[np.float64] = np.array(
    [
        [0.0, 0.0, 1.0, 0.0],
        [-1.0, 0.0, 0.0, 0.0],
        [0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""Body axes (x forward, y left, z up) from camera optical axes (REP-103)."""


def transform(rotation: NDArray, translation: NDArray) -> NDArray[np.float64]:
    """Return the 4x4 transform of a (3, 3) rotation and a (3,) translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(a_from_b: NDArray) -> NDArray[np.float64]:
    """Return `b_from_a` of rigid transforms, shape (..., 4, 4)."""
    a_from_b = np.asarray(a_from_b, dtype=np.float64)
    rotation_t = np.swapaxes(a_from_b[..., :3, :3], -1, -2)
    result = np.zeros_like(a_from_b)
    result[..., :3, :3] = rotation_t
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, a_from_b[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


def exactly_rigid(a_from_b: NDArray) -> NDArray[np.float64]:
    """Return transforms (..., 4, 4) without what products have left of rounding in their rotations.

    `inverse` transposes: where a transform comes from the inverse of one before, such errors double
    with each step, and forty steps make them visible.
    """
    result = np.array(a_from_b, np.float64)
    rotation = result[..., :3, :3].reshape(-1, 3, 3)
    exact = Rotation.from_matrix(rotation).as_matrix()
    result[..., :3, :3] = exact.reshape(result[..., :3, :3].shape)
    return result


def cross_matrix(vector: NDArray) -> NDArray[np.float64]:
    """Return the (3, 3) matrix that multiplies like the cross product of a vector (3,)."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def quaternion(rotation: NDArray) -> NDArray[np.float64]:
    """Return unit quaternions (x, y, z, w), shape (..., 4), of (..., 3, 3) rotations; w >= 0."""
    return Rotation.from_matrix(rotation).as_quat(canonical=True)


def rotation_angle(rotation: NDArray) -> NDArray[np.float64]:
    """Return the angles in radians of rotation matrices, shape (..., 3, 3) -> (...)."""
    # atan2 of the sine (axis vector) and the cosine (trace) is accurate near 0 and near pi,
    # where arccos of the trace alone loses half of the digits.
    rotation = np.asarray(rotation, dtype=np.float64)
    axis = np.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        axis=-1,
    )
    trace = np.trace(rotation, axis1=-2, axis2=-1)
    return np.arctan2(np.linalg.norm(axis, axis=-1), trace - 1.0)


def unproject(depth: NDArray, intrinsics: NDArray) -> NDArray[np.float32]:
    """Return the points, in the camera's optical frame, of a depth image.

    Args:
        depth: (H, W) depth along the optical axis; NaN where invalid (REP-118).
        intrinsics: (3, 3) pinhole matrix in pixels; pixel centres at integer coordinates.

    Returns:
        (H, W, 3) float32 points in the unit of `depth`; NaN where the depth is NaN.
    """
    height, width = depth.shape
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1]
    depth = np.asarray(depth, dtype=np.float32)
    points = np.empty((height, width, 3), dtype=np.float32)
    points[..., 0] = depth * x.astype(np.float32)[None, :]
    points[..., 1] = depth * y.astype(np.float32)[:, None]
    points[..., 2] = depth
    return points
